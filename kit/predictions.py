"""Results of RunInference: a sequence when all examples are there, an iterator when they come one by one."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from kit.engine.requests import Failure
from kit.handler import PredictionResult
from kit.shorten import shorten

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10
SHOWN_LETTERS = 120


class Predictions(Sequence[Any]):
    """Predictions in the order of their examples.

    Each is a `PredictionResult`, a `Failure` where the example failed and exceptions are handled, or
    whatever the last post-processing function returned.
    """

    def __init__(self, results: list[Any]) -> None:
        self._results = results

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Predictions(self._results[index])
        return self._results[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Predictions):
            return self._results == other._results
        return self._results == other

    __hash__ = None  # type: ignore[assignment]

    @property
    def failures(self) -> list[Failure]:
        """The examples that failed, with their errors."""
        return [result for result in self._results if isinstance(result, Failure)]

    @property
    def succeeded(self) -> Predictions:
        """The predictions without the failures."""
        return Predictions([result for result in self._results if not isinstance(result, Failure)])

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame with a row an example.

        Columns: "example", "inference", "model_id" for PredictionResults, and before them "key" for those of models by
        key; "result" for post-processed values; "error" (text, None where none) when there are failures.
        """
        import pandas as pd

        rows = [_row(result) for result in self._results]
        order = ("key", "example", "inference", "model_id", "result", "error")
        present = {name for row in rows for name in row} or {"example", "inference", "model_id"}
        columns = [name for name in order if name in present]
        return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})

    def __repr__(self) -> str:
        lines = [f"{len(self)} predictions"]
        lines += [f"  {shorten(result, SHOWN_LETTERS)}" for result in self._results[:3]]
        if len(self) > 3:
            lines.append("  ...")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [_row(result) for result in self._results[:SHOWN]]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(shorten(row.get(name, ''), SHOWN_LETTERS))}</td>" for name in columns)
            + "</tr>"
            for row in rows
        )
        more = f"<p>{len(self)} predictions, the first {len(rows)} shown.</p>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _row(result: Any) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"example": result.example, "error": str(result.error.args[0])}
    if hasattr(result, "inference") and hasattr(result, "example"):
        return {"example": result.example, "inference": result.inference, "model_id": result.model_id}
    if type(result) is tuple and len(result) == 2 and isinstance(result[1], PredictionResult):
        return {"key": result[0], **_row(result[1])}
    return {"result": result}

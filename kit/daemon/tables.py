"""DataFrames of the wire encoding: in Arrow's format as far as that gives them back unaltered.

Arrow takes objects for what they resemble: a tuple becomes an array, a dict gets the keys of its neighbours, a text of
dtype object another dtype. So the values of such columns travel one by one, each as the encoding has it, and labels
that Arrow would alter do, too. What can't is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kit import errors
from kit.daemon import arrow

if TYPE_CHECKING:
    from kit.daemon.decoder import Decoder
    from kit.daemon.encoder import Encoder

_TEXT = {str, type(None)}


class Table(NamedTuple):
    """A DataFrame that is ready to be written.

    Attributes:
        data: Arrow's stream format.
        about: None where that is all; otherwise the columns (as row labels of an empty DataFrame), positions of those
            of text in `data` that are objects, the row labels' names, the row labels if they aren't in `data`, and
            `DataFrame.attrs`.
        cells: the other columns of objects: position, name, values.
    """

    data: bytes
    about: tuple[Any, list[int], list[Any], Any, dict[Any, Any]] | None = None
    cells: Sequence[tuple[int, Any, list[Any]]] = ()

    def write(self, encoder: Encoder) -> None:
        """Behind the tag."""
        encoder.add(self.data).add(self.about)
        if self.about is None:
            return
        encoder.count(len(self.cells))
        for at, name, values in self.cells:
            encoder.add(at)
            try:
                encoder.add(values)
            except errors.UnsupportedType as error:
                raise errors.UnsupportedType(f"column {name!r} of a DataFrame: {error.args[0]}") from None


def is_frame(value: Any) -> bool:
    """True for pandas DataFrames; imports nothing."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and type(value) is pandas.DataFrame


# ---- out -------------------------------------------------------------------------------------


def table(frame: Any) -> Table:
    """A DataFrame, as it travels.

    Raises:
        UnsupportedType: it can't travel unaltered.
    """
    arrow.library()
    objects = []
    for at, dtype in enumerate(frame.dtypes):
        if arrow.is_object(dtype):
            objects.append(at)
        elif not arrow.comes_back(dtype):
            raise arrow.cannot(f"column {frame.columns[at]!r} of dtype {dtype}")
    index = frame.index
    plain = arrow.keeps_labels(index)
    named = arrow.keeps_names(index.names) and arrow.keeps_columns(frame.columns)
    if plain and named and not objects and not frame.attrs:
        return Table(arrow.bytes_of(frame))
    import pandas as pd

    rest = frame.copy(deep=False)
    rest.attrs = {}
    rest.columns = pd.Index([str(at) for at in range(frame.shape[1])])
    rest.index = index.set_names([None] * index.nlevels) if plain else pd.RangeIndex(len(index))
    texts, cells = [], []
    for at in objects:
        found = rest[str(at)].to_numpy().tolist()
        if _TEXT.issuperset(map(type, found)) and _is_unicode(found):
            texts.append(at)
        else:
            cells.append((at, frame.columns[at], found))
    rest = rest.drop(columns=[str(at) for at, _, _ in cells])
    labels = None if plain else _labels(index)
    # What the columns travel as has none itself.
    columns = pd.DataFrame(index=frame.columns) if frame.shape[1] else None
    return Table(arrow.bytes_of(rest), (columns, texts, list(index.names), labels, dict(frame.attrs)), cells)


def _is_unicode(texts: list[str | None]) -> bool:
    try:
        "".join(text for text in texts if text is not None).encode()
    except UnicodeEncodeError:  # half of a pair, which Arrow refuses
        return False
    return True


def _labels(index: Any) -> Any:
    """Row labels that aren't plain, as values of the encoding: a list of objects, or a DataFrame."""
    if index.nlevels == 1 and arrow.is_object(index.dtype):
        return list(index)
    return index.to_frame(index=False, name=list(range(index.nlevels)) if index.nlevels > 1 else 0)


# ---- in ----------------------------------------------------------------------------------------


def read(decoder: Decoder) -> Any:
    """The DataFrame that comes next; everything in it is checked before it is used."""
    data, about = decoder.read(), decoder.read()
    if about is None:
        return arrow.frame_of(data)
    columns, texts, names, labels, attrs = about
    cells = {decoder.read(): decoder.read() for _ in range(decoder.count())}
    found = arrow.table_of(data)
    for at in texts:
        cells[at] = found.column(str(at)).to_numpy()
    found = found.drop_columns([str(at) for at in texts]).to_pandas()
    if labels is not None:
        found.index = _index_of(labels, len(found))
    found.index.names = names
    if columns is not None:
        found = _with_cells(found, cells)
        found.columns = columns.index
    found.attrs = attrs
    return found


def _index_of(labels: Any, rows: int) -> Any:
    import pandas as pd

    if not is_frame(labels):
        found = pd.Index(labels, dtype=object, tupleize_cols=False)
    elif labels.shape[1] > 1:
        found = pd.MultiIndex.from_frame(labels)
    else:
        found = pd.Index(labels.iloc[:, 0])
    if len(found) != rows:
        raise ValueError("row labels of another number")
    return found


def _with_cells(frame: Any, cells: dict[int, Any]) -> Any:
    """A DataFrame whose columns are named by position, and the ones that are missing in it, by position, too."""
    import pandas as pd

    columns = {name: frame[name] for name in frame.columns}
    for at, values in cells.items():
        if len(values) != len(frame):
            raise ValueError("a column of another length")
        array = values if type(values) is np.ndarray else np.fromiter(values, dtype=object, count=len(values))
        columns[str(at)] = pd.Series(array, index=frame.index, dtype=object)
    return pd.DataFrame({str(at): columns[str(at)] for at in range(len(columns))}, index=frame.index)


# ---- several at once -----------------------------------------------------------------------------


def alike(frames: list[Any]) -> bool:
    """True when DataFrames have the same columns and types, and so can travel as one."""
    first = frames[0]
    names, attrs = list(first.index.names), first.attrs
    return first.columns.is_unique and all(
        frame.columns.identical(first.columns)
        and frame.dtypes.equals(first.dtypes)
        and type(frame.index) is type(first.index)
        and frame.index.dtype == first.index.dtype
        and list(frame.index.names) == names
        and not (frame.attrs or attrs)
        for frame in frames[1:]
    )


def joined(frames: list[Any]) -> Table:
    """DataFrames that are `alike`, as one."""
    import pandas as pd

    return table(pd.concat(frames))


def parted(sizes: Any, whole: Any) -> list[Any]:
    """The inverse of `joined`, given the rows of each."""
    if type(sizes) is not list or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError("rows of tables")
    if sum(sizes) != len(whole):
        raise ValueError("rows of tables don't add up")
    found, at = [], 0
    for size in sizes:
        found.append(whole.iloc[at : at + size])
        at += size
    return found

"""Which DataFrames Arrow's stream format gives back unaltered, and that format."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from kit import errors


def library() -> Any:
    """pyarrow."""
    try:
        import pyarrow
    except ImportError as error:
        raise errors.MissingExtra(
            "DataFrames travel to and from named deployments in Arrow's format: pip install pyarrow."
        ) from error
    import pyarrow.ipc

    return pyarrow


def cannot(what: str) -> errors.UnsupportedType:
    """The error to raise for what Arrow doesn't keep."""
    return errors.UnsupportedType(
        f"a DataFrame with {what} can't travel to or from a named deployment unaltered. Convert it, to numbers or "
        "text for example, or serve with allow_pickle=True."
    )


def is_object(dtype: Any) -> bool:
    """True for Python objects of any types."""
    return isinstance(dtype, np.dtype) and dtype.kind == "O"


def comes_back(dtype: Any, *, label: bool = False) -> bool:
    """True when Arrow keeps a column of that type, or the row labels."""
    if isinstance(dtype, np.dtype) and dtype.kind in "fiub":
        return True
    categories = getattr(dtype, "categories", None)
    if categories is not None and not is_object(categories.dtype):  # may be many, so it is tried with one
        dtype = type(dtype)(categories[:1], dtype.ordered)
    elif categories is not None:
        return False
    return _tried(dtype, label)


@lru_cache(maxsize=256)
def _tried(dtype: Any, label: bool) -> bool:
    import pandas as pd

    one = pd.Series(getattr(dtype, "categories", []), dtype=dtype)  # Arrow drops categories that no row has
    try:
        back = frame_of(bytes_of(pd.DataFrame(index=pd.Index(one)) if label else pd.DataFrame({"c": one})))
    except Exception:  # each type has its own
        return False
    found = back.index.dtype if label else back["c"].dtype
    # Text may be stored in another way.
    return bool(found == dtype or (isinstance(dtype, pd.StringDtype) and str(found) == str(dtype)))


def keeps_names(names: Iterable[Any]) -> bool:
    """True when Arrow keeps names of labels."""
    return all(name is None or type(name) is str for name in names)


def keeps_columns(columns: Any) -> bool:
    """True when Arrow keeps what columns are called."""
    import pandas as pd

    if not keeps_names(columns.names) or not columns.is_unique:
        return False
    if type(columns) is pd.RangeIndex:
        return True
    if type(columns) is not pd.Index:
        return False
    if is_object(columns.dtype):
        return _text_is_objects() and set(map(type, columns)) == {str}
    return str(columns.dtype) in ("str", "int64")


@lru_cache(maxsize=1)
def _text_is_objects() -> bool:
    """True before pandas 3."""
    import pandas as pd

    return is_object(pd.Index(["text"]).dtype)


def keeps_labels(index: Any) -> bool:
    """True when Arrow keeps row labels, apart from their names."""
    import pandas as pd

    if type(index) is pd.RangeIndex:
        return True
    if isinstance(index, pd.MultiIndex):
        return all(map(keeps_labels, index.levels))
    return not is_object(index.dtype) and comes_back(index.dtype, label=True)


def bytes_of(frame: Any) -> bytes:
    """A DataFrame in Arrow's stream format, row labels and column types included."""
    pyarrow = library()
    try:
        found = pyarrow.Table.from_pandas(frame).combine_chunks()
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        kinds = ", ".join(sorted({str(dtype) for dtype in frame.dtypes}))
        raise cannot(f"columns of dtypes {kinds} ({' '.join(str(error).split())})") from error
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found)
    return bytes(sink.getvalue().to_pybytes())


def table_of(data: Any) -> Any:
    """Arrow's table of `bytes_of`; everything in it is checked before it is used."""
    if type(data) is not bytes:
        raise ValueError("a table is bytes")
    with library().ipc.open_stream(data) as reader:
        found = reader.read_all()
    found.validate(full=True)
    return found


def frame_of(data: Any) -> Any:
    """The inverse of `bytes_of`."""
    return table_of(data).to_pandas()

"""Tensors in a process that only passes them on: their bytes, without torch, whose import takes 130 MB.

A process says by `pass_on` that nothing in it looks into tensors. They are then read as `TensorBytes`, which travel on
as tensors; once something has imported torch, they are read as tensors there too.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

#: For torch's element types those of numpy of their sizes.
DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")},
    **{name: np.dtype(name) for name in ("complex64", "complex128", "bool")},
    **{name: np.dtype(name) for name in ("uint64", "uint32", "uint16")},  # these and float8 don't unpickle
    "bfloat16": np.dtype("uint16"),
    **{f"float8_{name}": np.dtype("uint8") for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")},
}
_passes_on = False


def pass_on(yes: bool) -> None:
    """Say whether this process only passes tensors on."""
    global _passes_on
    _passes_on = yes


def wanted() -> bool:
    """True where tensors are to be read as `TensorBytes`."""
    return _passes_on and "torch" not in sys.modules


class TensorBytes:
    """A tensor, or several of one shape: what `Rows` needs of it, and no more.

    Attributes:
        dtype: torch's name of the element type.
        array: the elements, as numpy's type of that size.
    """

    __slots__ = ("array", "dtype")

    def __init__(self, dtype: str, array: np.ndarray[Any, Any]) -> None:
        self.dtype = dtype
        self.array = array

    @staticmethod
    def of(dtype: str, shape: Sequence[int], data: Any) -> TensorBytes:
        """From the bytes of all elements."""
        kind = DTYPES[dtype]
        return TensorBytes(dtype, np.frombuffer(data, dtype=kind, count=len(data) // kind.itemsize).reshape(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> TensorBytes:
        return TensorBytes(self.dtype, self.array[index if isinstance(index, slice | list) else (index, ...)])

    def unbind(self, dimension: int = 0) -> list[TensorBytes]:
        """Each row, as of a tensor."""
        return [self[index] for index in range(len(self))]

    def __reduce__(self) -> Any:
        """Whoever is sent it gets the tensor."""
        return tensor_of, (self.dtype, np.ascontiguousarray(self.array))

    def __repr__(self) -> str:
        return f"<tensor of {self.dtype}, shape {list(self.shape)}>"


def tensor_of(dtype: str, array: np.ndarray[Any, Any]) -> Any:
    """The tensor that `TensorBytes` stand for; imports torch."""
    flat = array if array.flags.writeable else array.copy()  # torch warns of what it may not write to
    return tensor_from(dtype, array.shape, flat.reshape(-1).view(np.uint8))


def tensor_from(dtype: str, shape: Sequence[int], flat: np.ndarray[Any, Any]) -> Any:
    """A tensor that is a view of bytes; imports torch."""
    import torch

    kind = getattr(torch, dtype)
    return torch.from_numpy(flat).view(kind).view(shape) if flat.size else torch.empty(shape, dtype=kind)


def head_of(block: TensorBytes) -> bytes:
    """Type and shape, as `codec` puts them before the bytes."""
    return _head(block.dtype, block.shape)


@lru_cache(maxsize=512)
def _head(dtype: str, shape: tuple[int, ...]) -> bytes:
    return pickle.dumps((dtype, shape), protocol=5)


def joined(parts: Sequence[TensorBytes]) -> TensorBytes:
    """Parts of one type and shape, one after the other."""
    return TensorBytes(parts[0].dtype, np.concatenate([part.array for part in parts]))


def copier(block: TensorBytes) -> Any:
    """A function that writes the elements to memory."""
    return partial(_copy, block.array)


def _copy(array: np.ndarray[Any, Any], target: memoryview) -> None:
    if target.nbytes:
        np.copyto(np.frombuffer(target, dtype=array.dtype).reshape(array.shape), array)

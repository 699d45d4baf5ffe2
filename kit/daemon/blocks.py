"""Arrays and tensors of the wire encoding: element types by name, shapes, bytes, and nothing else."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import errors
from kit.engine import tensor_bytes
from kit.engine.codec import aligned
from kit.engine.tensor_bytes import TensorBytes

if TYPE_CHECKING:
    from kit.daemon.decoder import Decoder
    from kit.daemon.encoder import Encoder

__all__ = ["Block", "aligned", "of_numpy", "of_tensor", "read", "stackable"]

#: numpy's element types: bool, integers, floats, complex, text, bytes, datetimes; neither objects nor records.
_NUMPY_DTYPE = re.compile(
    r"[<>|](b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[US][1-9]\d{0,8}|[mM]8(\[\d{0,6}[a-zA-Z]{1,2}\])?)"
)
_TORCH_DTYPES = frozenset(tensor_bytes.DTYPES)
MOST_DIMENSIONS = 32
#: What a tensor is besides its elements.
PLAIN, PARAMETER, GRADIENT = 0, 1, 2


class Block:
    """Equal elements: their type, "numpy:<f4" or "torch:float32", a shape, and how to write them to memory."""

    __slots__ = ("dtype", "fill", "shape", "size")

    def __init__(self, dtype: str, shape: Sequence[int], itemsize: int, fill: Callable[[memoryview], None]) -> None:
        self.dtype = dtype
        self.shape = tuple(shape)
        self.size = itemsize
        for length in shape:
            self.size *= length
        self.fill = fill

    def write(self, encoder: Encoder) -> None:
        """Type and shape go into the head, the elements into a buffer."""
        encoder.text(self.dtype)
        encoder.head += struct.pack(f"<B{len(self.shape)}Q", len(self.shape), *self.shape)
        encoder.buffer(self.size, self.fill)


def of_numpy(array: Any, original: Any, shape: Sequence[int] | None = None, write: Any = None) -> Block:
    """The block of a numpy array, or with `write` of something of its element type and another shape."""
    dtype = array.dtype
    if _NUMPY_DTYPE.fullmatch(dtype.str) is None or array.ndim > MOST_DIMENSIONS:
        raise errors.UnsupportedType(
            f"a numpy {type(original).__name__} of dtype {dtype} can't travel to or from a named deployment: "
            "convert it to numbers or fixed-width text, or to a list."
        )
    shape = array.shape if shape is None else shape

    def fill(target: memoryview) -> None:
        if target.nbytes:
            out = np.frombuffer(target, dtype=dtype).reshape(shape)
            if write is None:
                np.copyto(out, array)
            else:
                write(out)

    return Block(f"numpy:{dtype.str}", shape, dtype.itemsize, fill)


def is_tensor(value: Any) -> bool:
    """True for torch tensors; imports nothing."""
    # Half imported, by another thread, torch has made no tensor yet.
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def of_kind(tensor: Any) -> int:
    """PLAIN for a tensor, and for others how they differ: a Parameter, one that requires a gradient.

    Raises:
        UnsupportedType: it is of another class of tensors.
    """
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        kind = type(tensor)
        raise errors.UnsupportedType(
            f"a tensor of class {kind.__module__}.{kind.__qualname__} can't travel to or from a named deployment: "
            "convert it, such as with .as_subclass(torch.Tensor), or serve with allow_pickle=True."
        )
    return (PARAMETER if type(tensor) is torch.nn.Parameter else PLAIN) | (GRADIENT if tensor.requires_grad else PLAIN)


def read_kind(decoder: Decoder) -> Any:
    """The tensor of a kind of its own that comes next, not a part of any graph."""
    kind = decoder.bytes(1)[0]
    tensor = read(decoder)
    import torch

    if not isinstance(tensor, torch.Tensor) or not kind or kind & ~(PARAMETER | GRADIENT):
        raise ValueError("not a kind of tensor")
    needs = bool(kind & GRADIENT)
    return torch.nn.Parameter(tensor, needs) if kind & PARAMETER else tensor.requires_grad_(needs)


def of_tensor(tensor: Any, shape: Sequence[int] | None = None, write: Any = None) -> Block:
    """The block of a dense tensor of any device; it comes out on the CPU, without gradient."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _TORCH_DTYPES or tensor.layout is not torch.strided or tensor.ndim > MOST_DIMENSIONS:
        raise errors.UnsupportedType(
            f"a tensor of dtype {tensor.dtype}, layout {tensor.layout} can't travel to or from a named deployment: "
            "convert it, such as with .dequantize() or .to_dense(), or serve with allow_pickle=True."
        )
    plain = tensor.detach()
    shape = tuple(tensor.shape) if shape is None else shape

    def fill(target: memoryview) -> None:
        if target.nbytes:
            out = torch.from_numpy(np.frombuffer(target, dtype=np.uint8)).view(plain.dtype).view(shape)
            if write is None:
                out.copy_(plain)
            else:
                write(out)

    return Block(f"torch:{name}", shape, tensor.element_size(), fill)


def of_bytes(block: TensorBytes) -> Block:
    """The block of tensors that this process only passes on."""
    return Block(f"torch:{block.dtype}", block.shape, block.array.itemsize, tensor_bytes.copier(block))


def stackable(values: list[Any]) -> Block | None:
    """The block of a list of equal-shaped arrays or tensors, None when it isn't one."""
    first = values[0]
    kind = type(first)
    if kind is np.ndarray:
        if not first.size or _NUMPY_DTYPE.fullmatch(first.dtype.str) is None or first.ndim >= MOST_DIMENSIONS:
            return None
        if not _alike(values, kind, first):
            return None
        return of_numpy(first, first, (len(values), *first.shape), lambda out: np.stack(values, out=out))
    torch = sys.modules.get("torch")
    if (
        torch is None
        or kind is not getattr(torch, "Tensor", None)
        or not first.numel()
        or not _alike(values, kind, first)
    ):
        return None
    if any(value.layout is not torch.strided or not value.is_cpu or value.requires_grad for value in values):
        return None

    def stack(out: Any) -> None:
        with torch.no_grad():  # in place of detach(), which makes a tensor of each row
            torch.stack(values, out=out)

    return of_tensor(first, (len(values), *first.shape), stack)


def _alike(values: list[Any], kind: Any, first: Any) -> bool:
    dtype, shape = first.dtype, first.shape
    return all(type(value) is kind and value.dtype == dtype and value.shape == shape for value in values)


@lru_cache(maxsize=64)
def _numpy_dtype(name: str) -> np.dtype[Any]:
    if _NUMPY_DTYPE.fullmatch(name) is None:
        raise ValueError(f"element type {name!r}")
    return np.dtype(name)


def read(decoder: Decoder, *, rows: bool = False) -> Any:
    """The array or tensor that comes next: a view of the message's memory unless the decoder copies.

    Args:
        rows: it is for Rows, whose tensors may stay bytes.
    """
    library, _, name = decoder.text().partition(":")
    dimensions = decoder.bytes(1)[0]
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(f"{dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", decoder.bytes(8 * dimensions))
    if library == "numpy":
        return _read_numpy(decoder, _numpy_dtype(name), shape)
    if library == "torch" and name in _TORCH_DTYPES:
        return _read_torch(decoder, name, shape, rows)
    raise ValueError(f"element type {library}:{name}")


def _read_numpy(decoder: Decoder, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    size = dtype.itemsize
    for length in shape:
        size *= length
    data = decoder.buffer(size)
    if not size:
        return np.empty(shape, dtype)
    found = np.frombuffer(data, dtype=dtype).reshape(shape)
    return found.copy() if decoder.copy else found


def _read_torch(decoder: Decoder, name: str, shape: tuple[int, ...], rows: bool) -> Any:
    if rows and tensor_bytes.wanted():
        return _read_bytes(decoder, name, shape)
    import torch

    dtype = getattr(torch, name)
    size = int(dtype.itemsize)
    for length in shape:
        size *= length
    data = decoder.buffer(size)
    if not size:
        return torch.empty(shape, dtype=dtype)
    flat = np.frombuffer(data, dtype=np.uint8)
    return torch.from_numpy(flat.copy() if decoder.copy else flat).view(dtype).view(shape)


def _read_bytes(decoder: Decoder, name: str, shape: tuple[int, ...]) -> TensorBytes:
    size = tensor_bytes.DTYPES[name].itemsize
    for length in shape:
        size *= length
    data = decoder.buffer(size)
    return TensorBytes.of(name, shape, bytes(data) if decoder.copy else data)

"""The encoding of what travels to and from named deployments: everything round trips, and no bytes do harm."""

from __future__ import annotations

import datetime
import math
import random
import struct
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import kit
from kit import errors
from kit.daemon.blocks import aligned
from kit.daemon.decoder import Decoder
from kit.daemon.encoder import Encoder
from kit.daemon.link import lay_out
from kit.daemon.wire import Malformed
from kit.engine.codec import Rows


def pack(encoder: Encoder) -> tuple[bytes, bytearray]:
    """Head and body, as a link lays them out."""
    body = bytearray(aligned(len(encoder.head)) + sum(aligned(size) for size, _ in encoder.buffers))
    lay_out(memoryview(body), encoder.head, encoder.buffers)
    return bytes(encoder.head), body


def there_and_back(value: Any, *, copy: bool = True, **options: bool) -> Any:
    head, body = pack(Encoder(**options).add(value))
    return Decoder(head, memoryview(body), copy=copy, **options).value()


_dtypes = st.one_of(
    st_numpy.boolean_dtypes(),
    st_numpy.integer_dtypes(),
    st_numpy.floating_dtypes(),
    st_numpy.complex_number_dtypes(),
    st_numpy.datetime64_dtypes(),
    st_numpy.timedelta64_dtypes(),
    st_numpy.unicode_string_dtypes(min_len=1),
)
_arrays = st_numpy.arrays(_dtypes, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4))
_times = st.datetimes() | st.datetimes(timezones=st.just(datetime.UTC) | st.just(ZoneInfo("Europe/Paris")))
_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))  # lone surrogates too
    | st.binary()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | _times
    | _arrays
)
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner).map(lambda pair: kit.PredictionResult(*pair, "id"))
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of equal types all the way down; NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, datetime.datetime):
        return left == right and left.utcoffset() == right.utcoffset() and left.fold == right.fold
    return bool(left == right)


@given(_values)
@settings(max_examples=200, deadline=None)
def test_every_value_comes_back_equal_and_of_its_own_type(value: Any) -> None:
    assert same(there_and_back(value), value)
    assert same(there_and_back(value, copy=False), value)


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.int8(-3), np.bool_(True), np.datetime64("2024-01-02", "ns")])
def test_numpy_scalars_keep_their_type(scalar: Any) -> None:
    found = there_and_back([scalar, 1])[0]
    assert type(found) is type(scalar)
    assert found == scalar


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3), (3, 1, 2)])
def test_tensors_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    import torch

    tensor = torch.arange(math.prod(shape)).reshape(shape).to(getattr(torch, dtype))
    for variant in (tensor, tensor.T if tensor.ndim == 2 else tensor):
        found = there_and_back({"x": variant})["x"]
        assert found.dtype == variant.dtype
        assert found.shape == variant.shape
        assert torch.equal(found, variant)


def test_a_tensor_that_requires_a_gradient_comes_back_so_and_without_its_graph() -> None:
    import torch

    found = there_and_back(torch.nn.Parameter(torch.ones(3)))
    assert type(found) is torch.nn.Parameter
    assert found.requires_grad
    found = there_and_back(torch.ones(3, requires_grad=True) * 2)
    assert type(found) is torch.Tensor
    assert found.requires_grad
    assert found.is_leaf


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(
            {"a": [1, 2], "b": ["x", None], "c": pd.to_datetime(["2024-01-01", "2024-02-01"])}, index=["r", "s"]
        ),
        pd.DataFrame({"a": pd.Categorical(["u", "v", "u"]), "n": [1.5, np.nan, 2.0]}),
        pd.DataFrame({"a": []}),
    ],
)
def test_tables_come_back(frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(there_and_back(frame), frame, check_column_type=False)


def test_many_one_row_tables_travel_as_one() -> None:
    frame = pd.DataFrame({"a": np.arange(50), "b": [f"t{n}" for n in range(50)]}, index=np.arange(50) * 2)
    rows = [frame.iloc[at : at + 1] for at in range(50)]
    found = there_and_back(rows)
    assert len(found) == 50
    for there, row in zip(found, rows, strict=True):
        pd.testing.assert_frame_equal(there, row)
    assert len(pack(Encoder().add(rows))[1]) < 10 * len(pack(Encoder().add(rows[0]))[1])


def test_tables_that_differ_stay_apart() -> None:
    rows = [pd.DataFrame({"a": [1]}), pd.DataFrame({"a": ["x"]})]
    for there, row in zip(there_and_back(rows), rows, strict=True):
        pd.testing.assert_frame_equal(there, row)


def test_equal_arrays_travel_as_one_block() -> None:
    head, body = pack(Encoder().examples([np.full(3, n) for n in range(5)]))
    found = Decoder(head, memoryview(body), copy=False).value()
    assert type(found) is Rows
    assert found.stacked.tolist() == [[n] * 3 for n in range(5)]


def test_failures_keep_their_error() -> None:
    failure = kit.Failure("text", errors.InferenceFailed("it broke", "trace"))
    found = there_and_back([failure])[0]
    assert found.example == "text"
    assert type(found.error) is errors.InferenceFailed
    assert found.error.remote_traceback == "trace"


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, np.array([object()]), np.zeros(2, "i4,f4"), math, (n for n in "a")]
)
def test_another_type_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(errors.UnsupportedType, match=r"can't travel"):
        Encoder().add([1, value])


def test_other_types_travel_where_the_owner_allows_pickles() -> None:
    assert there_and_back({1, 2}, allow_pickle=True) == {1, 2}
    head, body = pack(Encoder(allow_pickle=True).add({1, 2}))
    with pytest.raises(Malformed, match="pickled"):
        Decoder(head, memoryview(body), copy=True).value()


def test_nesting_has_an_end_on_both_sides() -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(errors.UnsupportedType, match="nested"):
        Encoder().add(deep)
    head = b"l\x01\x00\x00\x00" * 5000 + b"N"
    with pytest.raises(Malformed):
        Decoder(head, memoryview(bytearray(head)), copy=True).value()


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_value_or_malformed(data: bytes) -> None:
    try:
        Decoder(data, memoryview(bytearray(data)), copy=True).value()
    except Malformed:
        return


@given(_values, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_damaged_messages_are_a_value_or_malformed(value: Any, draw: random.Random) -> None:
    head, body = pack(Encoder().add(value))
    damaged = bytearray(head)
    for _ in range(draw.randint(1, 3)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    short = bytes(damaged[: draw.randint(1, len(damaged))])
    try:
        Decoder(short, memoryview(body), copy=True).value()
    except Malformed:
        return


@pytest.mark.parametrize(
    "head",
    [
        b"A" + struct.pack("<I", 9) + b"numpy:<f8" + struct.pack("<B2Q", 2, 1 << 40, 1 << 40),
        b"A" + struct.pack("<I", 9) + b"numpy:|O8" + struct.pack("<BQ", 1, 1),
        b"A" + struct.pack("<I", 14) + b"torch:__class_" + struct.pack("<BQ", 1, 1),
        b"B" + struct.pack("<Q", 1 << 50),
        b"l" + struct.pack("<I", 0xFFFFFFFF),
        b"q" + struct.pack("<I", 0x7FFFFFFF),
        b"u" + struct.pack("<I", 2) + struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF),
        b"Wb" + struct.pack("<I", 4) + b"ARRO",
        b"x" + b"N" + b"l" + struct.pack("<I", 0),
    ],
    ids=["huge", "objects", "no-dtype", "large-bytes", "count", "numbers", "texts", "no-table", "no-error"],
)
def test_hostile_sizes_and_types_are_malformed(head: bytes) -> None:
    with pytest.raises(Malformed):
        Decoder(head, memoryview(bytearray(head)), copy=True).value()


def test_an_error_of_an_unknown_class_is_still_one_of_ours() -> None:
    head = bytes(Encoder().add(["os", "message", ""]).head)
    failure = b"x" + b"N" + head
    found = Decoder(failure, memoryview(bytearray(failure)), copy=True).value()
    assert type(found.error) is errors.InferenceFailed

"""What may stand on the left of the bar, and what is refused with advice."""

from __future__ import annotations

import traceback
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import kit
from kit import errors, inputs
from kit.engine.codec import Rows
from kit.errors import UnsupportedInput


def test_a_list_is_taken_as_it_is() -> None:
    examples = [1, "a", None]
    assert inputs.sized(examples) is examples


@pytest.mark.parametrize(
    "examples",
    [(1, 2), range(1, 3), deque([1, 2]), {"a": 1, "b": 2}.values(), {1: "a", 2: "b"}.keys(), pd.Series([1, 2])],
    ids=lambda value: type(value).__name__,
)
def test_sized_collections_become_lists(examples: Any) -> None:
    assert inputs.sized(examples) == [1, 2]


@pytest.mark.parametrize("examples", [iter([1]), (x for x in [1]), map(str, [1]), zip([1], [2], strict=True)])
def test_iterators_come_one_by_one(examples: Any) -> None:
    assert inputs.sized(examples) is None


def test_an_iterable_without_a_length_comes_one_by_one() -> None:
    class Endless:
        def __iter__(self) -> Any:
            while True:
                yield 1

    assert inputs.sized(Endless()) is None


def test_rows_of_an_array_share_its_memory() -> None:
    block = np.arange(6.0).reshape(3, 2)
    rows = inputs.sized(block)
    assert isinstance(rows, Rows)
    assert len(rows) == 3
    assert np.shares_memory(rows[1], block)
    assert list(inputs.sized(np.arange(3))) == [0, 1, 2]


def test_arrays_of_objects_and_masked_arrays_keep_what_they_are() -> None:
    assert inputs.sized(np.array(["a", None], dtype=object)) == ["a", None]
    masked = inputs.sized(np.ma.masked_array([[1, 2], [3, 4]], mask=[[0, 1], [0, 0]]))
    assert masked[0].mask.tolist() == [False, True]


def test_rows_of_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    rows = inputs.sized(torch.ones(3, 2, requires_grad=True))
    assert len(rows) == 3
    assert not rows[0].requires_grad
    sparse = inputs.sized(torch.eye(3).to_sparse())
    assert [row.to_dense().tolist() for row in sparse] == torch.eye(3).tolist()


def test_a_data_frame_gives_frames_of_one_row() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[7, 9])
    rows = inputs.sized(frame)
    assert [row.shape for row in rows] == [(1, 2), (1, 2)]
    assert rows[1].index.tolist() == [9]
    assert rows[1]["b"].item() == "y"


@pytest.mark.parametrize(
    ("examples", "advice"),
    [
        ("a text", r"write \['a text'\]"),
        (b"bytes", "put it into a list"),
        (bytearray(b"x"), "put it into a list"),
        ({"a": 1}, "list of dicts"),
        (OrderedDict(a=1), "list of dicts"),
        ({1, 2}, "sorted"),
        (frozenset([1]), "sorted"),
        (3, "put it into a list"),
        (None, "put it into a list"),
        (np.array(3.0), "single number"),
        (np.float32(3.0), "single number"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_collection_of_examples_is_refused_with_advice(examples: Any, advice: str) -> None:
    with pytest.raises(UnsupportedInput, match=advice):
        inputs.sized(examples)


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(UnsupportedInput) as caught:
        inputs.sized("word " * 10_000)
    assert len(str(caught.value)) < 300


def test_tables_of_other_libraries_are_refused_with_advice() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(UnsupportedInput, match="to_pandas"):
        inputs.sized(pyarrow.table({"a": [1, 2]}))


class Lengths(kit.ModelHandler):
    """Counts what an example holds."""

    def load_model(self) -> Any:
        return len

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [model(example) for example in batch]


def ways(deployment: kit.Deployment, example: Any) -> list[Any]:
    """Three ways to ask for one example."""
    return [
        lambda: deployment.predict([example]),
        lambda: [example] | kit.RunInference(deployment),
        lambda: list(iter([example]) | kit.RunInference(deployment)),
    ]


def refused(ask: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as told:
        ask()
    assert len(traceback.format_exception(told.value)) < 30


def test_examples_that_hold_themselves_or_are_nested_deep(runtime: Path) -> None:
    itself: list[Any] = [1]
    itself += [itself, itself]
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    with (
        kit.deploy(Lengths(), processes=1) as own,
        kit.deploy(Lengths(), processes=1, name="lengths") as named,
    ):
        for ask in (*ways(own, itself), *ways(own, {"a": itself, "b": 1, "c": 2})):
            assert ask()[0].inference == 3  # they can be pickled
        for ask in ways(own, deep):
            refused(ask, errors.InferenceFailed, "can't be sent to a worker process")
        for example in (itself, {"a": itself}, deep):
            for ask in ways(named, example):
                refused(ask, errors.UnsupportedType, "nested more than 64 deep, or holds itself")
        for deployment in (own, named):
            assert deployment.predict([[2]])[0].inference == 1

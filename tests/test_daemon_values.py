"""What travels to and from a named deployment, unaltered or not at all, and what comes of examples that fail."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import kit
from kit import errors


class Echo(kit.ModelHandler):
    """Gives the examples back; raises over "boom", and makes a set of "set"."""

    def load_model(self) -> None:
        return None

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        if any(type(example) is str and example == "boom" for example in batch):
            raise ValueError("boom!")
        return [{1} if type(example) is str and example == "set" else example for example in batch]


@pytest.fixture
def echo(runtime: Path) -> Iterator[Any]:
    with kit.deploy(Echo(), name="echo", processes=1) as deployment:
        yield deployment


@pytest.mark.parametrize("examples", [["boom"], ["boom"] * 5, ["boom", 1], ["boom"] * 8200 + ["ok"]])
def test_examples_that_fail_are_failures_even_where_none_succeeds(echo: Any, examples: list[Any]) -> None:
    found = echo.submit(examples, isolate=True).result(60)
    assert len(found) == len(examples)
    for example, result in zip(examples, found, strict=True):
        if example == "boom":
            assert type(result).__name__ == "Failure"
            assert isinstance(result.error, errors.InferenceFailed)
            assert "ValueError: boom!" in str(result.error)
        else:
            assert result.inference == example
    found = ["boom"] | kit.RunInference(echo).with_exception_handling()
    assert "boom!" in str(found[0].error)


def test_a_pipelines_dead_letters_have_the_handlers_error(echo: Any) -> None:
    beam = pytest.importorskip("apache_beam")
    from apache_beam.testing.util import assert_that

    def are_the_handlers(dead: list[Any]) -> None:
        assert len(dead) == 2, dead
        assert all("boom!" in str(letter) for letter in dead), dead

    with beam.Pipeline() as running:
        _, failed = running | beam.Create(["boom", "boom"]) | echo.to_beam().with_exception_handling()
        assert_that(failed.failed_inferences, are_the_handlers)


def objects(*values: Any) -> pd.DataFrame:
    return pd.DataFrame({"n": range(len(values)), "o": pd.Series(list(values), dtype=object)})


def labelled(columns: Any = ("a", "b"), index: Any = (0, 1)) -> pd.DataFrame:
    return pd.DataFrame([[1, 2.5], [3, 4.5]], columns=columns, index=index)


def noted(**attrs: Any) -> pd.DataFrame:
    frame = labelled()
    frame.attrs = attrs
    return frame


FRAMES = {
    "dicts": objects({"x": 1}, {"y": 2, "z": (1, None)}),
    "tuples": objects((1, 2), (3,)),
    "lists": objects([1, None], []),
    "arrays": objects(np.arange(2, dtype="int8"), np.arange(2, dtype="int8")),
    "numbers and None": objects(1, None, 2.5, True, 2**70),
    "text and bytes": objects("a", b"b", None),
    "text": objects("a", None, "\u00fc"),
    "nan is not None": objects("a", float("nan"), None),
    "half of a pair": objects("\udcff"),
    "datetimes": objects(datetime.datetime(2020, 1, 1), datetime.time(1, tzinfo=datetime.UTC)),
    "decimals": objects(decimal.Decimal("1.5"), decimal.Decimal("1.50")),
    "numpy's numbers": objects(np.int8(1), np.float64(2)),
    "none": objects(None, None),
    "categories": pd.DataFrame({"c": pd.Categorical(["b", "a"], categories=["b", "a", "z"], ordered=True)}),
    "text categories": pd.DataFrame({"c": pd.Categorical(["u", None])}),
    "nullable": pd.DataFrame({"c": pd.array([1, None], dtype="Int64")}),
    "equal names": labelled(columns=["a", "a"]),
    "mixed names": labelled(columns=["a", 0]),
    "no name": labelled(columns=[None, "b"]),
    "truth names": labelled(columns=[True, False]),
    "several levels of names": labelled(columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", 0])),
    "objects as labels": labelled(index=pd.Index([1, "a"], dtype=object, name=0)),
    "levels of objects as labels": labelled(index=pd.MultiIndex.from_arrays([pd.Index([1, "a"]), [1, 2]])),
    "nullable labels": labelled(index=pd.Index([1, 2], dtype="Int64", name="i")),
    "attributes": noted(unit=(1, {"a": None})),
}


REFUSED = [
    (objects({1}, None), "column 'o' of a DataFrame: a builtins.set can't travel"),
    (objects([{"a": {1}}]), "column 'o' of a DataFrame: a builtins.set can't travel"),
    (objects(pd.NaT), "column 'o' of a DataFrame: a pandas.*NaTType can't travel"),
    (objects(uuid.UUID(int=1)), "column 'o' of a DataFrame: a uuid.UUID can't travel"),
    (pd.DataFrame({"c": [1j]}), "column 'c' of dtype complex128 can't travel"),
    (pd.DataFrame({"c": pd.arrays.SparseArray([0, 1])}), "column 'c' of dtype Sparse.* can't travel"),
    (pd.DataFrame({"c": pd.Categorical([(1, 2), (3,)])}), "column 'c' of dtype category can't travel"),
    (pd.DataFrame({"c": pd.cut([1, 2], [0, 1, 3])}), "column 'c' of dtype category can't travel"),
]


def test_tables_come_back_unaltered(echo: Any) -> None:
    for name, frame in FRAMES.items():
        for found in (echo.predict([frame])[0].inference, echo.predict([frame, frame])[1].inference):
            pd.testing.assert_frame_equal(found, frame, obj=name)
            assert found.attrs == frame.attrs, name
            for at in range(frame.shape[1]):
                cells, expected = list(found.iloc[:, at]), list(frame.iloc[:, at])
                assert repr(cells) == repr(expected), name
                assert list(map(type, cells)) == list(map(type, expected)), name


def test_what_would_be_altered_in_a_table_is_refused_in_words(echo: Any) -> None:
    for frame, words in REFUSED:
        for examples in ([frame], [frame, frame]):
            with pytest.raises(errors.UnsupportedType, match=words) as caught:
                echo.predict(examples)
            assert "allow_pickle=True" in str(caught.value)
            assert "\n" not in str(caught.value)
    assert echo.predict(["there"])[0].inference == "there"


def test_tables_of_any_objects_travel_where_the_owner_allows_pickles(runtime: Path) -> None:
    with kit.deploy(Echo(), name="any", processes=1, allow_pickle=True) as deployment:
        for frame in (objects({1}, pd.NaT), pd.DataFrame({"c": [1j]})):
            for found in deployment.predict([frame, frame]):
                pd.testing.assert_frame_equal(found.inference, frame)


def test_it_is_told_whether_the_example_or_the_result_is_of_such_a_type(echo: Any) -> None:
    with pytest.raises(errors.UnsupportedType, match=r"^in an example: a builtins\.set can't travel") as caught:
        echo.predict([1, {1}])
    assert not isinstance(caught.value, errors.UnsupportedResult)
    for _ in range(20):  # so many that a worker is asked directly in the end
        with pytest.raises(errors.UnsupportedResult, match=r"^in a result of the handler: a builtins\.set can't"):
            echo.predict(["set"])


def test_tensors_come_back_as_what_they_are_or_are_refused_in_words(echo: Any) -> None:
    import torch

    plain, learnt = torch.ones(2), torch.ones(2, requires_grad=True)
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)]
    for sent in ([plain, learnt], [learnt, learnt], parameters, [learnt * 2, plain]):
        found = [prediction.inference for prediction in echo.predict(sent)]
        assert [type(tensor) for tensor in found] == [type(tensor) for tensor in sent]
        assert [tensor.requires_grad for tensor in found] == [tensor.requires_grad for tensor in sent]
        assert [tensor.tolist() for tensor in found] == [tensor.tolist() for tensor in sent]
    with pytest.raises(errors.UnsupportedType, match=r"layout torch\.sparse_coo can't travel .*to_dense"):
        echo.predict([torch.eye(2).to_sparse()])
    with pytest.raises(errors.UnsupportedType, match=r"a tensor of class .*Other can't travel"):
        echo.predict([torch.ones(2).as_subclass(type("Other", (torch.Tensor,), {}))])


def test_rows_of_a_table_with_objects_are_examples(echo: Any) -> None:
    frame = FRAMES["dicts"]
    rows = [prediction.inference for prediction in frame | kit.RunInference(echo)]
    assert [len(row) for row in rows] == [1, 1]
    pd.testing.assert_frame_equal(pd.concat(rows), frame)

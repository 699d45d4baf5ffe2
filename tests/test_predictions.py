"""Predictions: a sequence, a table, HTML; failures in their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import kit
from kit import Failure, PredictionResult, Predictions
from kit.errors import InferenceFailed


@pytest.fixture
def predictions() -> Predictions:
    return Predictions([PredictionResult(f"text {n}", n / 2, "model") for n in range(25)])


@pytest.fixture
def mixed() -> Predictions:
    failure = Failure("bad", InferenceFailed("it is bad", "Traceback ..."))
    return Predictions([PredictionResult("good", 1.0, None), failure])


def test_it_is_a_sequence(predictions: Predictions) -> None:
    assert isinstance(predictions, Sequence)
    assert len(predictions) == 25
    assert predictions[-1].inference == 12.0
    assert [p.example for p in predictions] == [p.example for p in predictions], "may be read twice"
    assert isinstance(predictions[3:5], Predictions)
    assert predictions[3:5] == [predictions[3], predictions[4]]
    assert predictions == list(predictions)
    with pytest.raises(IndexError):
        predictions[25]


def test_to_frame(predictions: Predictions) -> None:
    frame = predictions.to_frame()
    assert list(frame.columns) == ["example", "inference", "model_id"]
    assert len(frame) == 25
    assert frame["inference"].tolist() == [n / 2 for n in range(25)]


def test_to_frame_keeps_arrays_whole() -> None:
    frame = Predictions([PredictionResult(1, np.arange(3)), PredictionResult(2, np.arange(4))]).to_frame()
    assert [value.shape for value in frame["inference"]] == [(3,), (4,)]


def test_to_frame_with_failures(mixed: Predictions) -> None:
    frame = mixed.to_frame()
    assert list(frame.columns) == ["example", "inference", "model_id", "error"]
    assert frame["error"].tolist() == [None, "it is bad"]
    assert frame["example"].tolist() == ["good", "bad"]


def test_to_frame_of_post_processed_values_and_of_nothing() -> None:
    assert Predictions(["x", "y"]).to_frame()["result"].tolist() == ["x", "y"]
    assert list(Predictions([]).to_frame().columns) == ["example", "inference", "model_id"]


def test_failures_and_successes(mixed: Predictions) -> None:
    assert [failure.example for failure in mixed.failures] == ["bad"]
    assert isinstance(mixed.failures[0].error, kit.KitError)
    assert [p.example for p in mixed.succeeded] == ["good"]


def test_html_shows_the_first_rows_escaped(predictions: Predictions) -> None:
    shown = predictions._repr_html_()
    assert shown.count("<tr>") == 11
    assert "25 predictions, the first 10 shown" in shown
    nasty = Predictions([PredictionResult("<script>alert(1)</script>", "x" * 10_000)])._repr_html_()
    assert "<script>" not in nasty
    assert len(nasty) < 1500


def test_text_shows_a_few(predictions: Predictions) -> None:
    text = repr(predictions)
    assert text.startswith("25 predictions")
    assert "text 0" in text
    assert "text 20" not in text

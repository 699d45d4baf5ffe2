from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kit.bare_loop import BareLoop
from kit.compare import _name, compare
from kit.compare_run import deployed
from kit.errors import (
    HandlerNotPicklable,
    InvalidSetting,
    ModelLoadFailed,
    UnsupportedInput,
)
from kit.handler import ModelHandler
from tests.models import Doubling

GB, MB = 1_000_000_000, 1_000_000


# ---- settings -------------------------------------------------------------------------------------


def test_labels_say_what_sets_the_modes_apart() -> None:
    wanted: list[dict[str, Any]] = [
        {"mode": "large", "processes": 1},
        {"mode": "large", "processes": 4},
        {"mode": "default", "threads": 2},
        {"mode": "medium", "model_copies": 3},
    ]
    contenders = [deployed(Doubling(), [1], settings) for settings in wanted]
    _name(contenders)
    assert [c.result.label for c in contenders] == ["large, 1 process", "large, 4 processes", "default", "medium"]
    assert [c.result.copies for c in contenders] == [1, 1, 2, 3]
    assert contenders[3].result.settings == {"mode": "medium", "processes": 2, "threads": 1, "model_copies": 3}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"examples": []}, "no examples"),
        ({"modes": ["huge"]}, "mode='huge'"),
        ({"modes": [{"mode": "large", "color": 1}]}, "color can't be compared"),
        ({"modes": []}, "at least one of default"),
        ({"processes": 0}, "processes=0"),
        ({"repeats": 0}, "repeats=0"),
        ({"repeats": None}, "repeats=None"),
        ({"repeats": 2.0}, r"repeats=2\.0"),
        ({"seconds": "1"}, "seconds='1'"),
        ({"modes": "large"}, r"modes='large': give a list of modes"),
        ({"modes": [3]}, "modes has 3"),
        ({"handler": 3}, "3 isn't a model handler"),
        ({"memory_budget": "much"}, "memory_budget='much'"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidSetting, match=text):
        compare(**{"handler": Doubling(), "examples": [1], **arguments})


def test_a_handler_that_cannot_travel() -> None:
    handler = Doubling()
    handler.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(HandlerNotPicklable, match=r"Doubling\.lock"):
        compare(handler, [1])


# ---- the whole, with real deployments ---------------------------------------------------------------


def summing() -> ModelHandler:
    """A model of 60 MB, all of which is read for each example. Lambdas travel by value: no test module in workers."""
    return ModelHandler.from_callable(
        lambda: np.arange(15_000_000, dtype=np.float32),
        lambda batch, model: [float(model.sum()) + example for example in batch],
        max_batch_size=4,
    )


def test_compare_runs_every_mode_and_the_bare_loop() -> None:
    before = {thread.name for thread in threading.enumerate()}
    comparison = compare(summing(), list(range(40)), seconds=0.1, repeats=2, progress=False)
    table = comparison.table
    assert table["mode"].tolist() == ["bare loop", "default", "medium", "large", "shared"]
    assert table["note"].tolist() == [""] * 5
    assert table["model_copies"].tolist() == [1, 2, 2, 1, 1]
    assert (table["throughput_elements_per_s"] > 0).all()
    assert table["ratio_to_bare_loop"][0] == 1.0
    assert (table["p50_s"] <= table["p99_s"]).all()
    weights = 60 * MB
    held = dict(zip(table["mode"], table["weights_bytes"].tolist(), strict=True))
    peak = dict(zip(table["mode"], table["peak_pss_bytes"].tolist(), strict=True))
    for mode, copies in (("bare loop", 1), ("default", 2), ("medium", 2), ("large", 1), ("shared", 1)):
        assert held[mode] == pytest.approx(copies * weights, rel=0.05), mode
        assert peak[mode] > copies * weights, mode
    # Two copies take one copy's bytes more than one.
    assert peak["default"] - peak["shared"] == pytest.approx(weights, rel=0.35)
    assert peak["medium"] - peak["large"] == pytest.approx(weights, rel=0.35)
    assert comparison.best().mode in ("default", "medium", "large", "shared")
    deadline = time.monotonic() + 10
    while {thread.name for thread in threading.enumerate()} - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert {thread.name for thread in threading.enumerate()} <= before


def test_compare_notes_what_a_budget_or_the_model_forbids() -> None:
    handler = ModelHandler.from_callable(
        lambda: (np.ones(20 * MB, np.uint8), threading.Lock()), lambda batch, model: [x + 1 for x in batch]
    )
    comparison = compare(
        handler, [1, 2, 3], modes=["default", "large", "shared"], memory_budget="30MB", repeats=1, seconds=0.05
    )
    table = comparison.table
    notes = dict(zip(table["mode"], table["note"], strict=True))
    assert "30 MB" in notes["default"]
    assert "large" in notes["shared"]
    assert notes["large"] == ""
    assert table["throughput_elements_per_s"].isna().tolist() == [False, True, False, True]


def test_compare_raises_when_the_handler_fails_everywhere() -> None:
    with pytest.raises(ModelLoadFailed, match="no such weights") as caught:
        compare(ModelHandler.from_callable(_no_weights, lambda batch, model: batch), [1], modes=["large"], repeats=1)
    assert "_no_weights" in caught.value.remote_traceback


def _no_weights() -> None:
    raise FileNotFoundError("no such weights")


@pytest.mark.parametrize("examples", ["text", iter([1]), {"a": 1}])
def test_compare_refuses_what_has_no_examples_to_run_again(examples: Any) -> None:
    with pytest.raises(UnsupportedInput):
        compare(Doubling(), examples)


def test_rows_of_arrays_and_tables_are_examples() -> None:
    from kit.compare import _rows

    rows = _rows(pd.DataFrame({"a": [1, 2]}))
    assert [row["a"].tolist() for row in rows] == [[1], [2]]
    assert [row.tolist() for row in _rows(np.eye(2))] == [[1.0, 0.0], [0.0, 1.0]]
    loop = BareLoop(Doubling(), _rows(np.eye(2)))
    loop.start()
    assert loop.throughput(0.01) > 0
    loop.close()

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kit.bare_loop import BareLoop
from kit.compare import Comparison, _name, compare
from kit.compare_plot import Point, draw
from kit.compare_run import CHEAP_START_S, Contender, Result, _PeakPss, deployed, measure
from kit.errors import (
    BudgetExceeded,
    HandlerNotPicklable,
    InferenceFailed,
    InvalidSetting,
    ModelLoadFailed,
    SharedModeUnavailable,
    UnsupportedInput,
    WorkerDied,
)
from kit.handler import ModelHandler, PredictionResult
from kit.memory import process_memory
from kit.metrics import LatencyHistogram

GB, MB = 1_000_000_000, 1_000_000


# ---- measuring, with contenders that the test controls --------------------------------------------


class Fake:
    """Something served, that notes what is asked of it."""

    weights_bytes = 7 * MB

    def __init__(self, name: str, diary: list[str], throughput: float = 100.0) -> None:
        self.name, self.diary, self.figure = name, diary, throughput
        diary.append(f"{name} start")

    def pids(self) -> list[int]:
        return [os.getpid()]

    def warm_up(self, seconds: float) -> None:
        self.diary.append(f"{self.name} warm-up")

    def throughput(self, seconds: float) -> float:
        self.diary.append(f"{self.name} measure")
        return self.figure

    def latency(self, seconds: float) -> LatencyHistogram:
        histogram = LatencyHistogram()
        histogram.record(0.01, 100)
        return histogram

    def close(self) -> None:
        self.diary.append(f"{self.name} close")


def fake(name: str, diary: list[str], start: Any = None) -> Contender:
    return Contender(start or (lambda: Fake(name, diary)), Result(name, name, {}, 2, 1))


def test_cheap_modes_are_measured_in_rounds_each_time_in_fresh_processes() -> None:
    diary: list[str] = []
    contenders = [fake("a", diary), fake("b", diary)]
    steps: list[str] = []
    measure(contenders, 3, 0.1, steps.append)
    once = [["start", "warm-up", "measure", "close"]] * 3
    for name in "ab":
        assert [line.split()[1] for line in diary if line[0] == name] == [word for words in once for word in words]
    assert [line[0] for line in diary if line.endswith("measure")] == ["a", "b", "b", "a", "a", "b"]
    assert steps == ["a", "b", "b", "a", "a", "b"]
    result = contenders[0].result
    assert result.throughputs == [100.0] * 3
    assert (result.throughput, result.spread) == (100.0, 0.0)
    assert result.latency.count == 300
    assert result.weights_bytes == 7 * MB
    mine = process_memory(os.getpid())
    assert mine is not None
    assert result.peak_pss_bytes == pytest.approx(mine.pss_bytes, rel=0.2)


def test_modes_that_start_slowly_are_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    diary: list[str] = []
    clock = {"late": 0.0}
    real = time.perf_counter

    def slow() -> Fake:
        clock["late"] += CHEAP_START_S + 1
        return Fake("slow", diary)

    monkeypatch.setattr("kit.compare_run.time.perf_counter", lambda: real() + clock["late"])
    contenders = [fake("slow", diary, slow), fake("quick", diary)]
    measure(contenders, 2, 0.1)
    assert [line for line in diary if line.startswith("slow")] == [
        *("slow start", "slow warm-up", "slow measure", "slow warm-up", "slow measure", "slow close")
    ]
    assert diary.count("quick start") == 2
    assert contenders[0].result.starts_s[0] > CHEAP_START_S


def test_a_mode_that_cannot_run_has_a_note_and_the_others_go_on() -> None:
    diary: list[str] = []

    def refuse() -> Fake:
        raise BudgetExceeded("2 × 400 MB don't fit 512 MB.")

    contenders = [fake("a", diary), fake("b", diary, refuse)]
    steps: list[str] = []
    measure(contenders, 3, 0.1, steps.append)
    refused = contenders[1].result
    assert not refused.measured
    assert refused.note == "2 × 400 MB don't fit 512 MB."
    assert np.isnan(refused.throughput)
    assert len(contenders[0].result.throughputs) == 3
    assert len(steps) == 6


def test_everything_is_closed_when_a_measurement_is_interrupted() -> None:
    diary: list[str] = []

    class Interrupted(Fake):
        def throughput(self, seconds: float) -> float:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure([fake("a", diary, lambda: Interrupted("a", diary))], 1, 0.1)
    assert diary[-1] == "a close"


def test_peak_pss_keeps_the_highest_sum() -> None:
    with _PeakPss(lambda: [os.getpid()]) as peak:
        before = peak.bytes
        while before == 0:  # the first reading
            before = peak.bytes
        block = b"x" * (100 * MB)
        first = peak.bytes
        limit = time.monotonic() + 10
        while peak.bytes <= first and time.monotonic() < limit:
            time.sleep(0.01)
        del block
    assert peak.bytes - before > 95 * MB


# ---- the bare loop --------------------------------------------------------------------------------


class Doubling(ModelHandler):
    """Doubles numbers; its model notes the sizes of the batches that it saw."""

    def load_model(self) -> list[int]:
        return []

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> list[Any]:
        model.append(len(batch))
        return [example * 2 for example in batch]


def test_the_bare_loop_measures_in_a_process_of_its_own() -> None:
    handler = ModelHandler.from_callable(
        lambda: np.ones(20 * MB, np.uint8), lambda batch, model: [example * 2 for example in batch], max_batch_size=16
    )
    loop = BareLoop(handler, list(range(1000)))
    try:
        assert loop.pids() == [loop.pid]
        assert loop.pid != os.getpid()
        assert loop.weights_bytes == pytest.approx(20 * MB, rel=0.01)
        memory = process_memory(loop.pid)
        assert memory is not None
        assert memory.uss_bytes > 20 * MB
        loop.warm_up(0.05)
        assert loop.throughput(0.1) > 1000
        latency = loop.latency(0.1)
        assert latency.count > 10
        assert latency.quantile(0.5) < 0.05
    finally:
        loop.close()
        loop.close()
    assert process_memory(loop.pid) is None


def test_the_bare_loop_does_the_whole_job() -> None:
    from kit.bare_loop import _Loop

    handler = (
        Doubling(max_batch_size=4, batch_length_fn=lambda example: example)
        .with_preprocess_fn(lambda example: example + 1)
        .with_postprocess_fn(lambda result: (result.example, result.inference))
    )
    loop = _Loop(handler, [5, 1, 4, 2, 3])
    assert loop.run(loop.examples) == [(6, 12), (2, 4), (5, 10), (3, 6), (4, 8)]
    assert loop.model == [4, 1]
    plain = _Loop(Doubling(), [1, 2])
    assert plain.run([1, 2]) == [PredictionResult(1, 2), PredictionResult(2, 4)]
    whole = _Loop(Doubling().with_no_batching(), [[1, 2], [3]])
    assert whole.run(whole.examples) == [[2, 4], [6]]


def test_the_bare_loop_finds_a_batch_size_when_none_is_set() -> None:
    from kit.bare_loop import _Loop

    loop = _Loop(Doubling(), list(range(5000)))
    loop.warm_up(0.2)
    assert loop.sizer.size > 64


@pytest.mark.parametrize(
    ("load", "run", "error", "text"),
    [
        (lambda: 1 / 0, lambda batch, model: batch, ModelLoadFailed, "ZeroDivisionError"),
        (lambda: print("last words", flush=True) or os._exit(3), lambda b, m: b, WorkerDied, "code 3(.|\n)*last words"),
        (lambda: None, lambda batch, model: batch[1:], InferenceFailed, "shorter"),
    ],
)
def test_failures_of_the_bare_loop(load: Any, run: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        BareLoop(ModelHandler.from_callable(load, run), [1, 2]).throughput(0.01)
    assert "serving process" in str(caught.value)


# ---- settings -------------------------------------------------------------------------------------


def test_labels_say_what_sets_the_modes_apart() -> None:
    wanted: list[dict[str, Any]] = [
        {"mode": "large", "processes": 1},
        {"mode": "large", "processes": 4},
        {"mode": "default", "threads": 2},
        {"mode": "medium", "model_copies": 3},
    ]
    contenders = [deployed(Doubling(), [1], settings, "") for settings in wanted]
    _name(contenders)
    assert [c.result.label for c in contenders] == ["large, 1 process", "large, 4 processes", "default", "medium"]
    assert [c.result.copies for c in contenders] == [1, 1, 2, 3]
    assert contenders[3].result.settings == {"mode": "medium", "processes": 2, "threads": 1, "model_copies": 3}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"examples": []}, "no examples"),
        ({"modes": ["huge"]}, "mode='huge'"),
        ({"modes": []}, "at least one of default"),
        ({"processes": 0}, "processes=0"),
        ({"repeats": 0}, "repeats=0"),
        ({"memory_budget": "much"}, "memory_budget='much'"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidSetting, match=text):
        compare(Doubling(), **{"examples": [1], **arguments})


def test_a_handler_that_cannot_travel() -> None:
    handler = Doubling()
    handler.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(HandlerNotPicklable, match=r"Doubling\.lock"):
        compare(handler, [1])


# ---- results --------------------------------------------------------------------------------------


def result(mode: str, throughput: float, pss: int, spread: float = 0.02, **more: Any) -> Result:
    made = Result(mode, mode, {"mode": mode, "processes": 2, "threads": 1}, 2, 1, **more)
    made.throughputs = [throughput, throughput * (1 - spread / 2), throughput * (1 + spread / 2)]
    made.peak_pss_bytes, made.weights_bytes, made.starts_s = pss, 403 * MB, [1.0, 3.0, 2.0]
    made.latency.record(0.020, 98)
    made.latency.record(0.200, 2)
    return made


def refused(mode: str, note: str) -> Result:
    return Result(mode, mode, {"mode": mode}, 2, 2, note=note, error=SharedModeUnavailable(note))


def some() -> list[Result]:
    return [
        result("bare loop", 100, 452 * MB),
        result("default", 198, 1690 * MB),
        result("medium", 183, 1130 * MB),
        result("large", 131, 675 * MB),
        result("shared", 190, 712 * MB),
    ]


def test_the_table() -> None:
    table = Comparison([*some()[:2], refused("shared", "can't be pickled")]).table
    assert list(table["mode"]) == ["bare loop", "default", "shared"]
    default = table.set_index("mode").loc["default"]
    assert default["throughput_elements_per_s"] == 198
    assert default["spread"] == pytest.approx(0.02)
    assert default["ratio_to_bare_loop"] == pytest.approx(1.98)
    assert default["p50_s"] == pytest.approx(0.02, rel=0.05)
    assert default["p99_s"] == pytest.approx(0.2, rel=0.05)
    assert (default["peak_pss_bytes"], default["weights_bytes"], default["start_s"]) == (1690 * MB, 403 * MB, 2.0)
    shared = table.set_index("mode").loc["shared"]
    assert shared["note"] == "can't be pickled"
    assert shared[["throughput_elements_per_s", "p50_s", "peak_pss_bytes", "start_s"]].isna().all()


def test_best_takes_the_fastest_that_fits_and_says_why_the_runner_up_lost() -> None:
    choice = Comparison(some()).best("1GiB")
    assert (choice.mode, choice.settings) == ("shared", {"mode": "shared", "processes": 2, "threads": 1})
    assert str(choice) == (
        "shared: 190 elements/s in 712 MB, within the budget of 1 GiB (1.07 GB). "
        "Runner-up: default, 198 elements/s (4% more), but its 1.69 GB are 616 MB over the budget."
    )


def test_best_without_a_budget_takes_the_fastest_beyond_the_noise() -> None:
    assert Comparison(some()).best().reason == (
        "default: 198 elements/s in 1.69 GB. "
        "Runner-up: shared, 190 elements/s (4% fewer); it lost by its speed, in 712 MB (978 MB less)."
    )


def test_best_takes_the_smaller_of_two_that_differ_by_noise_only() -> None:
    noisy = [result("default", 198, 1690 * MB, spread=0.12), result("shared", 190, 712 * MB)]
    choice = Comparison(noisy).best()
    assert choice.mode == "shared"
    words = "default, 198 elements/s (4% more), no difference beyond the noise (6%), but in 1.69 GB, 978 MB more."
    assert words in choice.reason


def test_best_when_nothing_fits_names_the_smallest() -> None:
    choice = Comparison(some(), memory_budget=600 * MB).best()
    assert (choice.mode, choice.settings) == (None, {})
    assert str(choice).startswith(
        "No measured mode fits the budget of 600 MB. The smallest is large with 675 MB, 75 MB over it (131 elements/s)."
    )


def test_best_never_names_the_bare_loop_and_copes_with_one_or_no_mode() -> None:
    assert Comparison([result("bare loop", 999, MB), result("large", 5, GB)]).best().reason == (
        "large: 5 elements/s in 1 GB. No other mode was measured."
    )
    nothing = Comparison([result("bare loop", 999, MB), refused("large", "too big")]).best()
    assert nothing.reason == "No mode could be measured. large: too big"


# ---- the picture ----------------------------------------------------------------------------------

CLOSE = [
    Point("default", "default", 510 * MB, 190, 185, 195),
    Point("medium", "medium", 505 * MB, 186, 180, 190),
    Point("large", "large", 500 * MB, 188, 185, 190),
    Point("shared", "shared", 515 * MB, 192, 190, 195),
    Point("bare loop", "bare loop", 300 * MB, 98, 97, 99),
]
APART = [Point(r.label, r.mode, r.peak_pss_bytes, r.throughput, r.throughput, r.throughput) for r in some()]
MANY = [
    *APART,
    Point("large, 4 processes", "large", 1300 * MB, 140, 138, 142),
    Point("shared, 4 processes", "shared", 1350 * MB, 207, 200, 210),
    Point("default, 2 threads", "default", 1720 * MB, 205, 200, 210),
]


@pytest.mark.parametrize("points", [CLOSE, APART, MANY], ids=["close", "apart", "many"])
@pytest.mark.parametrize("budget", [None, 512 * 1024**2, 1024**3, 8 * 1024**3])
def test_labels_overlap_neither_each_other_nor_the_edge(points: list[Point], budget: int | None) -> None:
    figure = draw(points, budget, "title")
    assert tuple(figure.get_size_inches() * figure.dpi) == (800, 500)
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    for point in points:
        assert any(text.startswith(f"{point.label}\n") and "PSS" in text for text in boxes), point.label
    names = list(boxes)
    for at, name in enumerate(names):
        box = boxes[name]
        assert box.x0 >= 0
        assert box.x1 <= 800
        assert box.y0 >= 0
        assert box.y1 <= 500
        for other in names[at + 1 :]:
            assert not box.overlaps(boxes[other]), f"{name!r} lies on {other!r}"
    assert (budget is not None) == any("budget" in name for name in names)


def test_the_plot_is_saved_and_needs_no_pyplot(tmp_path: Path) -> None:
    comparison = Comparison([*some(), refused("medium, 3 copies", "3 × 403 MB don't fit")], "a model", 1024**3)
    path = tmp_path / "picture.png"
    figure = comparison.plot(path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    words = [text.get_text() for text in figure.texts]
    assert "a model" in words
    assert "not run: medium, 3 copies (3 × 403 MB don't fit)" in words
    assert any(text.get_text() == "budget 1 GiB" for text in figure.axes[0].texts)
    assert any(text.get_text() == "budget 800 MB" for text in comparison.plot("800 MB").axes[0].texts)


def test_a_notebook_shows_table_picture_and_text() -> None:
    from PIL import Image

    comparison = Comparison([*some(), refused("huge <b>", "no")], "a model", 1024**3)
    bundle = comparison._repr_mimebundle_()
    json.dumps(bundle)
    with Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))) as image:
        assert image.size == (800, 500)
    page = bundle["text/html"]
    assert bundle["image/png"] in page
    assert "<td" in page
    assert "1.69 GB" in page
    assert "huge &lt;b&gt;" in page
    assert "Runner-up: default" in page
    text = bundle["text/plain"]
    assert text == repr(comparison)
    lines = text.splitlines()
    assert lines[0] == "a model"
    assert lines[1].split()[:4] == ["mode", "processes", "copies", "elements/s"]
    assert lines[3].split()[:6] == ["default", "2", "1", "198", "2%", "1.98"]
    assert lines[-1].startswith("Best: shared: 190 elements/s")


def test_a_picture_of_nothing() -> None:
    assert len(draw([], 1024**3, "nothing").axes[0].collections) == 0


# ---- the whole, with real deployments ---------------------------------------------------------------


class Steps(ModelHandler):
    """A model of 60 MB; computing on it takes a while and touches all of it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_batch_size=4, **options)

    def load_model(self) -> Any:
        return np.arange(15_000_000, dtype=np.float32)

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> list[float]:
        return [float(model.sum()) + example for example in batch]


def test_compare_runs_every_mode_and_the_bare_loop() -> None:
    before = {thread.name for thread in threading.enumerate()}
    comparison = compare(Steps(), list(range(40)), seconds=0.1, repeats=2, progress=False)
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
    assert loop.throughput(0.01) > 0
    loop.close()

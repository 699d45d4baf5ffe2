from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from kit.compare_plot import Point, draw
from kit.compare_run import Result
from kit.comparison import Comparison
from kit.errors import (
    SharedModeUnavailable,
)

GB, MB = 1_000_000_000, 1_000_000


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
    words = "default, 198 elements/s (4% more), within the 6% that are taken for equal, but in 1.69 GB, 978 MB more."
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


def test_long_notes_are_read_to_their_end_and_take_nothing_from_the_plot() -> None:
    note = (
        "not run: default (mode 'default' keeps 2 copies of the model, 2 × 25.2 MB = 50.4 MB, and the memory budget is "
    )
    note += "45 MB, which can only fit 1 copy. Use 'large' or 'shared'.)"
    plain, figure = draw(CLOSE, None, "title"), draw(CLOSE, None, "title", [note, "short"])
    words = [text for text in figure.texts if text.get_text() != "title"]
    assert " ".join(text.get_text() for text in reversed(words)) == f"{note} short"
    boxes = [text.get_window_extent() for text in words]
    assert all(box.x0 >= 0 and box.x1 <= 800 and box.y0 >= 0 for box in boxes)
    plots = [one.axes[0].get_window_extent() for one in (plain, figure)]
    assert plots[0].height == pytest.approx(plots[1].height)
    assert max(box.y1 for box in boxes) < plots[1].y0


def test_a_notebook_shows_table_picture_and_text() -> None:
    from PIL import Image

    comparison = Comparison([*some(), refused("huge <b>", "no")], "a model", 1024**3)
    bundle = comparison._repr_mimebundle_()
    json.dumps(bundle)
    with Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))) as image:
        assert image.size == (800, 521)  # with a line for the mode that couldn't run
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

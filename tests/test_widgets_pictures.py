"""The pictures from snapshots: what stands in them, that all of it is escaped, and that it can be read."""

from __future__ import annotations

import io
import time
import xml.etree.ElementTree
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import kit
from kit.history import Event
from kit.load import LoadReport
from kit.settings import Settings
from kit.snapshot import SwitchProgress
from tests.models import Doubling
from widgets import html, kernels, topology
from widgets.legend import legend
from widgets.marks import Mark, marks, marks_of
from widgets.memory_plot import MemoryPlot, memory_facts
from widgets.plots import YOUNG, ThroughputPlot
from widgets.race import Lap, RacePlot
from widgets.twin import bundle, stitched


def row(index, role="worker", mode="default", **more):
    about = {"role": role, "index": index, "pid": 1000 + index, "mode": mode, "pss_bytes": 2e8, "busy_share": 0.5}
    return {**about, "weights_private_bytes": 9e7, "weights_shared_bytes": 0, **more}


def second(at, **more):
    figures = {"elements_per_s": 30.0, "p50_s": 0.02, "p99_s": 0.05, "queued": 1, "pss_bytes": int(6e8)}
    memory = {
        "libraries_bytes": int(4e8), "weights_private_bytes": int(18e7), "weights_shared_bytes": 0,
        "working_bytes": int(2e7),
    }  # fmt: skip
    return {"time": float(at), "mode": "default", **figures, **memory, **more}


@pytest.fixture(scope="module")
def snapshot():
    with kit.deploy(Doubling(), processes=1) as deployment:
        found = deployment.snapshot(10)
    rows = [second(at) for at in range(1000, 1060)]
    return replace(found, processes=[row(0), row(1)], rows=rows, model_bytes=int(9e7), closed=False)


def served(snapshot, mode, processes, rows, **more):
    return replace(snapshot, settings=Settings.make(Doubling(), mode, processes, **more), processes=rows)


def svg(snapshot):
    text = topology.draw(snapshot)
    return text, xml.etree.ElementTree.fromstring(text)


def test_each_mode_has_its_own_picture(snapshot):
    text, _ = svg(served(snapshot, "default", 2, [row(0), row(1)]))
    assert text.count('class="kit-model"') == 2
    hosts = [row(0, mode="large"), row(1, mode="large"), row(0, "host", "large", pid=7)]
    text, _ = svg(served(snapshot, "large", 2, hosts))
    assert text.count('class="kit-model"') == 1
    assert text.count("<line") == 2
    medium = [row(i, mode="medium") for i in range(3)] + [row(i, "host", "medium") for i in range(2)]
    text, _ = svg(served(snapshot, "medium", 3, medium, model_copies=2))
    assert text.count('class="kit-model"') == 2
    assert text.count("<line") == 6
    text, _ = svg(served(snapshot, "shared", 3, [row(i, mode="shared") for i in range(3)]))
    assert 'class="kit-model"' not in text
    assert text.count("stroke-dasharray") == 3
    assert text.count('class="kit-segment"') == 1


def test_many_processes_and_threads_stay_a_picture(snapshot):
    text, root = svg(served(snapshot, "default", 40, [row(i) for i in range(40)], threads=5))
    assert text.count('class="kit-process') == topology.MOST
    assert "28 more processes" in text
    assert all(float(one.get("x")) + float(one.get("width")) <= topology.WIDTH for one in root.iter() if one.get("rx"))


def test_no_figures_yet_and_no_processes(snapshot):
    young = [row(0, pss_bytes=None, busy_share=float("nan"))]
    text, _ = svg(served(snapshot, "default", 1, young))
    assert "starting · new" in text
    svg(served(snapshot, "shared", 1, []))
    empty = replace(snapshot, rows=[], processes=[])
    plot, memory = ThroughputPlot(), MemoryPlot()
    nan = float("nan")
    silent = replace(snapshot, rows=[second(at, elements_per_s=0.0, p50_s=nan, p99_s=nan) for at in (1, 2, 3)])
    for found, words in ((empty, [YOUNG, YOUNG]), (silent, ["", "no answers in this time"]), (snapshot, ["", ""])):
        assert plot.draw(found).startswith(b"\x89PNG")
        assert [told(axes) for axes in (plot.rate, plot.latency)] == words
        assert memory.draw(found, None, None).startswith(b"\x89PNG")
        assert told(memory.stack) == (YOUNG if found is empty else "")
    assert memory_facts(empty, None)[0]


def told(axes):
    """Words in the middle of axes; the scale is hidden where there are any."""
    words = "".join(text.get_text() for text in axes.texts if text.get_position() == (0.5, 0.5))
    shown = any(tick.label1.get_visible() for tick in axes.yaxis.get_major_ticks())
    assert shown == (not words)
    return words


def test_a_race_without_figures(snapshot):
    nothing = LoadReport(0, 0, 0, 0, (), 0.0, float("nan"), float("nan"), float("nan"), 0.0, 0.0)
    plot = RacePlot()
    assert plot.draw([Lap("large", [0.5, 1.0], [0.0, 0.0], [0, 0], nothing)]).startswith(b"\x89PNG")
    rates, memory = plot.figure.axes
    assert [text.get_text() for text in memory.texts] == ["not measured"]
    assert rates.get_ylim() == (0, 1)


def test_names_are_escaped(snapshot):
    text, root = svg(replace(snapshot, model_id='<script>alert(1)&"'))
    assert "<script" not in text
    assert "<script>" in "".join(root.itertext())
    trouble = html.error_html("switch", "<b>words</b>", "<i>trace</i>")
    assert "<b>words" not in trouble
    assert "<i>trace" not in trouble


def test_marks_of_one_moment_share_a_line():
    events = [
        Event(10, "load", "worker 0 in 0.10 s"),
        Event(10.1, "switch", "default → large, side by side, 0.20 s", seconds=0.2),
        Event(20, "death", "worker 0 killed by SIGKILL (…)"),
        Event(20.3, "start", "worker 0 replaced pid 12"),
        Event(30, "death", "host 1 was killed on purpose"),
        Event(40, "switch", "2 → 3 processes, side by side, 0.20 s"),
        Event(45, "cancelled", "switch large → shared, after 0.40 s"),
        Event(50, "evict", "tweets"),
        Event(60, "verify", "the same"),
    ]
    found = marks(events, since=5)
    labels = [
        "default → large", "worker 0 died", "host 1 killed", "2 → 3 processes", "switch cancelled", "evict tweets"
    ]  # fmt: skip
    assert [mark.label for mark in found] == labels
    assert found[0].time == pytest.approx(9.9)  # where it began
    assert found[0].band == pytest.approx((9.9, 10.1))
    assert found[1].band is None
    assert len(marks(events, since=25)) == 4


def test_models_that_come_and_go_share_a_band_of_their_own():
    def of(kind, time, model, seconds=0.0):
        return Event(time, kind, f"'{model}' at worker 0", model=f"'{model}'", seconds=seconds)

    events = [
        of("load", 10, "films", 0.5),
        of("load", 30, "a", 0.2), of("evict", 31, "b"), Event(31.5, "death", "worker 0 killed"), of("load", 32, "c"),
        of("evict", 33, "d"), of("evict", 33.5, "d"), of("fail", 34, "e"),
        of("evict", 50, "films"), of("load", 50.4, "tweets", 0.4),
    ]  # fmt: skip
    found = [(mark.time, mark.label, mark.band) for mark in marks(events, since=0)]
    assert found == [
        (9.5, "load films", (9.5, 10)),
        (29.8, "load a and c, 3 evictions, fail e", (29.8, 34)),
        (31.5, "worker 0 died", None),
        (50, "load tweets, evict films", (50, 50.4)),
    ]


def test_a_switch_under_way_is_a_band_up_to_now(snapshot):
    wanted = Settings.make(Doubling(), "large", 2)
    switching = SwitchProgress(wanted, "starting", 0, 1, 7.0)
    (mark,) = marks_of(replace(snapshot, switching=switching, events=[]))
    start, end = mark.band
    assert (mark.label, mark.time, end - start) == ("to large…", start, pytest.approx(7.0))
    assert abs(end - time.time()) < 5


def test_the_plots_change_with_what_they_show_and_are_transparent(snapshot):
    plot, busy = ThroughputPlot(), MemoryPlot()
    first = plot.draw(snapshot)
    switched = replace(snapshot, events=[Event(1030.0, "switch", "default → large, side by side, 0.2 s")])
    assert plot.draw(switched) != first
    assert plot.draw(snapshot) == first  # the marks of before are gone
    plain = busy.draw(snapshot, None, None)
    chosen = Settings.make(Doubling(), "large", 2, memory_budget="500MB")
    ghost = busy.draw(snapshot, chosen, snapshot.predict_memory(chosen))
    assert ghost != plain
    for png in (first, plain):
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        assert pixels[0, 0, 3] == 0
        assert (pixels[:, :, 3] == 0).mean() > 0.5


def test_a_frame_on_what_stands_still_is_the_frame_drawn_afresh(snapshot):
    for make, draw in (
        (ThroughputPlot, lambda plot, found: plot.draw(found)),
        (MemoryPlot, lambda plot, found: plot.draw(found, None, None)),
    ):
        kept = make()
        draw(kept, snapshot)
        still = kept._still
        rows = [{**one, "elements_per_s": 24.0, "libraries_bytes": int(38e7)} for one in snapshot.rows]
        later = replace(snapshot, rows=rows, events=[Event(1030.0, "death", "host 1 was killed on purpose")])
        frame = draw(kept, later)
        assert kept._still is still
        afresh = make()
        draw(afresh, snapshot)
        afresh._still = None
        assert frame == draw(afresh, later)
        more = [{**one, "elements_per_s": 90.0, "libraries_bytes": int(38e8)} for one in snapshot.rows]
        draw(kept, replace(snapshot, rows=more))
        assert kept._still is not still
        assert kept._timed[0].get_ylim()[1] > 90


def test_the_memory_of_a_gpu_stands_beside(snapshot):
    plot, without = MemoryPlot(), MemoryPlot()
    plain = without.draw(snapshot, None, None)
    with_gpu = replace(snapshot, rows=[second(at, gpu_bytes=3e8) for at in range(1000, 1060)])
    assert plot.draw(snapshot, None, None) == plain
    assert plot.draw(with_gpu, None, None) != plain
    stack, gpu, bars = (axes.get_position() for axes in (plot.stack, plot.gpu, plot.bars))
    assert stack.x1 < gpu.x0 < gpu.x1 < bars.x0
    assert plot.gpu.get_ylim()[1] > 300
    assert plot.gpu.get_xlim() == plot.stack.get_xlim()
    assert without.gpu is None
    assert ("on the GPU", "300 MB") in memory_facts(with_gpu, None)[0]


def test_a_bar_that_is_not_there_has_no_tick(snapshot):
    plot = MemoryPlot()
    plot.draw(snapshot, None, None)
    assert [text.get_text() for text in plot.bars.get_xticklabels()] == ["now: default"]
    chosen = Settings.make(Doubling(), "large", 2)
    plot.draw(snapshot, chosen, snapshot.predict_memory(chosen))
    assert [text.get_text() for text in plot.bars.get_xticklabels()] == ["now: default", "chosen: large"]


def test_a_legend_has_its_colours_in_their_order():
    png = legend((("private", html.BLUE), ("shared", html.ORANGE)))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    places = []
    for colour in (html.BLUE, html.ORANGE):
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        found = np.argwhere((pixels[:, :, :3] == wanted).all(2) & (pixels[:, :, 3] == 255))
        assert len(found) > 50
        places.append(found[:, 1].mean())
    assert places[0] < places[1]


def test_predicted_memory_counts_copies():
    with kit.deploy(Doubling(), processes=2) as deployment:
        found = replace(deployment.snapshot(10), rows=[second(1)], processes=[row(0), row(1)], model_bytes=int(9e7))

        def predicted(*args, **kwargs):
            return found.predict_memory(Settings.make(Doubling(), *args, **kwargs))

        assert predicted("default", 4)["weights_private_bytes"] == 4 * 9e7
        assert predicted("large", 4)["weights_private_bytes"] == 9e7
        assert predicted("medium", 4, model_copies=3)["weights_private_bytes"] == 3 * 9e7
        assert predicted("shared", 4)["weights_shared_bytes"] == 9e7
        assert predicted("shared", 4)["weights_private_bytes"] == 0
        assert predicted("default", 4)["working_bytes"] == 2 * 2e7
        total = predicted("default", 4)
        assert total.pop("pss_bytes") == sum(total.values())


def _luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one, other):
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def kernel(pid, notebook="lesson.ipynb", rate=2.0):
    return {"pid": pid, "notebook": notebook, "requests_per_s": rate, "in_flight": 1}


def test_kernels_are_boxes_and_many_stay_a_picture(snapshot):
    assert kernels.draw(snapshot) == kernels.text(snapshot) == ""
    twenty_five = [kernel(pid, "<b>&.ipynb" if pid == 1 else "a.ipynb") for pid in range(1, 26)]
    picture = kernels.draw(replace(snapshot, clients=twenty_five))
    root = xml.etree.ElementTree.fromstring(picture)
    assert picture.count('class="kit-kernel"') == kernels.MOST
    assert "… and 5 more kernels" in picture
    assert "<b>" not in picture
    rows = [element for element in root.iter() if element.tag.endswith("rect")]
    assert all(0 <= float(one.get("x")) <= kernels.WIDTH - kernels.BOX_W for one in rows)
    assert "25 kernels connected: 50 requests/s" in kernels.text(replace(snapshot, clients=twenty_five))
    idle = replace(snapshot, clients=[kernel(1, rate=0.0)])
    assert "1 kernel connected: 0 requests/s" in kernels.draw(idle)
    assert kernels.changing(idle) != kernels.changing(replace(snapshot, clients=[kernel(1)]))


def test_text_can_be_read_in_both_themes():
    # WCAG 2: 3:1 for large text and lines; 4.35 is the most that one grey can have on white and on #111111 alike.
    assert min(_contrast(html.GREY, "#ffffff"), _contrast(html.GREY, "#111111")) > 4.2
    # Lines and layers are not told by colour alone: the numbers beside the plots name them.
    for colour in (html.BLUE, html.GREEN, html.VERMILLION):
        assert min(_contrast(colour, "#ffffff"), _contrast(colour, "#111111")) > 3


def test_the_twin_is_small_and_has_text_and_picture(snapshot):
    png = stitched([ThroughputPlot().draw(snapshot), MemoryPlot().draw(snapshot, None, None)])
    found = bundle("<mode> default", png, "kit-panel-1")
    assert found["text/plain"] == "<mode> default"
    assert "&lt;mode&gt;" in found["text/html"]
    assert sum(map(len, found.values())) < 100_000
    assert Image.open(io.BytesIO(png)).height == ThroughputPlot.HEIGHT_PX + MemoryPlot.HEIGHT_PX


def test_values_in_a_line():
    assert html.described(np.arange(6, dtype=np.float32).reshape(2, 3)) == "float32 (2, 3): 0, 1, 2, 3, …"
    assert html.described("a\n b" * 100, 10) == "a ba ba b…"
    assert html.described(list(range(100))) == "100 values: [0, 1, 2, 3]…"
    assert html.milliseconds(float("nan")) == "-"


def test_where_marks_are_close_a_death_keeps_its_label():
    plot = ThroughputPlot()
    plot.set_clock([1000.0, 1060.0])
    close = [Mark(1036.0 + n, "default → shared") for n in range(20)]
    found = sorted([*close, Mark(1047.0, "worker 0 died"), Mark(1048.5, "load")])
    plot.mark(found)
    shown = [text.get_text() for text in plot._labels if text.get_visible()]
    assert shown.count("worker 0 died") == 1
    assert "load" not in shown
    boxes = [text.get_window_extent() for text in plot._labels if text.get_visible()]
    pairs = [(one, other) for at, one in enumerate(boxes) for other in boxes[:at] if one.y0 == other.y0]
    assert not any(one.overlaps(other) for one, other in pairs)


def test_marks_a_few_seconds_apart_at_the_right_edge_are_all_labelled():
    plot = ThroughputPlot()
    plot.set_clock([1000.0, 1120.0])
    labels = ["medium → large", "host 0 killed", "worker 0 killed", "large → shared"]
    plot.mark([Mark(time, label) for time, label in zip((1100.0, 1103.0, 1107.0, 1115.0), labels, strict=True)])
    shown = [text for text in plot._labels if text.get_visible()]
    assert sorted(text.get_text() for text in shown) == sorted(labels)
    boxes = [text.get_window_extent() for text in shown]
    whole = plot.figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1 for box in boxes)
    pairs = [(one, other) for at, one in enumerate(boxes) for other in boxes[:at] if one.y0 == other.y0]
    assert not any(one.overlaps(other) for one, other in pairs)

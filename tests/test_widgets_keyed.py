"""The panel's view of models by key: pictures from made-up snapshots, and panels on real deployments."""

from __future__ import annotations

import io
import itertools
import threading
import xml.etree.ElementTree
from concurrent.futures import Future
from dataclasses import replace
from html import escape

import numpy as np
import pytest
from PIL import Image

import kit
from kit import errors
from kit.history import Event
from kit.settings import Settings
from tests.models import Doubling
from tests.test_widgets_pictures import row as process
from tests.test_widgets_pictures import second, snapshot  # noqa: F401 - a fixture
from tests.widgets_helpers import until
from widgets import ServingPanel, model_rows, model_table, slots, topology
from widgets.budget import BudgetMoves
from widgets.marks import marks_of
from widgets.memory_plot import memory_facts
from widgets.model_log import ModelLog
from widgets.model_timeline import ModelTimeline
from widgets.models_view import ModelsView, bounds


def model(*keys, state="resident", **more):
    about = {"keys": list(keys), "state": state, "size_bytes": 91_000_000, "hits": 3, "requests": 4, "loads": 1}
    figures = {"evictions": 0, "load_s": 0.4, "load_total_s": 0.4, "idle_s": 2.0, "score": 1.0, "in_use": 0}
    row = {
        **about,
        **figures,
        "pinned": False,
        "error": None,
        "where": "worker 0" if state == "resident" else "",
        "loading_at": "",
        **more,
    }
    copies = len(model_rows.homes(row)) if state == "resident" else 0
    return {**row, "copies": copies, "resident_bytes": copies * (row["size_bytes"] or 0)}


def never_asked(*keys):
    """As a deployment tells of a model that no example came for."""
    nan = float("nan")
    row = {"keys": list(keys), "state": "evicted", "loads": 0, "size_bytes": nan, "score": nan, "hits": nan}
    row |= {"pinned": nan, "in_use": nan, "idle_s": nan, "error": nan}
    return {**row, "where": "", "loading_at": "", "copies": 0, "resident_bytes": 0}


FOUR = [
    model("tweets"),
    model("films", score=3.0),
    model("reviews", state="loading", score=2.0),
    never_asked("editorials"),
]
MANY = [model(f"shop {n}", state="resident" if n < 30 else "evicted", score=1000.0 - n) for n in range(1000)]


def keyed(snapshot, models, mode="default", budget="400MB", processes=2):  # noqa: F811
    rows = [process(index, mode=mode) for index in range(processes)]
    if mode == "large":
        rows.append(process(0, "host", mode, pid=7))
    settings = Settings.make(Doubling(), mode, processes, memory_budget=budget)
    return replace(snapshot, settings=settings, processes=rows, models=models)


def at(models, where):
    return [{**one, "where": where if one["state"] == "resident" else ""} for one in models]


# ---- pictures --------------------------------------------------------------------------------


def slots_of(picture):
    """For each process of a picture, and the segment, what its slots hold."""
    root = xml.etree.ElementTree.fromstring(f"<div>{picture}</div>")  # kernels may be drawn above
    boxes = [one for one in root.iter() if one.get("class", "").startswith(("kit-process", "kit-segment"))]
    held = [[slot for slot in box.iter() if slot.get("class", "").startswith("kit-slot")] for box in boxes]
    return [[next(iter(slot)).text.split(":")[0] for slot in found] for found in held]


def test_each_box_has_slots_that_fill_and_empty(snapshot):  # noqa: F811
    found = keyed(snapshot, [*FOUR, model("news", where="worker 1"), model("mail", where="worker 0, worker 1")])
    picture = topology.draw(found)
    assert slots_of(picture) == [["films", "mail", "tweets"], ["mail", "news"]]
    assert 'class="kit-model"' not in picture
    assert "6 models by key, 4 loaded: 455 of 400 MB" in picture
    words = topology.text(found)
    assert "worker 0: pid 1000, 200 MB, 1 thread, busy 50%, holds 3 models, 273 MB" in words
    assert "holds 2 models, 182 MB" in words
    gone = [{**one, "state": "evicted", "where": ""} for one in FOUR]
    assert slots_of(topology.draw(keyed(snapshot, gone))) == [[], []]


def test_the_slots_are_where_the_models_are(snapshot):  # noqa: F811
    large = topology.draw(keyed(snapshot, at(FOUR, "host 0"), "large"))
    assert slots_of(large) == [[], [], ["films", "tweets"]]
    assert "2 models, 182 of 400 MB" in large
    shared = keyed(snapshot, at(FOUR, "all workers"), "shared")
    assert slots_of(topology.draw(shared)) == [[], [], ["films", "tweets"]]
    assert "mapped by every worker: 2 models, 182 of 400 MB" in topology.text(shared)


def filling_of(picture):
    """What the slots that are filling hold, the slot's width, and how much of its height is full."""
    root = xml.etree.ElementTree.fromstring(picture)
    slots = [slot for slot in root.iter() if slot.get("class") == "kit-slot kit-filling"]
    boxes = [slot.findall("{http://www.w3.org/2000/svg}rect") for slot in slots]
    full = [float(level.get("height")) / float(frame.get("height")) for frame, level in boxes]
    return [
        (next(iter(slot)).text, float(frame.get("width")), level)
        for slot, (frame, _), level in zip(slots, boxes, full, strict=True)
    ]


def test_the_slot_of_a_model_that_is_being_loaded_is_filling(snapshot):  # noqa: F811
    waiting = model("mail", state="loading")  # for room: no process has begun with it
    loading = model("reviews", state="loading", loading_at="worker 1")
    copied = model("news", where="worker 0", loading_at="worker 1")
    found = keyed(snapshot, [model("tweets"), waiting, loading, copied])
    picture = topology.draw(found)
    assert slots_of(picture) == [["news", "tweets"], ["news", "reviews"]]
    assert [(title, level) for title, _, level in filling_of(picture)] == [
        ("news: loading, 91 MB", 0.5),
        ("reviews: loading, 91 MB", 0.5),
    ]
    assert "0 models, 0 B, 2 loading" in picture
    assert "holds 0 models, 0 B, 2 loading" in topology.text(found)
    loaded = [{**loading, "state": "resident", "where": "worker 1", "loading_at": ""}, model("tweets")]
    picture = topology.draw(keyed(snapshot, loaded))
    assert filling_of(picture) == []
    assert slots_of(picture) == [["tweets"], ["reviews"]]


def test_a_model_whose_size_is_not_known_yet_fills_a_slot_as_wide_as_the_others(snapshot):  # noqa: F811
    new = model("new", state="loading", loading_at="worker 0", size_bytes=None)
    alone = filling_of(topology.draw(keyed(snapshot, [new])))
    assert alone[0][0] == "new: loading, size unknown"
    assert alone[0][1] > 10
    [[_, width, _]] = filling_of(topology.draw(keyed(snapshot, [new, model("tweets", where="worker 1")])))
    [[_, same, _]] = filling_of(topology.draw(keyed(snapshot, [{**new, "size_bytes": 91_000_000}])))
    assert width == pytest.approx(same, abs=1)


def test_a_segment_that_is_filled_is_drawn_so(snapshot):  # noqa: F811
    rows = [model("tweets", where="all workers"), model("films", state="loading", loading_at="all workers")]
    found = keyed(snapshot, rows, "shared")
    assert slots_of(topology.draw(found)) == [[], [], ["films", "tweets"]]
    assert "mapped by every worker: 1 model, 91 of 400 MB, 1 loading" in topology.text(found)


def test_slots_are_as_wide_as_their_models_and_stay_in_their_box(snapshot):  # noqa: F811
    rows = [model("a"), model("b", size_bytes=182_000_000), model("c", where="worker 1")]
    root = xml.etree.ElementTree.fromstring(topology.draw(keyed(snapshot, rows, budget="200MB")))
    boxes = {}
    for box in root.iter():
        if box.get("class", "").startswith("kit-process"):
            frame = next(iter(box))
            slots = [slot.find("{http://www.w3.org/2000/svg}rect") for slot in box if slot.get("class") == "kit-slot"]
            boxes[box.get("data-pid")] = [float(slot.get("width")) for slot in slots]
            right = float(frame.get("x")) + float(frame.get("width"))
            assert all(float(slot.get("x")) + float(slot.get("width")) <= right for slot in slots)
    [[a, b], [c]] = boxes.values()
    assert a == c
    assert b == pytest.approx(2 * a, abs=2)


def test_without_models_by_key_nothing_of_it_is_shown(snapshot):  # noqa: F811
    assert "kit-slot" not in topology.draw(snapshot)
    assert model_rows.text(snapshot) == ""
    view = ModelsView(lambda size: None)
    view.draw(snapshot, ModelLog(60))
    assert view.box.layout.display == "none"
    view.draw(keyed(snapshot, FOUR), ModelLog(60))
    assert view.box.layout.display == ""
    view.draw(snapshot, ModelLog(60))
    assert view.box.layout.display == "none"


def test_many_models_stay_a_picture_and_the_others_are_counted(snapshot):  # noqa: F811
    found = keyed(snapshot, MANY, budget="3GB")
    [first, _] = slots_of(topology.draw(found))
    assert len(first) == slots.MOST
    assert first[-1] == "7 more"
    assert len(topology.draw(found)) < 30_000
    table = model_table.draw(found)
    assert table.count('scope="row"') == model_rows.SHOWN
    assert "and 980 more: 10 resident, 970 not loaded" in table
    assert len(table) < 30_000
    assert model_rows.text(found).count("\n") == model_rows.SHOWN + 1
    log = ModelLog(60)
    log.note(1000.0, MANY)
    view = ModelsView(lambda size: None)
    view.draw(found, log)
    assert Image.open(io.BytesIO(view.timeline.value)).height < 450


def test_the_table_is_sorted_by_score_and_escaped(snapshot):  # noqa: F811
    rows = [*FOUR, model("<b>&", state="failed", error='no "file"', score=5.0)]
    table = model_table.draw(keyed(snapshot, rows))
    order = [table.index(name) for name in ("&lt;b&gt;&amp;", "films", "reviews", "tweets", "editorials")]
    assert order == sorted(order)
    assert "<b>&" not in table
    assert "pinned" not in table
    assert ">never<" in table
    assert "pinned" in model_table.draw(keyed(snapshot, [model("a", pinned=True)]))
    assert "no &quot;file&quot;" in table
    assert model_table.draw(keyed(snapshot, FOUR)).count("<div") == table.count("<div") - 1
    assert "<b>&" not in topology.draw(keyed(snapshot, [model("<b>&")]))
    assert model_rows.name(model("key1", "key2", "foo", "bar", "baz")) == "key1, key2, foo +2"


def test_what_keeps_a_model_from_being_loaded_is_said(snapshot):  # noqa: F811
    error = "the model of 'huge' takes 400 MB, the memory budget is 200 MB. " + "Raise it. " * 20
    said = model_rows.text(keyed(snapshot, [model("huge", state="evicted", error=error), model("fine")]))
    (line,) = [line for line in said.splitlines() if line.startswith("  huge")]
    assert "1 load, 0 evictions; the model of 'huge' takes 400 MB" in line
    assert len(line) < 250
    assert ";" not in next(line for line in said.splitlines() if line.startswith("  fine"))
    table = model_table.draw(keyed(snapshot, [model("huge", state="evicted", error=error)]))
    assert ">the model of &#x27;huge&#x27; takes 400 MB" in table
    assert f'title="{escape(error)}"' in table


def test_the_numbers_beside_the_timeline(snapshot):  # noqa: F811
    found = dict(model_rows.facts(keyed(snapshot, FOUR)))
    assert found["resident"] == "2"
    assert found["waiting for room"] == "1"
    assert found["not loaded"] == "1"
    assert found["loaded bytes"] == "182 MB"
    assert found["budget"] == "400 MB"
    assert found["found loaded"] == "75%"
    assert found["loads"] == "3"
    unlimited = keyed(snapshot, FOUR, budget=None)
    assert dict(model_rows.facts(unlimited))["budget"] == "none"
    limited = keyed(snapshot, FOUR, budget=200_000_000)
    assert (
        dict(model_rows.facts(limited))["budget"] == dict(memory_facts(limited, None)[0])["weights budget"] == "200 MB"
    )


# ---- the timeline ----------------------------------------------------------------------------


def test_states_become_spans():
    log, states = ModelLog(60), ["evicted", "evicted", "loading", "resident", "resident", "evicted"]
    loads = [0, 0, 0, 1, 1, 1]
    for at, (state, count) in enumerate(zip(states, loads, strict=True)):
        at_home = "worker 0" if state == "loading" else ""
        log.note(100.0 + at, [model("films", state=state, loads=count, evictions=int(at == 5), loading_at=at_home)])
    expected = [(100, 102, "evicted"), (102, 103, "loading"), (103, 105, "resident"), (105, 105, "evicted")]
    assert log.spans(model("films")) == expected
    assert log.spans(model("other")) == []


def test_what_waits_for_room_is_not_said_to_be_loading(snapshot):  # noqa: F811
    waits, loads = model("a", state="loading"), model("b", state="loading", loading_at="worker 0")
    log = ModelLog(60)
    log.note(100.0, [waits, loads])
    log.note(103.0, [waits, loads])
    assert log.spans(waits) == [(100, 103, "waiting")]
    found = keyed(snapshot, [waits, loads])
    facts = dict(model_rows.facts(found))
    assert (facts["loading"], facts["waiting for room"]) == ("1", "1")
    assert "a: waiting for room" in model_rows.text(found)
    assert ">waiting for room<" in model_table.draw(found)


def test_a_load_under_way_has_a_mark_and_a_band_that_grows(snapshot):  # noqa: F811
    log, loading = ModelLog(60), model("films", state="loading", loading_at="worker 0")
    for at in range(1050, 1060):
        log.note(float(at), [loading, model("tweets")])
    rows = [second(at) for at in range(1000, 1061)]
    found = replace(keyed(snapshot, [loading]), rows=rows, events=log.loads([loading, model("tweets")]))
    [mark] = marks_of(found)
    assert (mark.label, mark.time, mark.band) == ("load films", 1050, (1050, 1059))


def test_events_tell_when_models_came_and_went_between_two_looks():
    def told(at, kind, key, seconds=0.0):
        return Event(at, kind, "", seconds=seconds, model=repr(key))

    log = ModelLog(60)
    log.note(100.0, [model("a"), model("b", state="evicted", loads=0), model("c")], [told(99.0, "load", "a", 0.5)])
    events = [
        told(99.0, "load", "a", 0.5),
        told(100.25, "evict", "a"),
        told(100.5, "load", "b", 0.25),
        told(100.625, "load", "c", 0.125),  # a copy of what is there
        told(100.75, "evict", "b"),
        told(100.875, "evict", "c"),
        told(101.0, "load", "a", 0.125),
    ]
    now = [
        model("a", loads=2, evictions=1),
        model("b", state="evicted", loads=1, evictions=1),
        model("c", loads=2, evictions=1),
    ]
    log.note(101.5, now, events)
    a, b, c = map(log.spans, now)
    assert a == [
        (100, 100.25, "resident"),
        (100.25, 100.875, "evicted"),
        (100.875, 101, "loading"),
        (101, 101.5, "resident"),
    ]
    assert b == [
        (100, 100.25, "evicted"),
        (100.25, 100.5, "loading"),
        (100.5, 100.75, "resident"),
        (100.75, 101.5, "evicted"),
    ]
    assert c == [(100, 101.5, "resident")]
    log.note(102.0, now, events)  # known already
    assert log.spans(model("a"))[-1] == (101, 102, "resident")


def test_where_a_row_lags_behind_the_events_these_are_right():
    log = ModelLog(60)
    log.note(100.0, [model("a", state="evicted", loads=0), model("b")])
    events = [
        Event(100.5, "load", "", seconds=0.25, model="'a'"),
        Event(100.75, "evict", "", model="'b'"),
    ]
    log.note(101.0, [model("a", state="loading", loading_at="worker 0"), model("b")], events)
    assert log.spans(model("a"))[-1] == (100.5, 101, "resident")
    assert log.spans(model("b"))[-1] == (100.75, 101, "evicted")
    events.append(Event(101.5, "evict", "", model="'a'"))
    log.note(102.0, [model("a", state="evicted"), model("b", state="loading")], events)
    assert [span.state for span in log.spans(model("a"))] == ["evicted", "loading", "resident", "evicted"]
    assert log.spans(model("b"))[-1] == (102, 102, "waiting")


def test_nothing_is_said_of_a_time_without_a_look():
    log = ModelLog(1000)
    log.note(100.0, [model("a")])
    log.note(101.0, [model("a")])
    log.note(160.0, [model("a", state="evicted", evictions=1), model("new")])
    log.note(161.0, [model("a", state="evicted", evictions=1), model("new")])
    assert log.spans(model("a")) == [(100, 101, "resident"), (160, 161, "evicted")]
    assert log.spans(model("new")) == [(160, 161, "resident")]


def test_while_nothing_changes_no_look_is_needed():
    log = ModelLog(1000)
    log.note(100.0, [model("a")])
    for at in range(101, 160):
        log.still(float(at))
    log.note(160.0, [model("a", state="evicted", evictions=1)])
    assert log.spans(model("a"))[0] == (100, 160, "resident")


def test_old_states_are_forgotten():
    log = ModelLog(10)
    for at in range(400):
        log.note(float(at), [model("a", state="resident" if at % 2 else "evicted", loads=(at + 1) // 2, load_s=0.0)])
    spans = log.spans(model("a"))
    assert len(spans) < 30
    assert spans[-1].end == 399
    assert spans[0].end >= 389


def test_the_timeline_shows_each_state_in_its_row(snapshot):  # noqa: F811
    rows = replace(keyed(snapshot, FOUR), rows=[second(at) for at in range(1000, 1061)])
    plot = ModelTimeline(2)
    empty = plot.draw(rows, [("films", []), ("tweets", [])])
    log = ModelLog(60)
    log.note(1000.0, [model("films"), model("tweets", state="evicted")])
    log.note(1060.0, [model("films"), model("tweets", state="evicted")])
    spans = [("films", [(1000.0, 1060.0, "resident")]), ("tweets", [(1000.0, 1030.0, "evicted")])]
    pictures = [plot.draw(rows, [(name, list(map(_span, found))) for name, found in spans]) for _ in range(2)]
    assert pictures[0] == pictures[1] != empty
    pixels = np.asarray(Image.open(io.BytesIO(pictures[0])))
    green = (abs(pixels[:, :, :3].astype(int) - (0x00, 0x9E, 0x73)).sum(axis=2) < 12) & (pixels[:, :, 3] > 200)
    assert 10 <= green.any(axis=1).sum() <= 17  # one row, as thick as a resident model's
    assert green.any(axis=0).sum() > 500  # all the time
    assert pixels[0, 0, 3] == 0


def _span(parts):
    from widgets.model_log import Span

    return Span(*parts)


# ---- the slider ------------------------------------------------------------------------------


def test_the_slider_offers_budgets_from_one_model_a_manager_to_all(snapshot):  # noqa: F811
    low, high = bounds(keyed(snapshot, FOUR, budget=None))
    assert low == 91
    assert high == pytest.approx(4 * 91 * 1.05)
    assert bounds(keyed(snapshot, FOUR, budget="50MB"))[0] == 50
    assert bounds(keyed(snapshot, FOUR, budget="2GB"))[1] == 2000
    low, high = bounds(keyed(snapshot, [never_asked("a")], budget=None))
    assert low < high


def test_the_slider_follows_what_is_served_and_reports_what_a_user_moves(snapshot):  # noqa: F811
    moved = []
    view = ModelsView(moved.append)
    for budget in ("200MB", "380MB", None, "250MB", "3GB", "190MB"):
        view.draw(keyed(snapshot, FOUR, budget=budget), ModelLog(60))
        if budget is not None:
            assert view.slider.value * 1e6 == kit.settings.parse_bytes(budget)
        assert view.slider.min <= view.slider.value <= view.slider.max
    assert moved == []
    assert "182 of 190 MB loaded" in view.words.value
    view.slider.value = 300
    assert moved == [300_000_000]
    view.draw(keyed(snapshot, FOUR, budget="234.56MB"), ModelLog(60))
    view.slider.value = float(f"{view.slider.value:{view.slider.readout_format}}")  # left as it is written beside it
    assert view.slider.value == 234.56
    assert moved == [300_000_000]


def test_a_browser_learns_bounds_and_value_of_the_slider_together(snapshot, monkeypatch):  # noqa: F811
    view = ModelsView(print)
    sent = []
    monkeypatch.setattr(type(view.slider), "send_state", lambda slider, key=None: sent.append(set(key)))
    view.draw(keyed(snapshot, FOUR, budget="200MB"), ModelLog(60))
    (together,) = [keys for keys in sent if "value" in keys]
    assert {"min", "max", "step"} <= together


def test_while_a_switch_is_under_way_the_latest_budget_waits():
    posted, set_to, busy = [], [], threading.Event()

    def post(what, action):
        posted.append(action)
        return Future()

    moves = BudgetMoves(post, lambda job: busy.is_set(), set_to.append)
    busy.set()
    for budget in (1, 2, 3):
        moves.to(budget)
    for action in posted:
        action()
    moves.follow()
    assert set_to == []
    busy.clear()
    moves.follow()
    moves.follow()
    assert set_to == [3]


# ---- on real deployments -----------------------------------------------------------------------


class Weighing(kit.ModelHandler):
    """Multiplies by its factor; its model weighs 1 MB."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def load_model(self):
        return np.full(250_000, self.factor, np.float32)

    def run_inference(self, batch, model, inference_args=None):
        return [float(example * model[0]) for example in batch]


PAIRS = [(key, number) for number in range(20) for key in range(1, 7)]


@pytest.fixture
def six_models():
    mappings = [kit.KeyModelMapping([key], Weighing(key)) for key in range(1, 7)]
    with kit.deploy(kit.KeyedModelHandler(mappings, memory_budget="3.2MB"), processes=2) as deployment:
        yield deployment


@pytest.fixture
def panel(six_models):
    panel = ServingPanel(six_models, PAIRS)
    yield panel
    panel.close()


def held(panel):
    return sum(map(len, slots_of(panel._view.topology.value)))


def test_the_panel_shows_the_models_of_a_deployment(six_models, panel):
    view = panel._view.models
    assert view.box.layout.display == ""
    assert held(panel) == 0
    assert "6 not loaded" in panel.text()
    six_models.predict(PAIRS)
    until(lambda: held(panel) == 3, "the models that fit, in their slots")
    assert "6 models by key, 3 loaded: 3 of 3.2 MB" in panel.text()
    assert view.table.value.count('scope="row"') == 6
    assert panel._view.controls.budget.value == "3.2 MB"
    until(lambda: marks_of(six_models.snapshot()), "a row, and with it the marks")
    assert any("6 loads, 3 evictions" in mark.label for mark in marks_of(six_models.snapshot()))
    states = {span.state for row in six_models.models().to_dict("records") for span in panel._redraw._models.spans(row)}
    assert {"resident", "evicted"} <= states
    assert Image.open(io.BytesIO(panel.png())).height > 540 + 6 * 17


@pytest.mark.parametrize(("own", "given"), [(None, None), ("3.2MB", None), (None, 2_345_678), ("3.2MB", "1.5MB")])
def test_opening_panels_leaves_the_budget_alone(own, given):
    mappings = [kit.KeyModelMapping([key], Weighing(key)) for key in range(1, 7)]
    with kit.deploy(kit.KeyedModelHandler(mappings, memory_budget=own), processes=2, memory_budget=given) as served:
        before = served.settings, served._engine.places.manager.budget
        panels = [ServingPanel(served, PAIRS) for _ in range(2)]
        served.predict(PAIRS)
        for panel in panels:
            until(lambda panel=panel: held(panel), "models, whose sizes are known now")
            panel.refresh().result(10)
        assert (served.settings, served._engine.places.manager.budget) == before
        assert [event.text for event in served.snapshot().events if event.kind in ("resize", "switch")] == []
        assert all(not panel._redraw.wanted(served) for panel in panels)


def test_the_slider_moves_the_budget_of_what_is_served(six_models, panel):
    view = panel._view.models
    six_models.predict(PAIRS)
    for budget, count in ((2.1, 2), (6.3, 6), (1.2, 1)):
        view.slider.value = budget
        until(lambda budget=budget: six_models.settings.memory_budget == round(budget * 1e6), "the budget")
        if count == 6:
            six_models.predict(PAIRS)
        until(lambda count=count: held(panel) == count, f"{count} models in the slots")
    assert panel._view.errors.value == ""
    events = [event.text for event in six_models.snapshot().events if event.kind == "resize"]
    assert events[-1] == "memory budget 6.3 MB → 1.2 MB"
    with pytest.raises(errors.InvalidSetting, match='or "none" for no limit'):
        panel.set_budget(None).result(30)
    panel.set_budget("5MB").result(30)
    until(lambda: view.slider.value == 5, "the slider where the budget is")


def test_the_timeline_has_one_model_at_a_time_where_there_is_room_for_one(six_models, panel):
    six_models.switch(memory_budget="1.2MB")
    keys = [key for key, _ in PAIRS[:3]]
    for _ in range(3):  # all between two looks
        for pair in PAIRS[:3]:
            six_models.predict([pair])

    def resident():
        rows = [{"keys": [key]} for key in keys]
        return [span for row in rows for span in panel._redraw._models.spans(row) if span.state == "resident"]

    until(lambda: len(resident()) >= 9, "all that came and went")
    found = sorted(resident())
    assert all(before.end <= after.start for before, after in itertools.pairwise(found))


def test_a_deployment_without_models_by_key_has_no_such_view():
    with kit.deploy(Doubling(), processes=1) as deployment:
        panel = ServingPanel(deployment, [1, 2])
        assert panel._view.models.box.layout.display == "none"
        assert "models by key" not in panel.text()
        panel.close()

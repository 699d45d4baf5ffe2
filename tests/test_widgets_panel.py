"""The panel on real deployments: what it draws, what its controls do, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import re
import threading
import time
from concurrent.futures import CancelledError

import ipywidgets
import pytest

import kit
from kit import errors
from kit.errors import SwitchCancelled
from tests.models import Doubling
from tests.widgets_helpers import Failing, Gated, until
from widgets import ServingPanel


@pytest.fixture
def deployment():
    with kit.deploy(Doubling(max_batch_size=4), processes=2) as deployment:
        yield deployment


@pytest.fixture
def panel(deployment):
    panel = ServingPanel(deployment, list(range(20)))
    yield panel
    panel.close()


def drawn_pids(panel):
    return set(map(int, re.findall(r'data-pid="(\d+)"', panel._view.topology.value)))


def pids(deployment):
    return {row["pid"] for row in deployment.snapshot(0).processes if row["role"] in ("worker", "host")}


def shown_errors(panel):
    panel.refresh().result(10)
    return panel._view.errors.value


def registered():
    return set(ipywidgets.widget._instances) if hasattr(ipywidgets, "widget") else set()


# ---- what it shows ---------------------------------------------------------------------------------


def test_killing_a_worker_changes_the_drawn_pid_and_nothing_fails(deployment, panel):
    panel.start_load(100).result(10)
    before = drawn_pids(panel)
    assert before == pids(deployment)
    killed = panel.kill("worker", 1).result(10)
    assert killed in before
    until(lambda: len(pids(deployment) - before) == 1, "a new process")
    until(lambda: drawn_pids(panel) == pids(deployment), "the new pid in the picture")
    assert killed not in drawn_pids(panel)
    assert panel.stop_load().result(30).failed == 0
    panel.refresh().result(10)
    assert "failed: 0" in panel._view.failed.value
    assert deployment.counters["deaths"] == 0  # it was asked for
    assert "worker 1 was killed on purpose" in panel.text()


def test_a_host_can_be_killed_in_modes_that_have_one(deployment, panel):
    panel.refresh().result(10)
    assert panel._view.kill_host.disabled
    with pytest.raises(errors.InvalidSetting, match="no host 0"):
        panel.kill("host").result(10)
    deployment.switch("large")
    until(lambda: not panel._view.kill_host.disabled, "the button for hosts")
    panel.start_load(50).result(10)
    host = panel.kill("host").result(10)
    until(lambda: host not in drawn_pids(panel) and len(drawn_pids(panel)) == 3, "another host in the picture")
    assert panel.stop_load().result(30).failed == 0


def test_the_latest_answer_tells_example_answer_pid_mode_and_time(deployment, panel):
    deployment.predict([21])
    until(lambda: "21" in panel._view.answers.value, "the answer")
    words = panel._view.answers.value
    assert "42" in words
    assert "mode default" in words
    assert " ms" in words
    assert int(re.search(r"pid (\d+)", words)[1]) in pids(deployment)


def test_a_chosen_mode_is_predicted_before_it_is_applied(deployment, panel):
    panel.choose("large", processes=3).result(10)
    until(
        lambda: "Chosen, not applied yet: large, 3 processes × 1 thread, 1 copy" in panel._view.hint.value,
        "the prediction",
    )
    assert deployment.mode == "default"
    assert not panel._view.apply.disabled
    panel.apply().result(30)
    assert (deployment.mode, deployment.settings.processes) == ("large", 3)
    until(lambda: panel._view.hint.value == "", "that nothing is left to apply")
    assert 'data-mode="large"' in panel._view.topology.value


def test_what_is_chosen_while_others_switch_stays_chosen(deployment, panel):
    panel.choose("medium", threads=2).result(10)
    deployment.switch("large", processes=3)
    until(lambda: panel._view.controls.numbers["processes"].value == 3, "what nobody has chosen here follows")
    assert panel._redraw.wanted(deployment) == {"mode": "medium", "threads": 2, "model_copies": 2}
    panel.choose(memory_budget="1gb").result(10)
    panel.apply().result(30)
    assert (deployment.mode, deployment.settings.threads) == ("medium", 2)
    until(lambda: panel._view.controls.budget.value == "1 GB", "the budget as it is written here")
    assert panel._redraw.wanted(deployment) == {}


def test_a_choice_made_as_a_switch_ends_is_applied(deployment, panel):
    for mode in ("large", "shared", "medium", "default"):
        panel.choose(mode).result(10)
        panel.refresh().result(10)
        panel.apply().result(30)
        assert deployment.mode == mode


def test_batching_is_changed_live(deployment, panel):
    deployment.predict([1])
    panel.choose(max_batch_size=2).result(10)
    panel.apply().result(30)
    assert deployment.handler.batching_options() == {"max_batch_size": 2}
    assert deployment.predict([1, 2, 3])[2].inference == 6
    panel.choose(max_batch_size=None).result(10)
    panel.apply().result(30)
    assert deployment.handler.batching_options() == {}


def test_two_panels_agree(deployment, panel):
    other = ServingPanel(deployment, list(range(20)))
    panel.choose("shared", processes=1).result(10)
    panel.start_load(50).result(10)
    panel.apply().result(30)
    until(lambda: other._view.controls.mode.value == "shared", "the mode in the other panel")
    until(lambda: drawn_pids(other) == drawn_pids(panel) == pids(deployment), "the same picture")
    until(lambda: other._view.start.disabled and not other._view.stop.disabled, "the load in the other panel")
    panel.close()
    assert other._load.running  # it is still used
    assert other.stop_load().result(30).failed == 0
    other.start_load(50).result(10)
    load = other._load
    other.close()
    assert not load.running


def test_nothing_is_drawn_while_nothing_changes_and_while_nobody_looks(deployment, panel, monkeypatch):
    drawn = []
    draw = panel._view.draw
    monkeypatch.setattr(panel._view, "draw", lambda *args: (drawn.append(1), draw(*args)))
    ticks = threading.Semaphore(0)
    tick = panel._controller._tick
    monkeypatch.setattr(panel._controller, "_tick", lambda: (tick(), ticks.release()))

    def quiet(count=3):
        before = len(drawn)
        for _ in range(count):
            assert ticks.acquire(timeout=10)
        return len(drawn) == before

    until(quiet, "three looks without a redraw")
    panel.start_load(50).result(10)
    assert not quiet()
    panel._view.root._view_count = 1
    panel._view.root._view_count = 0
    assert ticks.acquire(timeout=10)
    assert quiet()
    panel._view.root._view_count = 1
    assert not quiet()


def test_what_happened_while_nobody_looked_is_told_at_the_end(deployment, panel):
    panel._view.root._view_count = 1
    panel.refresh().result(10)
    panel._view.root._view_count = 0
    deployment.switch("shared", processes=1)
    served = pids(deployment)
    until(lambda: f"pid {min(served)}" in panel.text(), "the new process in the text")
    assert drawn_pids(panel) != served  # which costs less than to draw


# ---- what its controls do --------------------------------------------------------------------------


def test_a_click_only_enqueues_and_a_switch_can_be_watched_and_cancelled(tmp_path):
    with kit.deploy(Gated(str(tmp_path)), processes=1) as deployment:
        panel = ServingPanel(deployment, [1, 2])
        panel._view.controls.mode.value = "large"
        until(lambda: not panel._view.apply.disabled, "that it can be applied")
        panel._view.apply.click()
        until(lambda: "to large: 0 of 2" in panel._view.switch_progress.words.value, "the progress")
        assert "Being applied: large" in panel._view.hint.value
        panel.start_load(50).result(10)
        answered = deployment.counters["answered"]
        until(lambda: deployment.counters["answered"] > answered + 5, "answers meanwhile")
        again = panel.apply()
        with pytest.raises(errors.InvalidSetting, match="under way already"):
            again.result(10)
        assert panel.cancel().result(10) is True
        until(lambda: not panel._controller.busy("switch"), "the end of the switch")
        assert deployment.mode == "default"
        until(lambda: panel._view.switch_progress.button.disabled, "that nothing is under way")
        assert panel._view.switch_progress.words.value.startswith("cancelled: switch default → large, after ")
        assert "mode default serves on" in panel._view.switch_progress.words.value
        assert "cancelled: switch default → large" in panel.text()
        (tmp_path / "gate").touch()
        panel.apply().result(30)
        assert deployment.mode == "large"
        until(lambda: "last: default → large" in panel._view.switch_progress.words.value, "that it is told")
        assert panel.stop_load().result(30).failed == 0
        assert panel.cancel().result(10) is False


def test_a_cancelled_switch_is_no_error(tmp_path):
    with kit.deploy(Gated(str(tmp_path)), processes=1) as deployment:
        panel = ServingPanel(deployment)
        panel.choose("large").result(10)
        switch = panel.apply()
        until(lambda: deployment._engine.starting is not None, "the switch")
        panel.cancel().result(10)
        with pytest.raises(SwitchCancelled):
            switch.result(30)
        assert shown_errors(panel) == ""


def test_an_error_is_told_in_words_with_its_traceback_folded_and_the_panel_goes_on(tmp_path):
    with kit.deploy(Failing(str(tmp_path)), processes=1) as deployment:
        panel = ServingPanel(deployment, ["a", "bb"])
        panel.choose("large").result(10)
        with pytest.raises(errors.ModelLoadFailed):
            panel.apply().result(30)
        words = shown_errors(panel)
        assert "the &lt;second&gt; copy is one too many" in words
        assert words.count("<details>") == 1
        assert "Traceback" in words.split("<details>")[1]
        assert "<second>" not in words
        assert deployment.mode == "default"
        assert panel._view.dismiss.layout.display == ""
        panel.choose("default").result(10)
        panel.apply().result(30)  # nothing to do, which works
        assert shown_errors(panel) == ""
        panel.start_load(20).result(10)
        until(lambda: deployment.counters["answered"] > 3, "answers")


def test_a_budget_that_is_too_small_is_told_before_it_is_applied():
    handler = kit.ModelHandler.from_callable(lambda: b"x" * 1000, lambda batch, model: batch)
    handler.estimate_model_bytes = lambda: 1000
    with kit.deploy(handler, processes=1) as deployment:
        panel = ServingPanel(deployment)
        panel.choose(processes=4, memory_budget=2500).result(10)
        until(lambda: "can only fit 2" in panel._view.hint.value, "the words")
        assert panel._view.apply.disabled
        with pytest.raises(errors.BudgetExceeded):
            panel.apply().result(30)
        panel.choose("large", memory_budget="2KB").result(10)
        panel.apply().result(30)
        assert deployment.settings.memory_budget == 2000
        panel.choose(memory_budget=None).result(10)
        panel.apply().result(30)
        assert deployment.settings.memory_budget is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "huge"}, "'huge' is unknown"),
        ({"processes": 0}, "processes=0"),
        ({"processes": 10**9}, "processes=1000000000"),
        ({"threads": True}, "threads=True"),
        ({"model_copies": 1.5}, "model_copies=1.5"),
        ({"max_batch_size": -1}, "max_batch_size=-1"),
        ({"max_batch_tokens": "many"}, "max_batch_tokens='many'"),
        ({"colour": "red"}, "'colour' isn't a control"),
    ],
)
def test_values_that_a_control_cannot_take(panel, settings, words):
    before = panel._view.controls.mode.value
    with pytest.raises(errors.InvalidSetting, match=re.escape(words)):
        panel.choose(**settings).result(10)
    assert panel._view.controls.mode.value == before


def test_values_that_cannot_be_applied(deployment, panel):
    for settings, words in (
        ({"memory_budget": "lots"}, "memory_budget='lots'"),
        ({"memory_budget": None, "max_batch_tokens": 100}, "needs batch_length_fn"),
        ({"max_batch_tokens": 0, "processes": 200, "threads": 200}, "a deployment can have 250"),
    ):
        panel.choose(**settings).result(10)
        with pytest.raises(errors.InvalidSetting, match=re.escape(words)):
            panel.apply().result(30)
        assert "can have" in words or words.split("=")[0] in shown_errors(panel)
    for action, words in (
        (lambda: panel.start_load("fast"), "rate='fast'"),
        (lambda: panel.start_load(-1), "rate='-1'"),
        (lambda: panel.start_load("nan"), "rate='nan'"),
        (lambda: panel.kill("worker", 9), "no worker 9"),
        (lambda: panel.kill("king"), "no king 0"),
        (lambda: panel.race("large", "large"), "two different modes"),
        (lambda: panel.race("large", "shared", seconds=-3), "seconds=-3"),
        (lambda: panel.use_best(), "nothing was compared"),
    ):
        with pytest.raises(errors.InvalidSetting, match=re.escape(words)):
            action().result(30)
    with pytest.raises(errors.InvalidSetting, match="java"):
        panel.export("java")
    assert deployment.mode == "default"
    assert not deployment.closed


@pytest.mark.parametrize(
    ("name", "typed", "most"),
    [("processes", 0, 250), ("threads", -3, 250), ("processes", 2.7, 250), ("max_batch_size", -1, 1_000_000)],
)
def test_a_number_that_cannot_be_is_told_and_left_as_it_was_typed(deployment, panel, name, typed, most):
    control = panel._view.controls.numbers[name]
    control.value = typed  # as a browser does
    until(lambda: f"applied: {name}={typed} (" in panel._view.hint.value, "the words")
    assert ": give a whole number from" in panel._view.hint.value
    assert str(most) in panel._view.hint.value
    assert panel._view.apply.disabled
    with pytest.raises(errors.InvalidSetting, match=f"{name}={typed}"):
        panel.apply().result(30)
    assert control.value == typed
    control.value = 2
    until(lambda: not panel._view.apply.disabled or panel._redraw.wanted(deployment) == {}, "that it can be applied")


def test_bad_arguments_of_the_panel(deployment):
    for given, error in (
        (lambda: ServingPanel("minilm"), errors.InvalidSetting),
        (lambda: ServingPanel(deployment, seconds=0), errors.InvalidSetting),
        (lambda: ServingPanel(deployment, iter([1])), errors.UnsupportedInput),
        (lambda: ServingPanel(deployment, []), errors.InvalidSetting),
    ):
        with pytest.raises(error):
            given()
    panel = ServingPanel(deployment)
    with pytest.raises(errors.InvalidSetting, match="no examples"):
        panel.start_load().result(10)
    deployment.predict([1, 2])
    panel.start_load(20).result(10)  # takes what was sent before


# ---- comparing and racing --------------------------------------------------------------------------


def test_a_race_of_no_time_is_refused(panel):
    with pytest.raises(kit.errors.InvalidSetting, match="seconds=0: give from 1"):
        panel.race("default", "shared", 0).result(30)


def test_compare_then_use_the_best(deployment, panel):
    assert panel._view.comparing.use.disabled
    comparison = panel.compare(["default", "shared"], repeats=1, seconds=0.1).result(120)
    assert set(comparison.table["mode"]) == {"bare loop", "default", "shared"}
    assert "<table>" in panel._view.comparing.result.value
    assert not panel._view.comparing.use.disabled
    panel.use_best().result(30)
    assert deployment.mode == comparison.best().mode


def test_a_budget_for_the_copies_is_none_for_all_memory_that_a_comparison_measures():
    """The processes take more than the budget, and the copies of the model far less."""
    with kit.deploy(Doubling(max_batch_size=4), processes=2, memory_budget="12MB") as deployment:
        panel = ServingPanel(deployment, list(range(20)))
        comparison = panel.compare(["default", {"mode": "shared"}], repeats=1, seconds=0.1).result(120)
        assert (comparison.table["peak_pss_bytes"] > 12e6).all()
        panel.use_best().result(30)
        assert deployment.settings.memory_budget == 12_000_000
        panel.close()


def test_a_comparison_can_be_cancelled(deployment, panel):
    under_way = panel.compare(["default", "shared"], repeats=3, seconds=30)
    until(lambda: not panel._view.comparing.compare_progress.button.disabled, "the cancel button")
    panel._view.comparing.compare_progress.button.click()
    with pytest.raises(CancelledError):
        under_way.result(60)
    assert shown_errors(panel) == ""
    tab = panel._view.comparing
    assert tab.compare_progress.words.value == "cancelled"
    assert not tab.compare.disabled
    assert not deployment.closed
    under_way = panel.compare(["default"], repeats=3, seconds=30)
    panel.cancel_compare().result(30)  # before it has begun to measure
    with pytest.raises(CancelledError):
        under_way.result(60)
    assert panel.compare(["default"], repeats=1, seconds=0.1).result(120).best().mode == "default"
    panel.refresh().result(10)
    assert tab.compare_progress.words.value == ""


def test_a_race_goes_back_to_the_mode_before(deployment, panel):
    laps = panel.race("large", "shared", seconds=1).result(60)
    assert [lap.mode for lap in laps] == ["large", "shared"]
    assert all(lap.report.answered > 0 and lap.report.failed == 0 and len(lap.rates) == 2 for lap in laps)
    assert deployment.mode == "default"
    assert "large:" in panel._view.comparing.race_words.value
    assert bytes(panel._view.comparing.race_picture.value).startswith(b"\x89PNG")
    under_way = panel.race("large", "shared", seconds=100)
    until(lambda: deployment.mode == "large", "the first lap")
    panel.cancel_race().result(10)
    with pytest.raises(CancelledError):
        under_way.result(60)
    assert deployment.mode == "default"
    panel.refresh().result(10)
    assert panel._view.comparing.race_progress.words.value == "cancelled"
    assert not panel._view.comparing.race.disabled


def test_the_load_rests_while_modes_are_measured_and_then_goes_on(deployment, panel):
    panel.start_load(40).result(10)
    for measure in (
        lambda: panel.compare(["default"], repeats=1, seconds=0.1),
        lambda: panel.race("large", "shared", seconds=1),
    ):
        under_way = measure()
        until(lambda: not panel._load.running, "that the load rests")
        until(lambda: panel._view.start.disabled, "that it can't be started")
        with pytest.raises(errors.InvalidSetting, match="rests while modes are measured"):
            panel.start_load(10).result(10)
        under_way.result(120)
        assert panel._load.running
        assert panel._load.rate == 40
        before = deployment.counters["answered"]
        until(lambda before=before: deployment.counters["answered"] > before, "answers again")
    panel.stop_load().result(30)
    panel.compare(["default"], repeats=1, seconds=0.1).result(120)
    assert not panel._load.running


def test_a_comparison_tells_what_it_measures(panel):
    seen = set()
    under_way = panel.compare(["default", "shared"], repeats=1, seconds=0.5)
    while not under_way.done():
        seen.add(panel._view.comparing.compare_progress.words.value)
        time.sleep(0.02)
    under_way.result(1)
    assert {"measuring bare loop", "measuring default", "measuring shared"} & seen


def test_a_race_is_cancelled_while_its_mode_is_being_started(tmp_path):
    with kit.deploy(Gated(str(tmp_path)), processes=1) as deployment:
        panel = ServingPanel(deployment, [1, 2])
        under_way = panel.race("large", "shared", seconds=1)
        until(lambda: len(list(tmp_path.glob("load-*"))) > 1, "a load that waits for ever")
        panel.cancel_race().result(30)
        with pytest.raises((CancelledError, SwitchCancelled)):
            under_way.result(30)
        assert deployment.mode == "default"
        assert shown_errors(panel) == ""
        assert deployment.predict([4])[0].inference == 8


def test_the_load_keeps_all_workers_busy_however_many_there_are(deployment, panel):
    panel.start_load().result(10)
    assert panel._load.clients == 4
    deployment.switch(processes=3, threads=2)
    until(lambda: panel._load.clients == 12, "as many requests as the workers take")
    until(lambda: "running, 12 requests at a time: " in panel._view.load_words.value, "that it is told")
    assert panel.stop_load().result(30).failed == 0


# ---- its end ---------------------------------------------------------------------------------------


def test_closing_leaves_no_thread_no_load_and_no_widget(deployment):
    before = set(ipywidgets.widgets.widget._instances)
    panel = ServingPanel(deployment, [1, 2, 3])
    panel.start_load().result(10)
    comparison = panel.compare(["default"], seconds=30)
    until(lambda: panel._controller.busy("comparison"), "the comparison")
    panel.close()
    panel.close()
    with pytest.raises((CancelledError, errors.DeploymentClosed)):
        comparison.result(0)
    assert panel.closed
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("kit-panel", "kit-load"))]
    assert set(ipywidgets.widgets.widget._instances) == before
    with pytest.raises(errors.DeploymentClosed):
        panel.apply().result(1)
    assert not deployment.closed
    assert deployment.predict([4])[0].inference == 8


def test_the_panel_closes_with_the_deployment(deployment):
    panel = ServingPanel(deployment, [1])
    panel.start_load(50).result(10)
    deployment.close()
    assert panel.closed
    assert panel.text().startswith("the deployment is closed; call kit.deploy")
    assert not panel._controller.thread.is_alive()
    with pytest.raises(errors.DeploymentClosed, match="deploy the handler again"):
        ServingPanel(deployment)
    assert "closed" in repr(panel)


def test_a_panel_under_load_does_not_keep_the_deployment():
    deployment = kit.deploy(Doubling(), processes=1)
    panel = ServingPanel(deployment, [1, 2, 3])
    panel.start_load().result(10)
    until(lambda: panel._load.report().answered > 10, "answers")
    del deployment
    gc.collect()
    until(lambda: panel.closed, "that the panel closed with the dropped deployment")


def test_panels_of_one_deployment_show_the_rate_of_its_load(deployment, panel):
    other = ServingPanel(deployment, list(range(20)))
    panel.start_load(50).result(10)
    until(lambda: other._view.rate.value == "50", "the rate in the other panel")
    other._view.rate.value = "70"
    until(lambda: panel._view.rate.value == "70", "its change in this one")
    assert panel._load.rate == 70
    panel.stop_load().result(30)
    other.close()


class FailsOnSeven(kit.ModelHandler):
    def load_model(self):
        return 1

    def run_inference(self, batch, model, inference_args=None):
        return [10 // (7 - number) for number in batch]


def test_what_fails_under_load_is_told_in_words_with_the_traceback_folded():
    with kit.deploy(FailsOnSeven(max_batch_size=1), processes=1) as deployment:
        panel = ServingPanel(deployment, [7])
        panel.start_load(20).result(10)
        until(lambda: "ZeroDivisionError" in panel._view.load_words.value, "the error")
        panel.stop_load().result(30)
        panel.refresh().result(10)
        words, _, rest = panel._view.load_words.value.partition("<details>")
        assert "ZeroDivisionError: integer division" in words
        assert "Traceback" not in words
        assert "Traceback" in rest
        panel.close()

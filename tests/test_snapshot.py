"""What a view needs of a deployment: the snapshot, killing on purpose, batching changed live, the end told."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

import kit
from kit import errors
from kit.compare_cancel import Cancel
from kit.history import FIGURES, History
from tests.models import Doubling
from tests.widgets_helpers import Gated, until


def test_a_snapshot_has_all_of_one_moment():
    with kit.deploy(Doubling(max_batch_size=4), processes=2) as deployment:
        assert deployment.snapshot().latest == {}
        deployment.predict([1, 2, 3])
        found = deployment.snapshot()
        assert found.settings == deployment.settings
        assert found.counters["answered"] == 3
        assert [row["role"] for row in found.processes] == ["worker", "worker", "forkserver"]
        assert found.latest["result"].inference == 2 * found.latest["example"]
        assert found.latest["pid"] in {row["pid"] for row in found.processes}
        assert found.sample
        assert found.batching == {"max_batch_size": 4}
        assert found.switching is None
        until(lambda: deployment.snapshot().rows, "a row of history")
        assert deployment.snapshot(0).rows == []
        rows = deployment.snapshot().rows
        assert set(rows[-1]) - {"gpu_bytes"} == {"time", *FIGURES}
    closed = deployment.snapshot()
    assert closed.closed
    assert closed.processes == []


def test_a_history_has_its_columns_from_the_start():
    with kit.deploy(Doubling(), processes=1) as deployment:
        empty = History().to_frame(FIGURES)
        assert len(empty) == 0
        assert list(empty.columns) == ["time", "elapsed_s", *FIGURES, "events"]
        assert set(deployment.history.columns) >= set(empty.columns)
        assert not deployment.history["elements_per_s"].any()
        assert set(deployment.history["mode"]) == {deployment.settings.mode}, "an event has no row yet, but has a mode"


def test_the_pulse_stands_still_until_something_happens():
    with kit.deploy(Doubling(), processes=1) as deployment:
        until(lambda: deployment.snapshot().rows and deployment.snapshot().rows[-1]["pss_bytes"], "the first figures")
        rows = len(deployment.history)
        before = deployment.pulse()
        until(lambda: len(deployment.history) > rows + 2, "more rows")
        moved = [at for at, (one, other) in enumerate(zip(before, deployment.pulse(), strict=True)) if one != other]
        assert set(moved) <= {len(before) - 5}  # memory may move by itself
        deployment.predict([1])
        assert deployment.pulse() != before
        before = deployment.pulse()
        deployment.switch("shared")
        assert deployment.pulse() != before
    assert deployment.pulse() != before


def test_a_load_whose_own_request_drops_the_deployment_ends():
    """As a panel's load does, which keeps the deployment only while it sends a request."""
    deployment = kit.deploy(Doubling(), processes=1)
    held = [deployment]
    closed = threading.Event()

    class Last:
        def submit(self, examples):
            if not held:
                raise errors.DeploymentClosed("it is gone.")
            future = held[0].submit(examples)
            future.deployment = None
            held.clear()
            return future

    load = kit.LoadGenerator(Last(), [1, 2])
    deployment.at_close(lambda: (load.stop(5), closed.set()))
    del deployment
    load.start()
    assert closed.wait(30)
    load.stop(5)
    assert not load.running


def test_a_switch_under_way_is_told_and_can_be_cancelled(tmp_path):
    with kit.deploy(Gated(str(tmp_path)), processes=1) as deployment:
        failures = []

        def switch():
            try:
                deployment.switch("large", processes=3)
            except errors.SwitchCancelled as error:
                failures.append(error)

        thread = threading.Thread(target=switch)
        thread.start()
        until(lambda: deployment.snapshot().switching is not None, "the switch")
        under_way = deployment.snapshot().switching
        assert (under_way.settings.mode, under_way.step, under_way.total) == ("large", "starting", 4)
        until(lambda: deployment._engine.starting is not None, "its start")
        assert deployment.cancel_switch()
        thread.join(30)
        assert failures
        assert deployment.snapshot().switching is None


def test_killing_on_purpose_is_not_held_against_the_deployment():
    with kit.deploy(Doubling(), processes=1) as deployment:
        for _ in range(7):  # five deaths in a minute would end it
            pid = deployment.kill("worker", 0)
            assert deployment.predict([2])[0].inference == 4
            until(lambda pid=pid: pid not in {row["pid"] for row in deployment.snapshot().processes}, "its end")
            until(lambda: any(row["role"] == "worker" for row in deployment.snapshot().processes), "another worker")
        assert deployment.counters["deaths"] == 0
        assert "was killed on purpose" in str(deployment.snapshot().events[-1]) or deployment.snapshot().events
        for role, index in (("worker", 3), ("host", 0), ("loader", 0), ("worker", "one")):
            with pytest.raises(errors.InvalidSetting, match="to kill"):
                deployment.kill(role, index)
    with pytest.raises(errors.DeploymentClosed):
        deployment.kill()


def test_batching_options_change_live():
    with kit.deploy(Doubling(max_batch_size=4), processes=1) as deployment:
        deployment.switch(batching={"max_batch_size": 2})
        assert deployment.handler.batching_options() == {"max_batch_size": 2}
        assert [p.inference for p in deployment.predict(list(range(9)))] == list(range(0, 18, 2))
        for batching, words in (
            ({"max_batch_size": 0}, "max_batch_size=0"),
            ({"size": 3}, "'size' isn't a batching option"),
            ({"max_batch_tokens": 9}, "needs batch_length_fn"),
        ):
            with pytest.raises(errors.InvalidSetting, match=words):
                deployment.switch(batching=batching)
        assert deployment.handler.batching_options() == {"max_batch_size": 2}


def test_a_budget_can_be_taken_away():
    with kit.deploy(Doubling(), processes=1, memory_budget="1GiB") as deployment:
        deployment.switch(processes=2)
        assert deployment.settings.memory_budget == 1024**3
        deployment.switch(memory_budget="none")
        assert deployment.settings.memory_budget is None


def test_who_asked_is_told_of_the_end():
    told = []
    deployment = kit.deploy(Doubling(), processes=1)
    deployment.at_close(lambda: told.append("first"))
    deployment.at_close(lambda: told.append("second"))()
    deployment.close()
    deployment.close()
    assert told == ["first"]


@pytest.mark.parametrize("after", ["bare loop", "default"])
def test_a_comparison_is_cancelled_at_once(after):
    cancel, seen = Cancel(), []

    def on_progress(done, total, label):
        seen.append((done, total, label))
        if label == after and done:
            threading.Timer(0.3, cancel.cancel).start()

    with pytest.raises(CancelledError):
        kit.compare(
            Doubling(), [1, 2], ["default", "large"], repeats=500, seconds=0.2, progress=False,
            on_progress=on_progress, cancel=cancel,
        )  # fmt: skip
    assert seen[:2] == [(0, 1500, "bare loop"), (1, 1500, "bare loop")]
    assert len(seen) < 100


@pytest.mark.parametrize("free", [0, 1])
def test_a_comparison_is_cancelled_while_a_model_is_loaded(tmp_path, free):
    _cancelled(Gated(str(tmp_path), free), lambda: len(list(tmp_path.glob("load-*"))) > free)


def test_a_comparison_is_cancelled_while_libraries_are_imported(tmp_path, monkeypatch):
    (tmp_path / "slow_library.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'began')!r}).touch()\ntime.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    handler = Doubling()
    handler.preload = ("slow_library",)
    _cancelled(handler, (tmp_path / "began").exists)


def _cancelled(handler, reached):
    """Cancel a comparison once it has come to something that takes a minute."""
    cancel, found = Cancel(), []

    def run():
        try:
            kit.compare(handler, [1, 2], ["default"], progress=False, seconds=0.1, cancel=cancel)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(reached, "what is to be cancelled")
    cancel.cancel()
    thread.join(30)
    assert [type(error) for error in found] == [CancelledError]

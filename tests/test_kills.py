"""Processes killed with the panel's buttons or `kill`: nothing fails, and no example is suspected of having done it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import kit
from tests.widgets_helpers import until
from widgets import ServingPanel

TIMES = 5  # more than the deaths that make a suspect, the tries of a chunk, and the loads of a replacement


class Waiting(kit.ModelHandler):
    """Doubles numbers once the file "go" is there; its batches, and loads if `loading`, leave their pids as files."""

    def __init__(self, folder: Path, *, loading: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.loading = loading

    def load_model(self) -> Any:
        if self.loading and (self.folder / "slow").exists():
            self._wait()
        return []

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        if not self.loading:
            self._wait()
        return [example * 2 for example in batch]

    def _wait(self) -> None:
        (self.folder / f"at-{os.getpid()}").touch()
        until((self.folder / "go").exists, "go", 60)


def came(folder: Path, before: int) -> None:
    until(lambda: len(list(folder.glob("at-*"))) > before, "a process that has come so far")


def unsuspected(deployment: Any) -> None:
    assert deployment.counters["failed"] == 0
    assert deployment.counters["deaths"] == 0
    assert [event.text for event in deployment.snapshot().events if event.kind == "quarantine"] == []


@pytest.mark.parametrize(("mode", "role"), [("default", "worker"), ("shared", "worker"), ("large", "host")])
def test_the_example_at_hand_is_no_suspect_however_often_its_process_is_killed(mode: str, role: str, tmp_path: Path):
    with kit.deploy(Waiting(tmp_path), mode=mode, processes=1) as deployment:
        (tmp_path / "go").touch()
        assert deployment.predict([1], timeout=60)[0].inference == 2
        (tmp_path / "go").unlink()
        [file.unlink() for file in tmp_path.glob("at-*")]
        answers = deployment.submit([1, 2, 3])
        for killed in range(TIMES):
            came(tmp_path, killed)
            deployment.kill(role)
        came(tmp_path, TIMES)
        (tmp_path / "go").touch()
        assert [answer.inference for answer in answers.result(60)] == [2, 4, 6]
        assert deployment.counters["retried"] >= 3 * TIMES
        unsuspected(deployment)


def test_a_replacement_killed_while_it_loads_is_no_failed_load(tmp_path: Path):
    with kit.deploy(Waiting(tmp_path, loading=True), processes=1) as deployment:
        (tmp_path / "slow").touch()
        for killed in range(TIMES):
            deployment.kill()
            came(tmp_path, killed)
        (tmp_path / "go").touch()
        assert deployment.predict([4], timeout=60)[0].inference == 8
        unsuspected(deployment)


@pytest.mark.parametrize(("mode", "role"), [("default", "worker"), ("large", "host")])
def test_a_home_killed_while_it_loads_a_model_by_key_is_no_failed_load(mode: str, role: str, tmp_path: Path):
    handler = kit.KeyedModelHandler([kit.KeyModelMapping(["a"], Waiting(tmp_path, loading=True))])
    (tmp_path / "slow").touch()
    with kit.deploy(handler, mode=mode, processes=1) as deployment:
        answers = deployment.submit([("a", 1)])
        for killed in range(TIMES):
            came(tmp_path, killed)
            deployment.kill(role)
        came(tmp_path, TIMES)
        (tmp_path / "go").touch()
        assert answers.result(60)[0][1].inference == 2
        unsuspected(deployment)


class Slow(kit.ModelHandler):
    """Takes 20 ms a batch, so that there is always one in hand."""

    def load_model(self) -> Any:
        return []

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        import time

        time.sleep(0.02)
        return [example * 2 for example in batch]


@pytest.mark.parametrize("mode", ["default", "medium", "large", "shared"])
def test_the_panels_buttons_kill_under_load_and_nothing_fails(mode: str):
    with kit.deploy(Slow(max_batch_size=4), mode=mode, processes=2) as deployment:
        panel = ServingPanel(deployment, list(range(40)))
        panel.start_load().result(30)
        buttons = ["kill_worker"] + ["kill_host"] * deployment.settings.remote
        for name in buttons * 3:
            deaths = _killed(deployment)
            answered = deployment.counters["answered"]
            getattr(panel._view, name).click()
            until(lambda deaths=deaths: _killed(deployment) > deaths, "a killed process")
            until(lambda answered=answered: deployment.counters["answered"] > answered + 100, "answers afterwards")
        report = panel.stop_load().result(60)
        assert (report.failed, report.errors) == (0, ())
        assert deployment.counters["retried"] > 0
        unsuspected(deployment)
        assert panel._view.errors.value == ""
        panel.close()


def _killed(deployment: Any) -> int:
    return sum("on purpose" in event.text for event in deployment.snapshot(600).events)

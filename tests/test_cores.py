"""In-process inference beside deployments of the same process: how many threads torch may use, and after."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kit
import kit.cores
from kit import RunInference
from tests.widgets_helpers import until


def torch() -> Any:
    """Imported here only: workers, which import this module, needn't."""
    import torch

    return torch


class Counting(kit.ModelHandler):
    """Answers with torch's number of threads; sets it if asked to."""

    def load_model(self) -> Any:
        return []

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        found = [torch().get_num_threads()] * len(batch)
        if inference_args:
            torch().set_num_threads(inference_args["threads"])
        return found

    def validate_inference_args(self, inference_args: Any) -> None:
        return


class Held(kit.ModelHandler):
    """Computes until the file "go" is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(max_batch_size=1)
        self.folder = folder

    def load_model(self) -> Any:
        return []

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        until((self.folder / "go").exists, "go", 60)
        return list(batch)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with four cores, on which nobody has chosen a number of threads."""
    for name in kit.cores.DECIDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kit.cores._cores", lambda: 4)
    monkeypatch.setattr("kit.cores._defaults", lambda: {4})
    before = torch().get_num_threads()
    torch().set_num_threads(4)
    yield
    torch().set_num_threads(before)


def threads(args: Any = None) -> int:
    (prediction,) = [1] | RunInference(Counting(), args)
    return int(getattr(prediction, "inference", prediction))


@contextmanager
def busy(folder: Path, mode: str, processes: int) -> Iterator[Any]:
    """A deployment that computes as long as this lasts."""
    with kit.deploy(Held(folder), mode=mode, processes=processes, sample=None) as deployment:
        answers = deployment.submit(list(range(processes)))
        yield deployment
        (folder / "go").touch()
        answers.result(60)


@pytest.mark.parametrize(("mode", "processes", "left"), [("default", 2, 2), ("large", 2, 3), ("default", 5, 1)])
def test_busy_deployments_are_left_their_cores(mode: str, processes: int, left: int, tmp_path: Path) -> None:
    assert threads() == 4
    with busy(tmp_path, mode, processes):
        assert threads() == left
        assert torch().get_num_threads() == 4
    assert threads() == 4


def test_an_idle_deployment_needs_no_core() -> None:
    with kit.deploy(Counting(), processes=3):
        assert threads() == 4


def test_whoever_chose_a_number_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy(tmp_path, "default", 3):
        assert threads({"threads": 2}) == 1  # chosen by the handler while it ran
        assert torch().get_num_threads() == 2
        assert threads() == 2
        torch().set_num_threads(4)
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        assert threads() == 4


def test_several_threads_at_once_all_go_back(tmp_path: Path) -> None:
    found: list[tuple[int, int]] = []

    def ask() -> None:
        for _ in range(50):
            found.append((threads(), torch().get_num_threads()))

    with busy(tmp_path, "default", 3):
        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert {inside for inside, _ in found} == {1}
        assert torch().get_num_threads() == 4
    assert threads() == 4

"""Closing in the middle of things, and what stays true of requests that are cancelled."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import psutil
import pytest

import kit
from kit import errors
from kit.engine.asking import preload_of
from kit.engine.processes import ForkServer
from kit.settings import Settings


class Gated(kit.ModelHandler):
    """Notes each example in a folder when it is taken up, and answers 7 only once the folder has a file "open"."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder

    def load_model(self) -> Any:
        return object()

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        for example in batch:
            (self.folder / str(example)).touch()
        while 7 in batch and not (self.folder / "open").exists():
            time.sleep(0.005)
        return list(batch)


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


@pytest.mark.parametrize("mode", ["default", "large"])
def test_closing_ends_the_topology_that_a_switch_is_draining_though_the_fork_server_lives_on(tmp_path, mode):
    from kit.deploying import start

    handler = Gated(tmp_path)
    server = ForkServer(preload_of(handler)).retain()
    try:
        deployment = start(handler, Settings.make(handler, mode, 1), forkserver=server)
        old = {process.pid for process in deployment._engine.topology.processes}
        answer = deployment.submit([7])
        wait_for((tmp_path / "7").exists)  # so the old topology can't be drained
        switching = threading.Thread(target=deployment.switch, args=("medium",))
        switching.start()
        wait_for(lambda: deployment.mode == "medium")
        new = {process.pid for process in deployment._engine.topology.processes}
        deployment.close()
        assert server.pid is not None
        left = {process.pid for process in psutil.Process(server.pid).children(recursive=True)}
        assert not left & (old | new)
        with pytest.raises(errors.DeploymentClosed):
            answer.result(5)
        switching.join(20)
        assert not switching.is_alive()
    finally:
        server.close()


def test_a_cancelled_request_is_computed_no_further_and_what_is_under_way_harms_nobody(tmp_path):
    with kit.deploy(Gated(tmp_path, max_batch_size=1), processes=1) as deployment:
        doomed = deployment.submit([7, 1, 2, 3])
        wait_for((tmp_path / "7").exists)
        assert doomed.cancel()
        with pytest.raises(CancelledError):
            doomed.result(1)
        assert deployment.counters["cancelled"] == 4
        other = deployment.submit([5])  # behind the batch that can't be interrupted
        (tmp_path / "open").touch()
        assert [p.inference for p in other.result(20)] == [5]
        assert not (tmp_path / "3").exists()

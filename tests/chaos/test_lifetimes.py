"""Nothing is orphaned: however the owner ends, its serving processes end too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

PRELUDE = """
import os, sys, time, kit
class Handler(kit.ModelHandler):
    def load_model(self):
        return 1
    def run_inference(self, batch, model, inference_args=None):
        if batch[0] == "hold":
            import ctypes
            print("holding", flush=True)
            ctypes.PyDLL(None).sleep(60)   # C code that keeps the GIL
        if batch[0] == "busy":
            time.sleep(60)
        return list(batch)
def descendants():
    import psutil
    return [p.pid for p in psutil.Process().children(recursive=True)]
"""


def start(script: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pids_of(process: subprocess.Popen) -> list[int]:
    assert process.stdout is not None
    while True:
        line = process.stdout.readline()
        assert line, "the script ended early"
        if line.startswith("pids"):
            return [int(word) for word in line.split()[1:]]


def all_gone(pids: list[int], within_s: float = 10) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            return True
        time.sleep(0.02)
    return False


SERVE = 'd = kit.deploy(Handler(), mode="large", processes=2)\nprint("pids", *descendants(), flush=True)\n'


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killing_the_owner_ends_its_processes(number):
    with start(SERVE + "time.sleep(60)") as owner:
        pids = pids_of(owner)
        assert len(pids) == 4  # fork server, host, two workers
        owner.send_signal(number)
        owner.wait(10)
        assert all_gone(pids)


def test_a_fork_of_the_owner_that_lives_on_keeps_nothing_alive():
    script = SERVE + (
        'child = os.fork()\nif child == 0:\n    time.sleep(60)\nprint("fork", child, flush=True)\ntime.sleep(60)'
    )
    with start(script) as owner:
        pids = pids_of(owner)
        fork = int(owner.stdout.readline().split()[1])
        owner.kill()
        owner.wait(10)
        try:
            assert all_gone(pids)
        finally:
            os.kill(fork, signal.SIGKILL)


def test_a_worker_that_holds_the_gil_in_c_code_ends_with_its_owner():
    script = """
    d = kit.deploy(Handler(), processes=1)
    print("pids", *descendants(), flush=True)
    d.submit(["hold"])
    time.sleep(60)
    """
    with start(script) as owner:
        pids = pids_of(owner)
        assert owner.stdout.readline()  # the worker's "holding", passed on
        assert owner.poll() is None
        owner.kill()
        owner.wait(10)
        assert all_gone(pids)


def test_an_owner_that_ends_normally_without_closing_leaves_nothing():
    with start(SERVE) as owner:
        pids = pids_of(owner)
        assert owner.wait(20) == 0
        assert all_gone(pids)


def test_a_process_that_a_handler_started_ends_too():
    script = """
    import subprocess
    class Starter(Handler):
        def load_model(self):
            return subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
        def run_inference(self, batch, model, inference_args=None):
            return [model.pid for _ in batch]
    d = kit.deploy(Starter(), processes=1)
    print("pids", d.predict([1])[0].inference, *descendants(), flush=True)
    d.close()
    time.sleep(60)
    """
    with start(script) as owner:
        pids = pids_of(owner)
        try:
            assert all_gone(pids)
        finally:
            owner.kill()


def test_closing_in_the_middle_of_a_long_batch_is_quick():
    script = """
    d = kit.deploy(Handler(), processes=1)
    future = d.submit(["busy"])
    time.sleep(0.5)
    began = time.monotonic()
    d.close()
    print("took", time.monotonic() - began, type(future.exception()).__name__, flush=True)
    """
    with start(script) as owner:
        words = owner.stdout.readline().split()
        assert words[2] == "DeploymentClosed"
        assert float(words[1]) < 5
        assert owner.wait(20) == 0


def test_deploying_in_the_same_name_again_leaves_one_deployment():
    script = """
    for _ in range(3):
        d = kit.deploy(Handler(), processes=2)
        assert d.predict([7])[0].inference == 7
    time.sleep(1)
    print("count", len(descendants()), flush=True)
    """
    with start(script) as owner:
        assert owner.stdout.readline().split() == ["count", "3"]
        assert owner.wait(20) == 0

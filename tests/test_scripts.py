"""Scripts without a ``__main__`` guard, notebook cells, and interrupts, each in a fresh interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

SCRIPT = """
from dataclasses import dataclass
import kit

@dataclass
class Answer:
    value: int

def helper(x):
    return Answer(x * FACTOR)

FACTOR = 3

class Mine(kit.ModelHandler):
    def load_model(self):
        return helper

    def run_inference(self, batch, model, inference_args=None):
        return [model(example) for example in batch]

examples = [1, 2, 3]
for mode in ("default", "medium", "large", "shared"):
    with kit.deploy(Mine(), mode=mode) as deployment:
        predictions = examples | kit.RunInference(deployment)
        assert [p.inference for p in predictions] == [Answer(3), Answer(6), Answer(9)], predictions
        assert type(predictions[0].inference) is Answer
        print("served", mode)
print("loads of the script:", __name__)
"""


def _run(*command: str, cwd: Path, timeout: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=_env(cwd)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _env(cwd: Path) -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": root, "IPYTHONDIR": str(cwd / "ipython")}


def test_a_class_of_an_unguarded_script_is_served_in_every_mode(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    out = _run("script.py", cwd=tmp_path)
    assert out.split("\n")[:-1] == [
        *(f"served {mode}" for mode in ("default", "medium", "large", "shared")),
        "loads of the script: __main__",
    ], "no process may run the script again"


def test_a_class_of_a_cell_is_served_in_every_mode_and_a_new_one_takes_its_place(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    (tmp_path / "script.py").write_text(SCRIPT)
    cells = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
def run(cell):
    result = shell.run_cell(cell)
    result.raise_error()
run({SCRIPT!r})
run({SCRIPT.replace("FACTOR = 3", "FACTOR = 3 # edited")!r})
run("%run script.py")
run("%run script.py")
"""
    (tmp_path / "cells.py").write_text(cells)
    assert _run("cells.py", cwd=tmp_path).count("served shared") == 4


def test_a_cell_that_deploys_run_three_times_leaves_one_deployment(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    cells = f"""
from IPython.core.interactiveshell import InteractiveShell
import psutil
shell = InteractiveShell.instance()
cell = {SCRIPT.split("examples =")[0] + "deployment = kit.deploy(Mine(), mode='default')"!r}
for _ in range(3):
    shell.run_cell(cell).raise_error()
    shell.run_cell("deployment.predict([1])").raise_error()
from kit.engine.core import running
print(len(running), len(psutil.Process().children(recursive=True)))
"""
    (tmp_path / "cells.py").write_text(cells)
    assert _run("cells.py", cwd=tmp_path).split("\n")[-2] == "1 3", "one fork server and two workers"


def test_a_timed_out_computation_does_not_keep_the_script_alive(tmp_path: Path) -> None:
    script = """
    import time, kit
    class Hangs(kit.ModelHandler):
        def load_model(self):
            return None
        def run_inference(self, batch, model, inference_args=None):
            while True:
                time.sleep(0.01)
    results = [1] | kit.RunInference(Hangs()).with_exception_handling(timeout=0.1)
    print(type(results[0]).__name__)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    assert _run("script.py", cwd=tmp_path, timeout=20).strip() == "Failure"


INTERRUPTED = """
import sys, threading, time
import kit

class Slow(kit.ModelHandler):
    def load_model(self):
        return 2

    def run_inference(self, batch, model, inference_args=None):
        time.sleep(0.05 * sum(batch))
        return [example * model for example in batch]

how = sys.argv[1]
handler = Slow(max_batch_size=1)
deployment = None if how == "here" else kit.deploy(handler, mode=sys.argv[2])
target = handler if deployment is None else deployment
[0] | kit.RunInference(target)
examples = [1] * 400
print("ready", flush=True)
began = time.monotonic()
try:
    if how == "predict":
        deployment.predict(examples)
    elif how == "stream":
        for _ in iter(examples) | kit.RunInference(target):
            pass
    else:
        examples | kit.RunInference(target)
except KeyboardInterrupt:
    print("stopped", flush=True)
else:
    print("not interrupted", flush=True)
began = time.monotonic()
print([p.inference for p in [0, 1] | kit.RunInference(target)], time.monotonic() - began < 5, flush=True)
if deployment is not None:
    counters = deployment.counters
    print("deaths", counters["deaths"], "left", counters["accepted"] - sum(
        counters[name] for name in ("answered", "failed", "cancelled")), flush=True)
"""


@pytest.mark.parametrize(
    ("how", "mode", "group"),
    [
        ("here", "", False),
        ("predict", "default", False),
        ("predict", "large", True),
        ("list", "shared", True),
        ("stream", "default", True),
    ],
)
def test_an_interrupt_stops_the_call_at_once_and_serving_goes_on(
    tmp_path: Path, how: str, mode: str, group: bool
) -> None:
    (tmp_path / "script.py").write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, "script.py", how, mode],
        cwd=tmp_path,
        env=_env(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out: Any = process.stdout
        assert out.readline() == "ready\n"
        time.sleep(0.3)  # into the middle of the call
        sent = time.monotonic()
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        assert out.readline() == "stopped\n"
        assert time.monotonic() - sent < 5.0
        assert out.readline() == "[0, 2] True\n"
        if how != "here":
            assert out.readline() == "deaths 0 left 0\n"
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        out.close()


def test_an_interrupt_while_deploying_leaves_nothing_behind(tmp_path: Path) -> None:
    script = """
    import psutil, time, kit
    class Slow(kit.ModelHandler):
        def load_model(self):
            print("loading", flush=True)
            time.sleep(60)
    try:
        kit.deploy(Slow())
    except KeyboardInterrupt:
        print("stopped", [p.name() for p in psutil.Process().children(recursive=True)], flush=True)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, env=_env(tmp_path), stdout=subprocess.PIPE, text=True
    )
    out: Any = process.stdout
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until and len(psutil.Process(process.pid).children(recursive=True)) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        lines = out.read().split("\n")
        assert "stopped []" in lines, lines
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        out.close()

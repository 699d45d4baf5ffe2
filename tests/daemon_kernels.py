"""Kernels for the tests of named deployments: Python processes that do what they are told, one line after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

_LOOP = """
import json, sys, traceback
space = {"__name__": "__main__"}
for line in sys.stdin:
    code, expression = json.loads(line)
    try:
        exec(code, space)
        found = eval(expression, space) if expression else None
        answer = ["ok", found]
    except BaseException as error:
        answer = [type(error).__name__, str(error)]
    print("\\x00" + json.dumps(answer), flush=True)
"""

#: A handler as a notebook's cell would define it; its class exists in that kernel only.
DOUBLE = """
import kit
class Double(kit.ModelHandler):
    factor = 2
    def load_model(self): return self.factor
    def run_inference(self, batch, model, inference_args=None): return [x * model for x in batch]
"""

#: One that is slow, and says by a file that it computes.
SLOW = """
import kit, pathlib, time
class Slow(kit.ModelHandler):
    def __init__(self, folder, seconds):
        super().__init__(max_batch_size=1)
        self.folder, self.seconds = folder, seconds
    def load_model(self): return None
    def run_inference(self, batch, model, inference_args=None):
        for example in batch:
            pathlib.Path(self.folder, str(example)).touch()
        time.sleep(self.seconds)
        return batch
"""

#: One that says by a file that it loads, and loads until another one is there.
LOADS = """
import kit, pathlib, time
class Loads(kit.ModelHandler):
    def __init__(self, folder, factor):
        super().__init__()
        self.folder, self.factor = pathlib.Path(folder), factor
    def load_model(self):
        (self.folder / f"loads {self.factor}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)
        return self.factor
    def run_inference(self, batch, model, inference_args=None): return [x * model for x in batch]
"""


class Kernel:
    """A Python process of its own process group, as a notebook's kernel is."""

    def __init__(self, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **env},
        )

    def send(self, code: str, expression: str = "") -> None:
        """Start a cell."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([code, expression]) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """The value of the cell's expression; a RuntimeError with the error's name and text where it raised."""
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline()
            assert line, "the kernel is gone"
            if line.startswith("\x00"):
                break
        state, value = json.loads(line[1:])
        if state != "ok":
            raise RuntimeError(f"{state}: {value}")
        return value

    def run(self, code: str, expression: str = "") -> Any:
        """Run a cell."""
        self.send(code, expression)
        return self.receive()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> None:
        """SIGINT to the whole process group, as Jupyter does it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Wait until something is so; fails when it isn't in time."""
    until = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < until, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)
    return found


def wait_for_file(path: Path) -> None:
    """Wait until another process has made a file."""
    wait_for(path.exists, f"{path} appears")

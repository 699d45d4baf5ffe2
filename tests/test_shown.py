"""A cell that deploys and shows what it deployed, run again: IPython's Out keeps no deployment of an earlier run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CELL = "d = kit.deploy(Double(), processes=1)\nd"
ASK = "print('asked', [p.inference for p in _.predict([4])])"
SCRIPT = '''
import gc, weakref
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
run = lambda source: shell.run_cell(source, store_history=True).raise_error()
run("""
import kit
from kit.engine.core import running
class Double(kit.ModelHandler):
    def load_model(self):
        return 2
    def run_inference(self, batch, model, inference_args=None):
        return [model * example for example in batch]
""")
{body}
run("kit.close_all()")
'''


def run(body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{body}", body)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_cell_that_shows_what_it_deploys_leaves_one_deployment_however_often_it_runs() -> None:
    said = run(f"for _ in range(3): run({CELL!r})\nrun('print(\"left\", len(running))')\nrun({CELL!r})\nrun({ASK!r})")
    assert "left 1" in said
    assert "asked [8]" in said, "what was shown last can still be asked, as _"


def test_a_deployment_that_only_out_has_is_kept() -> None:
    said = run(f"run('kit.deploy(Double(), processes=1)')\nrun({ASK!r})")
    assert "asked [8]" in said


UNASSIGNED = "kit.deploy(Double(), processes=1)"
LOADED = "d = kit.deploy(Double(), processes=1)\nload = kit.LoadGenerator(d, [1, 2], rate=20).start()\nload"
#: A load generator's thread is let go by this one, and lets its deployment go when it wakes.
SETTLE = """
import time
from kit.engine.core import running
until = time.monotonic() + 20
while len(running) > 1 and time.monotonic() < until:
    time.sleep(0.01)
"""
IN_A_FUNCTION = """
def broken():
    d = kit.deploy(Double(), processes=1)
    raise ValueError("meant")
broken()
"""


@pytest.mark.parametrize("cell", [UNASSIGNED, LOADED, IN_A_FUNCTION])
def test_a_cell_that_runs_again_leaves_one_deployment_whoever_had_it(cell: str) -> None:
    again = f"for _ in range(3): shell.run_cell({cell!r}, store_history=True)\n"
    said = run(again + SETTLE + "run('print(\"left\", len(running))')")
    assert "left 1" in said


def test_deployments_that_a_variable_or_a_list_has_are_kept_when_their_cell_runs_again() -> None:
    cells = ["kept = []", "kept.append(kit.deploy(Double(), processes=1))\nkept[-1]"]
    body = f"run({cells[0]!r})\nfor _ in range(2): run({cells[1]!r})\nrun('print(len(running), kept[0].predict([4]))')"
    said = run(body)
    assert "2 [" in said
    asked = "print('asked', other.predict([4])[0].inference, len(running))"
    assert "asked 8 2" in run("\n".join(f"run({cell!r})" for cell in (UNASSIGNED, "other = _", UNASSIGNED, asked)))

"""A cell that deploys and shows what it deployed, run again: IPython's Out keeps no deployment of an earlier run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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

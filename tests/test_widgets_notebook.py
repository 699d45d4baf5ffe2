"""Notebooks that are run without a page, as they are saved: the panel's static twin, progress bars."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import nbformat

CELLS = [
    """
import kit
from tests.models import Doubling
from widgets import ServingPanel
deployment = kit.deploy(Doubling(), processes=2)
ServingPanel(deployment, list(range(10)))
""",
    """
assert [prediction.inference for prediction in deployment.predict(list(range(500)))] == list(range(0, 1000, 2))
deployment.switch("shared")
""",
    # Requests wait while it closes.
    "waiting = deployment.submit(list(range(200_000))); deployment.close(); print(waiting.exception())",
]


def executed(cells, tmp_path, **options):
    """A notebook of these cells, run and saved."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = tmp_path / "panel.ipynb"
    nbformat.write(notebook, path)
    # In a process of its own: the client leaves the sockets of its event loop open.
    code = f"import nbclient, nbformat; n = nbformat.read({str(path)!r}, 4); "
    code += f"nbclient.execute(n, timeout=120, **{options!r}); "
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", f"{code}nbformat.write(n, {str(path)!r})"], check=True, timeout=200, env=env)
    return nbformat.read(path, 4)


def test_the_twin_is_in_the_saved_notebook_and_tells_the_end(tmp_path):
    notebook = executed(CELLS, tmp_path)
    outputs = notebook.cells[0].outputs
    twins = [output.data for output in outputs if "kit-twin" in output.get("data", {}).get("text/html", "")]
    assert len(twins) == 1
    assert "data:image/png;base64," in twins[0]["text/html"]
    answered = re.search(r"answered ([\d,]+)", twins[0]["text/plain"])
    assert answered is not None, twins[0]["text/plain"]
    assert 500 <= int(answered[1].replace(",", "")) < 200_500  # some of those that waited had their answer
    assert "default → shared" in twins[0]["text/plain"]
    assert "failed: 0, and " in twins[0]["text/plain"]
    assert "that had no answer yet when the deployment was closed" in twins[0]["text/plain"]
    widget = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert len(widget) == 1
    assert widget[0].data["text/plain"].startswith("ServingPanel;")
    assert len(json.dumps(notebook)) < 300_000


BARS = [
    """
from kit.progress import progress
with progress(100, "predictions", delay_s=0) as bar:
    for _ in range(50):
        bar.update(2)
""",
    """
with progress(100, "a run that fails", delay_s=0) as bar:
    for _ in range(10):
        bar.update(4)
    raise ValueError("bad example")
""",
]


def test_a_saved_notebook_shows_progress_bars_as_they_ended(tmp_path):
    done, failed = executed(BARS, tmp_path, allow_errors=True).cells
    (bar,) = done.outputs
    assert bar.data["text/plain"].startswith("predictions: 100%")
    assert "100/100" in bar.data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" not in bar.data  # it has gone from the page
    bar = failed.outputs[0]
    assert "40/100" in bar.data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in bar.data  # it stays, in red

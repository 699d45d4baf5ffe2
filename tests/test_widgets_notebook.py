"""The panel in a notebook that is run without a page: the static twin is saved, and small."""

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


def test_the_twin_is_in_the_saved_notebook_and_tells_the_end(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    path = tmp_path / "panel.ipynb"
    nbformat.write(notebook, path)
    # In a process of its own: the client leaves the sockets of its event loop open.
    code = f"import nbclient, nbformat; n = nbformat.read({str(path)!r}, 4); nbclient.execute(n, timeout=120); "
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", f"{code}nbformat.write(n, {str(path)!r})"], check=True, timeout=200, env=env)
    notebook = nbformat.read(path, 4)
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

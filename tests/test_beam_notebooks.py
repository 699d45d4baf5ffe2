"""The README's lines for Beam in a kernel, where Beam's own support of notebooks doesn't know this pandas."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_widgets_notebook import executed

KIT = "import kit"
BEAM = "import apache_beam as beam"
SERVE = """
deployment = kit.deploy(kit.ModelHandler.from_callable(lambda: 2, lambda batch, model: [model * x for x in batch]))
"""
PIPELINE = """
with beam.Pipeline() as pipeline:
    pipeline | beam.Create([1, 2, 3]) | deployment.to_beam() | beam.Map(lambda found: print("found", found))
"""


@pytest.mark.parametrize(
    "cells", [(KIT, SERVE, BEAM + PIPELINE), (BEAM, KIT, SERVE, PIPELINE)], ids=["kit first", "beam first"]
)
def test_a_pipeline_can_be_built_without_importing_kit_beam(cells: tuple[str, ...], tmp_path: Path) -> None:
    notebook = executed([*cells, "deployment.close()"], tmp_path)
    outputs = [output.get("text", "") for output in notebook.cells[len(cells) - 1].outputs]
    assert sorted(line for line in "".join(outputs).splitlines() if line.startswith("found")) == [
        f"found {number}" for number in (2, 4, 6)
    ]


def test_the_kit_imports_no_beam_in_a_notebook(tmp_path: Path) -> None:
    notebook = executed([KIT, "print('apache_beam' in __import__('sys').modules)"], tmp_path)
    assert notebook.cells[1].outputs[0].text == "False\n"

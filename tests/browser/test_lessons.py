"""Lessons in JupyterLab: every cell runs, and nothing but what they mean to show is on the page."""

from __future__ import annotations

import pytest

from tests.browser.conftest import Opened
from tests.browser.jupyter import ROOT
from tests.browser.page import copy_notebook


@pytest.mark.timeout(600)
def test_basic_inference(opened: Opened) -> None:
    page = opened()
    count = copy_notebook(ROOT / "notebooks" / "01_basic_inference.ipynb", page.server.work / "lesson.ipynb")
    page.open("lesson.ipynb")
    page.run_all(500)
    for number, index in enumerate(range(0, count, 3)):
        page.show_cell(index)
        page.page.wait_for_timeout(300)
        page.shot(f"01-{number:02}")
    assert page.errors == []

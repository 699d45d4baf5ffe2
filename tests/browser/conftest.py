"""Fixtures of the browser tests: a browser, a Jupyter server and a page for each test, all gone after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.browser import find
from tests.browser.jupyter import JupyterServer
from tests.browser.page import CHROMIUM, NotebookPage

#: What `opened` gives: opened(dark=..., height=...) -> NotebookPage
Opened = Callable[..., NotebookPage]


@pytest.fixture(scope="session")
def browser_path() -> Path:
    """The browser; without one the test is skipped, or fails where CI is set."""
    found = find.browser()
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(find.ADVICE)
    return found


@pytest.fixture
def opened(browser_path: Path, tmp_path: Path) -> Iterator[Opened]:
    """Start a server with temporary folders and a page of a fresh browser, light or dark."""
    with ExitStack() as stack:

        def start(*, dark: bool = False, height: int = 1000) -> NotebookPage:
            server = stack.enter_context(JupyterServer(tmp_path, dark))
            playwright = stack.enter_context(sync_playwright())
            context = playwright.chromium.launch_persistent_context(
                tmp_path / "browser",
                executable_path=browser_path,
                headless=True,
                args=CHROMIUM,
                viewport={"width": 1400, "height": height},
                color_scheme="dark" if dark else "light",
            )
            stack.callback(context.close)
            context.set_default_timeout(60_000)
            return NotebookPage(context.pages[0] if context.pages else context.new_page(), server)

        yield start

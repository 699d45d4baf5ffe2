"""Fixtures of the browser tests: a browser, a Jupyter server and a page for each test, all gone after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.browser import find
from tests.browser.page import NotebookPage
from tests.browser.session import session

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
            return stack.enter_context(session(browser_path, tmp_path, dark=dark, height=height))

        yield start

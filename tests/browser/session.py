"""A Jupyter server and a fresh browser with one page on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.jupyter import JupyterServer
from tests.browser.page import CHROMIUM, NotebookPage


@contextmanager
def session(browser: Path, folder: Path, *, dark: bool = False, height: int = 1000) -> Iterator[NotebookPage]:
    """A page of 1400 x `height` pixels; all that is written goes to `folder`, all is gone at the end."""
    with ExitStack() as stack:
        server = stack.enter_context(JupyterServer(folder, dark))
        playwright = stack.enter_context(sync_playwright())
        context = playwright.chromium.launch_persistent_context(
            folder / "browser",
            executable_path=browser,
            headless=True,
            args=CHROMIUM,
            viewport={"width": 1400, "height": height},
            color_scheme="dark" if dark else "light",
        )
        stack.callback(context.close)
        context.set_default_timeout(60_000)
        yield NotebookPage(context.pages[0] if context.pages else context.new_page(), server)

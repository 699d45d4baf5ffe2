"""A notebook open in a real browser: run it, read its cells and widgets, take pictures of it.

State is read from the front end's own model of the notebook, which knows the cells that are scrolled out of view too.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Locator, Page

from tests.browser.jupyter import JupyterServer

SHOTS = Path(__file__).resolve().parent / "shots"
#: Chromium as root, in a container, without its own traffic.
CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
#: An error of Notebook 7 itself, seen with an empty notebook too.
NOT_OURS = re.compile(r"Cannot read properties of undefined \(reading 'schema'\)")

_CELLS = """() => {
  const tracked = window.jupyterapp.shell.currentWidget;
  return tracked.content.widgets.map((cell) => {
    const json = cell.model.toJSON();
    return {type: json.cell_type, count: json.execution_count ?? null, outputs: json.outputs ?? [],
            state: cell.model.executionState ?? "idle"};
  });
}"""
_RUN_CELL = """async (index) => {
  const content = window.jupyterapp.shell.currentWidget.content;
  content.activeCellIndex = index;
  content.deselectAll();
  await window.jupyterapp.commands.execute("notebook:run-cell");
}"""
_ADD_CELL = """(source) => {
  const model = window.jupyterapp.shell.currentWidget.content.model.sharedModel;
  model.insertCell(model.cells.length, {cell_type: "code", source});
}"""
_SHOW_CELL = """async (index) => {
  const content = window.jupyterapp.shell.currentWidget.content;
  content.activeCellIndex = index;
  await content.scrollToItem(index, "start");
}"""


class NotebookPage:
    """One notebook in one browser page, in JupyterLab or Notebook 7."""

    def __init__(self, page: Page, server: JupyterServer) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._note(f"uncaught: {error}"))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._note(f"{message.text} ({message.location.get('url', '')})")

    def _note(self, text: str) -> None:
        if not NOT_OURS.search(text):
            self.errors.append(text)

    def open(self, name: str, *, app: str = "lab", kernel: bool = True) -> None:
        """Open ``work/<name>`` in "lab" or in "notebook" (Notebook 7), and wait until it is there."""
        path = f"/lab/tree/{name}?reset" if app == "lab" else f"/notebooks/{name}"
        self.page.goto(self.server.url + path)
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length > 0")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        if kernel:
            self.server.wait_for_kernel()

    def choose_no_kernel(self) -> None:
        """Answer the question for a kernel with none."""
        dialog = self.page.locator(".jp-Dialog")
        dialog.locator("select").select_option(label="No Kernel")
        dialog.locator("button.jp-mod-accept").click()

    def run_all(self, timeout_s: float = 300.0) -> None:
        """Run every cell through the menu and wait for the last one.

        Raises:
            AssertionError: a cell ended with an error; it is in the message.
        """
        self._menu("Run", "runmenu:run-all")
        self.wait_until_run(timeout_s)

    def restart_and_run_all(self, timeout_s: float = 300.0) -> None:
        """Restart the kernel through the menu, confirm, run every cell, wait for the last one."""
        self._menu("Run", "runmenu:restart-and-run-all")
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()
        self.wait_for(lambda: all(cell["count"] is None for cell in self.cells("code")), 60, "outputs cleared")
        self.wait_until_run(timeout_s)

    def wait_until_run(self, timeout_s: float) -> None:
        """Wait until every code cell has run.

        Raises:
            AssertionError: one ended with an error, or time is over.
        """

        def done() -> bool:
            cells = self.cells("code")
            for cell in cells:
                for output in cell["outputs"]:
                    assert output["output_type"] != "error", "\n".join(output["traceback"])
            return all(cell["count"] is not None and cell["state"] == "idle" for cell in cells)

        self.wait_for(done, timeout_s, "every cell run")

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Look at `condition` ten times a second until it holds.

        Raises:
            AssertionError: it doesn't within `timeout_s` seconds.
        """
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, f"not within {timeout_s:.0f} s: {what}"
            self.page.wait_for_timeout(100)

    def cells(self, kind: str = "") -> list[dict[str, Any]]:
        """Cells as the front end has them: type, count (None before it ran), state, outputs."""
        found: list[dict[str, Any]] = self.page.evaluate(_CELLS)
        return [cell for cell in found if not kind or cell["type"] == kind]

    def run_cell(self, index: int, timeout_s: float = 60.0) -> str:
        """Run the cell at `index` (from the end when negative); returns the text that it printed or showed."""
        index = index % len(self.cells())
        before = self.cells()[index]["count"]
        self.page.evaluate(_RUN_CELL, index)

        def done() -> bool:
            cell = self.cells()[index]
            return bool(cell["state"] == "idle" and cell["count"] not in (None, before))

        self.wait_for(done, timeout_s, f"cell {index} run")
        outputs = self.cells()[index]["outputs"]
        for output in outputs:
            assert output["output_type"] != "error", "\n".join(output["traceback"])
        return text_of(outputs)

    def printed(self, index: int) -> str:
        """What the cell at `index` shows as text."""
        return text_of(self.cells()[index]["outputs"])

    def add_and_run(self, source: str) -> str:
        """Add a code cell at the end and run it; returns the text that it printed or showed."""
        self.page.evaluate(_ADD_CELL, source)
        return self.run_cell(-1)

    def focused(self) -> str:
        """What has the keyboard's focus: its value when it is a radio button, else its text."""
        found: str = self.page.evaluate(
            "() => { const one = document.activeElement; return one.type === 'radio' ? one.parentElement.innerText "
            ": one.innerText ?? ''; }"
        )
        return found.strip()

    def tab_to(self, words: str, most: int = 60) -> None:
        """Press Tab until what has the focus begins with `words`.

        Raises:
            AssertionError: nothing of the next `most` things that can have it does.
        """
        passed = []
        for _ in range(most):
            self.page.keyboard.press("Tab")
            passed.append(self.focused()[:40])
            if passed[-1].startswith(words):
                return
        raise AssertionError(f"no {words!r} on the way: {passed}")

    def show_cell(self, index: int) -> None:
        """Scroll the cell at `index` to the top of the page."""
        self.page.evaluate(_SHOW_CELL, index)

    def save(self) -> None:
        """Save the notebook with its outputs and widget state."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    def locate(self, selector: str) -> Locator:
        """Elements of the page."""
        return self.page.locator(selector)

    def shot(self, name: str, selector: str | None = None) -> Path:
        """Save a picture of the page, or of the first element that `selector` finds."""
        SHOTS.mkdir(exist_ok=True)
        path = SHOTS / f"{name}.png"
        if selector is None:
            self.page.screenshot(path=path)
        else:
            self.page.locator(selector).first.screenshot(path=path)
        return path

    def _menu(self, name: str, command: str) -> None:
        self.page.locator(f".lm-MenuBar-item:has-text('{name}')").first.click()
        self.page.locator(f".lm-Menu-item[data-command='{command}']").click()


def text_of(outputs: list[dict[str, Any]]) -> str:
    """What outputs show as plain text."""
    parts = []
    for output in outputs:
        found = output.get("text") or output.get("data", {}).get("text/plain", "")
        parts.append(found if isinstance(found, str) else "".join(found))
    return "\n".join(parts)


def copy_notebook(source: Path, target: Path, *, upto: str | None = None, extra: str | None = None) -> int:
    """Copy a notebook without its outputs; returns its number of cells.

    Args:
        upto: the last cell is the first code cell with this text in it; None keeps all.
        extra: source of a code cell added at the end.
    """
    notebook = json.loads(source.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    if upto is not None:
        last = next(
            i for i, cell in enumerate(cells) if cell["cell_type"] == "code" and upto in "".join(cell["source"])
        )
        cells = cells[: last + 1]
    if extra is not None:
        cells.append(_code(extra, "added"))
    target.write_text(json.dumps({**notebook, "cells": cells}), encoding="utf-8")
    return len(cells)


def notebook(*sources: str) -> dict[str, Any]:
    """A notebook of code cells."""
    return {
        "cells": [_code(source, f"cell-{at}") for at, source in enumerate(sources)],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _code(source: str, name: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    return {**cell, "id": name, "source": source}

"""The panel of a page: read as its user reads it, switched with the mouse, and what the kernel says beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.browser.page import NotebookPage, notebook

ANSWER = "answer.json"


def telling(facts: str) -> str:
    """Source of a cell that tells `ask` what the expression `facts` is, through a file: outputs take a longer way."""
    return f"""
import json, os
with open("{ANSWER}.part", "w") as file:
    json.dump({facts}, file)
os.replace("{ANSWER}.part", "{ANSWER}")
"""


#: The last cell of each notebook here: the kernel's own account of what the page shows.
ASK = telling("""{
    "modes": sorted(set(deployment.stats()["mode"])),
    "pids": sorted(deployment.stats().pid.tolist()),
    "rates": list(deployment.history.get("elements_per_s", [])),
    "seen": sorted(set(deployment.history.get("mode", []))),
    "failed": deployment.counters["failed"],
    "text": panel.text(),
}""")
#: A panel with nothing around it, for what doesn't need the lesson.
SMALL = """
import kit
from widgets import ServingPanel

tickets = kit.assets.texts("tickets")[:60]
deployment = kit.deploy(kit.assets.handler("minilm", device="cpu"), mode="default", processes=2)
panel = ServingPanel(deployment, examples=tickets)
panel.start_load(20)
panel
"""
SWITCH_S = 90.0


class Panel:
    """The first panel of a page."""

    def __init__(self, page: NotebookPage, cell: int) -> None:
        self.page = page
        page.show_cell(cell)
        self.root = page.locate(".kit-panel").first
        expect(self.root).to_be_visible()

    def wait_for_mode(self, mode: str) -> None:
        """Wait until the picture of the topology shows `mode`."""
        expect(self.root.locator("svg.kit-topology-svg")).to_have_attribute("data-mode", mode, timeout=SWITCH_S * 1000)

    @property
    def topology(self) -> str:
        """What the picture says."""
        return self.root.locator("svg.kit-topology-svg").get_attribute("aria-label") or ""

    @property
    def pids(self) -> set[str]:
        """Process ids in the picture."""
        found: list[str] = self.root.locator("svg [data-pid]").evaluate_all("all => all.map(one => one.dataset.pid)")
        return set(found)

    def words(self, name: str) -> str:
        """Text of the part with the class `name`."""
        return self.root.locator(f".{name}").first.inner_text()

    @property
    def answered(self) -> int:
        """How many examples the load has answers to, as the panel says."""
        words = self.words("kit-load")
        assert ", 0 failed" in words
        return int(words.split(":")[1].split()[0].replace(",", ""))

    def wait_for_answers(self, count: int) -> None:
        """Wait until the load has `count` answers more than now."""
        start = self.answered
        self.page.wait_for(lambda: self.answered >= start + count, SWITCH_S, f"{count} answers")

    def picture(self, name: str) -> str:
        """Address of a plot, a new one each time it is drawn."""
        return self.root.locator(f"img.{name}").first.get_attribute("src") or ""

    def switch(self, mode: str) -> None:
        """Choose a mode, look at what it would take, apply, wait until it serves and answers."""
        before, numbers, plots = self.answered, self.words("kit-memory-text"), self.picture("kit-memory")
        self.root.locator(".kit-controls label", has_text=f"{mode}:").first.click()
        expect(self.root.locator(".kit-chosen").first).to_contain_text(f"not applied yet: {mode}")
        self.root.get_by_role("button", name="Apply").click()
        self.wait_for_mode(mode)
        assert self.answered > before, "nothing was answered while the mode was switched"
        self.wait_for_answers(4)
        expect(self.root.locator(".kit-answers").first).to_contain_text(f"mode {mode}", timeout=SWITCH_S * 1000)
        # Answers are told as they come; memory is measured once a second.
        self.page.wait_for(
            lambda: self.words("kit-memory-text") != numbers, SWITCH_S, f"other numbers than {numbers!r}"
        )
        self.page.wait_for(lambda: self.picture("kit-memory") != plots, SWITCH_S, "another plot of the memory")


def ask(page: NotebookPage, source: str | None = None) -> Any:
    """What the last cell, or one added at the end with `source`, tells; either was made by `telling`."""
    answer = page.server.work / ANSWER
    answer.unlink(missing_ok=True)
    if source is None:
        page.run_cell(-1)
    else:
        page.add_and_run(source)
    page.wait_for(answer.exists, 60, "the kernel's answer")
    return json.loads(answer.read_text())


def small(work: Path, *, load: bool = True) -> None:
    """Write the small notebook, ``small.ipynb``; its load has begun, or not."""
    source = SMALL if load else SMALL.replace("panel.start_load(20)\n", "")
    (work / "small.ipynb").write_text(json.dumps(notebook(source, ASK)), encoding="utf-8")

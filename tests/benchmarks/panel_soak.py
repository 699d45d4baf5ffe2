"""Memory of kernel and page while a panel is open, at 1 Hz under load, in a browser; ``--minutes`` says how long."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import harness
from tests.benchmarks.harness import Figure
from tests.browser import find
from tests.browser.panel import Panel, small
from tests.browser.session import session

#: What is made at first use isn't growth.
SETTLE_S = 30.0
#: Flat: at the end no more than this above the start. A shorter run says nothing about it.
GROWTH_AT_MOST, SHORTEST_MINUTES = 0.05, 5.0


def figures() -> list[Figure]:
    """Bytes after `SETTLE_S` and at the end: of the kernel's process, and of the page's JavaScript heap."""
    browser = find.browser()
    if browser is None:
        raise RuntimeError(find.ADVICE)
    minutes = harness.minutes
    with tempfile.TemporaryDirectory() as folder, session(browser, Path(folder), height=1300) as page:
        small(page.server.work)
        page.open("small.ipynb")
        page.run_all()
        panel = Panel(page, 0)
        devtools = page.page.context.new_cdp_session(page.page)
        devtools.send("Performance.enable")
        page.add_and_run(_KERNEL)
        page.show_cell(0)
        page.page.wait_for_timeout(SETTLE_S * 1000)
        first = *_page(devtools), page.run_cell(-1)
        answered = panel.answered
        page.show_cell(0)
        page.page.wait_for_timeout(minutes * 60_000)
        last = *_page(devtools), page.run_cell(-1)
        answered = panel.answered - answered
    what = (f"JavaScript heap of a panel's page, {minutes:g} min", "elements of the page", "RSS of its kernel")
    sizes = [*zip(map(float, first), map(float, last), strict=True)]
    long_enough = minutes >= SHORTEST_MINUTES
    note = f"{answered:,} answers under way; errors on the page: {len(page.errors)}"
    return [
        Figure(
            name,
            f"{end:,.0f} {unit}",
            f"{start:,.0f} {unit} at the start",
            f"{end / start:.3f}×",
            f"≤ {1 + GROWTH_AT_MOST:g}×" if long_enough else "",
            end <= (1 + GROWTH_AT_MOST) * start if long_enough else None,
            note=note if name == what[0] else "",
        )
        for name, unit, (start, end) in zip(what, ("MB", "nodes", "MB"), sizes, strict=True)
    ]


_KERNEL = "import gc, psutil; gc.collect(); print(psutil.Process().memory_info().rss / 1e6)"


def _page(devtools: Any) -> tuple[float, float]:
    """MB of JavaScript heap and DOM nodes that are in use, after collecting garbage."""
    devtools.send("HeapProfiler.collectGarbage")
    found = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
    return found["JSHeapUsedSize"] / 1e6, found["Nodes"]

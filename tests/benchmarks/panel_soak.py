"""Memory of kernel and page while a panel is open, at 1 Hz under load, in a browser; ``--minutes`` says how long."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import harness
from tests.benchmarks.harness import Figure
from tests.browser import find
from tests.browser.panel import Panel, small
from tests.browser.session import session

#: The plots show two minutes, so a page and a kernel are what they stay only after that: what is made and filled
#: once isn't growth. Of a shorter run it is a quarter.
WARM_UP_MINUTES, WARM_UP_SHARE = 5.0, 0.25
SAMPLE_S = 20.0
#: Flat: the last third after the warm-up is no more than this above the first. A shorter run says nothing about it.
GROWTH_AT_MOST, SHORTEST_MINUTES = 0.05, 5.0
WHAT = (("JavaScript heap of a panel's page", "MB"), ("elements of the page", "nodes"), ("memory of its kernel", "MB"))


def figures() -> list[Figure]:
    """Medians of the first and last third after the warm-up: JavaScript heap, DOM nodes, the kernel's own memory."""
    browser = find.browser()
    if browser is None:
        raise RuntimeError(find.ADVICE)
    minutes = harness.minutes
    warm_up = min(WARM_UP_MINUTES, WARM_UP_SHARE * minutes)
    with tempfile.TemporaryDirectory() as folder, session(browser, Path(folder), height=1300) as page:
        small(page.server.work)
        page.open("small.ipynb")
        page.run_all()
        panel = Panel(page, 0)
        devtools = page.page.context.new_cdp_session(page.page)
        devtools.send("Performance.enable")
        kernel = psutil.Process(int(page.add_and_run("import os; print(os.getpid())")))
        page.show_cell(0)
        page.page.wait_for_timeout(warm_up * 60_000)
        answered = panel.answered
        samples = []
        for _ in range(max(3, round((minutes - warm_up) * 60 / SAMPLE_S))):
            page.page.wait_for_timeout(SAMPLE_S * 1000)
            samples.append((*_page(devtools), kernel.memory_full_info().uss / 1e6))
        answered = panel.answered - answered
    third = len(samples) // 3
    long_enough = minutes >= SHORTEST_MINUTES
    found = []
    for (name, unit), values in zip(WHAT, zip(*samples, strict=True), strict=True):
        start, end = statistics.median(values[:third]), statistics.median(values[-third:])
        found.append(
            Figure(
                name,
                f"{end:,.0f} {unit}",
                f"{start:,.0f} {unit} in the first third",
                f"{end / start:.3f}×",
                f"≤ {1 + GROWTH_AT_MOST:g}×" if long_enough else "",
                end <= (1 + GROWTH_AT_MOST) * start if long_enough else None,
                note=f"{min(values):,.0f} to {max(values):,.0f}; {minutes:g} min, the first {warm_up:g} not counted; "
                f"{answered:,} answers meanwhile; errors on the page: {len(page.errors)}",
            )
        )
    return found


def _page(devtools: Any) -> tuple[float, float]:
    """MB of JavaScript heap and DOM nodes that are in use, after collecting garbage."""
    devtools.send("HeapProfiler.collectGarbage")
    found = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
    return found["JSHeapUsedSize"] / 1e6, found["Nodes"]

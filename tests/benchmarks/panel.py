"""What the panel costs, and how long a click takes until the new mode answers; MiniLM, without a page."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator

import kit
from tests.benchmarks import harness
from tests.benchmarks.harness import Figure
from widgets import ServingPanel

BUSY_AT_MOST, IDLE_AT_MOST, THROUGHPUT_AT_LEAST, CLICK_AT_MOST_S = 0.10, 0.005, 0.95, 2.0
CLICKS = ("large", "shared", "medium", "default")


def figures() -> list[Figure]:
    """CPU while things change and while nothing does, throughput with and without, and a click in each mode."""
    texts = kit.assets.texts("tickets")
    with kit.deploy(kit.assets.handler("minilm"), processes=2, sample=texts[:4]) as deployment:
        deployment.predict(texts)
        return [*_cpu(deployment, texts), _throughput(deployment, texts), *_clicks(deployment, texts)]


def _cpu(deployment: kit.Deployment, texts: list[str]) -> list[Figure]:
    seconds = 5.0 if harness.quick else 15.0
    with _open(deployment, texts) as panel:
        panel.start_load(10).result()
        time.sleep(3)
        busy = _share(panel, seconds)
        panel.stop_load().result()
        time.sleep(4)  # the rates have to fall to 0, which is a change too
        idle = _share(panel, seconds)
    what = "panel at 1 Hz: CPU of its thread"
    return [
        Figure(f"{what}, under load", f"{busy:.1%} of a core", "", "", f"≤ {BUSY_AT_MOST:.0%}", busy <= BUSY_AT_MOST),
        Figure(f"{what}, idle", f"{idle:.2%} of a core", "", "", f"≤ {IDLE_AT_MOST:.1%}", idle <= IDLE_AT_MOST),
    ]


def _throughput(deployment: kit.Deployment, texts: list[str]) -> Figure:
    """Elements a second with a panel that draws and without one, in turn."""
    seconds, pairs = (2.0, 3) if harness.quick else (4.0, 8)

    def measured() -> float:
        with kit.LoadGenerator(deployment, texts, batch=8) as load:
            load.wait(seconds)
        return load.report().throughput

    ratios, ours, theirs = [], [], []
    for number in range(pairs):
        order = (True, False) if number % 2 else (False, True)
        found = {}
        for opened in order:
            with _open(deployment, texts) if opened else contextlib.nullcontext():
                found[opened] = measured()
        ratios.append(found[True] / found[False])
        ours.append(found[True])
        theirs.append(found[False])
    ratio, (low, high) = statistics.median(ratios), harness.spread(ratios)
    return Figure(
        "throughput with the panel open, against without",
        harness.rate(statistics.median(ours)),
        harness.rate(statistics.median(theirs)),
        f"{ratio:.2f}× ({low:.2f}-{high:.2f})",
        f"≥ {THROUGHPUT_AT_LEAST}×",
        ratio >= THROUGHPUT_AT_LEAST,
    )


def _clicks(deployment: kit.Deployment, texts: list[str]) -> list[Figure]:
    """Seconds from the click on Apply to the first answer that came from the new mode, under a light load."""
    found = []
    with _open(deployment, texts) as panel:
        panel.start_load(5).result()
        for mode in CLICKS[:2] if harness.quick else CLICKS:
            panel.choose(mode).result()
            panel.refresh().result()
            began = time.monotonic()
            panel._view.apply.click()
            while deployment.snapshot(0).latest.get("mode") != mode and time.monotonic() - began < 60:
                time.sleep(0.005)
            seconds = time.monotonic() - began
            limit = f"≤ {CLICK_AT_MOST_S:g} s"
            what = f"click to the first answer in mode {mode}, MiniLM"
            found.append(Figure(what, harness.duration(seconds), "", "", limit, seconds <= CLICK_AT_MOST_S))
            while panel._controller.busy("switch"):
                time.sleep(0.01)
        failed = panel.stop_load().result().failed
    found.append(Figure("failed requests during these switches", str(failed), "", "", "0", failed == 0))
    return found


@contextlib.contextmanager
def _open(deployment: kit.Deployment, texts: list[str]) -> Iterator[ServingPanel]:
    panel = ServingPanel(deployment, texts)
    try:
        yield panel
    finally:
        panel.close()


def _share(panel: ServingPanel, seconds: float) -> float:
    """Share of a core that the panel's thread uses for some seconds."""
    ident = panel._controller.thread.ident
    assert ident is not None
    clock = time.pthread_getcpuclockid(ident)
    used, began = time.clock_gettime(clock), time.monotonic()
    time.sleep(seconds)
    return (time.clock_gettime(clock) - used) / (time.monotonic() - began)

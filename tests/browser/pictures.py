"""``python -m tests.browser.pictures``: make the README's pictures of the panel, light and dark.

MiniLM is switched from `default` to `large` to `shared` under load, and a worker is killed.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import find
from tests.browser.jupyter import ROOT
from tests.browser.panel import Panel, small
from tests.browser.session import session

FOLDER = ROOT / "widgets" / "pictures"
MOST_BYTES = 150_000
WATCH_S = 8


def take(browser: Path, dark: bool) -> bytes:
    """A PNG of the Live tab after two switches and a death, with few colours."""
    with tempfile.TemporaryDirectory() as folder, session(browser, Path(folder), dark=dark, height=1400) as page:
        small(page.server.work)
        page.open("small.ipynb")
        page.run_all()
        panel = Panel(page, 0)
        panel.wait_for_mode("default")
        page.page.wait_for_timeout(WATCH_S * 1000)
        panel.switch("large")
        page.page.wait_for_timeout(WATCH_S * 1000)
        before = panel.pids
        panel.root.get_by_role("button", name="Kill worker 0").click()
        page.wait_for(lambda: len(panel.pids) == 3 and panel.pids != before, 60, "another pid drawn")
        page.page.wait_for_timeout(WATCH_S * 1000)
        panel.switch("shared")
        page.page.wait_for_timeout(WATCH_S * 1000)
        shot = Image.open(io.BytesIO(panel.root.screenshot())).convert("RGB")
    buffer = io.BytesIO()
    shot.quantize(128, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def main() -> int:
    """Write both pictures; returns the exit code."""
    browser = find.browser()
    if browser is None:
        print(find.ADVICE, file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    for name, dark in (("light", False), ("dark", True)):
        png = take(browser, dark)
        if len(png) > MOST_BYTES:
            print(f"panel-{name}.png has {len(png):,} bytes, more than {MOST_BYTES:,}", file=sys.stderr)
            return 1
        path = FOLDER / f"panel-{name}.png"
        path.write_bytes(png)
        print(f"{path}: {len(png):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

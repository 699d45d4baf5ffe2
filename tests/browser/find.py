"""The browser for the tests: found, or installed where that is one command.

``python -m tests.browser.find`` prints its path; as root on Debian or Ubuntu it installs Chromium where there is no
browser. Without one it says what to do, and fails only where the environment variable CI is set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC_APPS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
ADVICE = (
    "No Chromium or Chrome was found, so the browser tests can't run. Install one: `apt-get install chromium` as root "
    "(Debian), or `.venv/bin/python -m playwright install --with-deps chromium` on any system."
)


def browser() -> Path | None:
    """Path of an installed Chromium or Chrome, None when there is none."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    for app in MAC_APPS:
        if os.access(app, os.X_OK):
            return Path(app)
    return _of_playwright()


def _of_playwright() -> Path | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return path if os.access(path, os.X_OK) else None


def _install() -> None:
    """Debian's package; what apt-get prints is shown only when it fails."""
    print("Installing Chromium for the browser tests ...", flush=True)
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-liberation"]):
        ran = subprocess.run(
            ["apt-get", "-qq", *arguments],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ran.returncode:
            print(f"apt-get {' '.join(arguments)} failed:\n{ran.stdout[-2000:]}", file=sys.stderr)


def main() -> int:
    """Find or install; returns the exit code."""
    found = browser()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = browser()
    if found is not None:
        print(f"browser for the tests: {found}")
        return 0
    print(ADVICE, file=sys.stderr)
    if os.environ.get("CI"):
        return 1
    print("The browser tests will be skipped.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A Jupyter server on a free port that keeps all it writes in one temporary folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 60.0
STOP_S = 20.0
APPUTILS = "@jupyterlab/apputils-extension"


class JupyterServer:
    """JupyterLab and Notebook 7 on one server; ends with all its kernels.

    Args:
        folder: an empty folder; notebooks go to ``folder / "work"``.
        dark: whether JupyterLab starts with its dark theme.
    """

    def __init__(self, folder: Path, dark: bool = False) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        self._log = folder / "server.log"
        self._env = _environment(folder)
        _write_settings(Path(self._env["JUPYTERLAB_SETTINGS_DIR"]), dark)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *_arguments(self.port, self.work)],
                cwd=self.work,
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                self.get("/api/status")
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"the Jupyter server didn't come up; it printed:\n{self._log.read_text()[-3000:]}")

    def get(self, path: str) -> Any:
        """The JSON that the server answers to GET `path`."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def kernels(self) -> list[dict[str, Any]]:
        """The running kernels: id, execution_state, connections."""
        try:
            found: list[dict[str, Any]] = self.get("/api/kernels")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 500:
                raise
            return []  # the server lists a kernel that is just starting, and stumbles over it; whoever waits asks again
        return found

    def wait_for_kernel(self, timeout_s: float = 90.0) -> str:
        """Wait until the only kernel is idle and the page is connected to it; returns its id.

        A Run All straight after the page has loaded would run one cell only.
        """
        until = time.monotonic() + timeout_s
        kernels: list[dict[str, Any]] = []
        while time.monotonic() < until:
            kernels = self.kernels()
            if len(kernels) == 1 and kernels[0]["execution_state"] == "idle" and kernels[0]["connections"] > 0:
                return str(kernels[0]["id"])
            time.sleep(0.1)
        raise TimeoutError(f"no idle, connected kernel within {timeout_s:.0f} s: {kernels}")

    def stop(self) -> None:
        """End the server and its kernels; idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _arguments(port: int, work: Path) -> list[str]:
    settings = {
        "ip": "127.0.0.1",
        "port": port,
        "port_retries": 0,
        "root_dir": work,
        "token": "",
        "password": "",
        "allow_root": True,
        "disable_check_xsrf": True,
    }
    return [
        "--no-browser",
        "--LabApp.expose_app_in_browser=True",
        "--JupyterNotebookApp.expose_app_in_browser=True",
        *(f"--ServerApp.{name}={value}" for name, value in settings.items()),
    ]


def _environment(folder: Path) -> dict[str, str]:
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    for name in places.values():
        (folder / name).mkdir()
    folders = {name: str(folder / place) for name, place in places.items()}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # One thread in the kernel itself: other tests' workers, of which it knows nothing, are busy beside it.
    return {**os.environ, **folders, "KIT_FAST": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def _write_settings(folder: Path, dark: bool) -> None:
    theme = "JupyterLab Dark" if dark else "JupyterLab Light"
    for name, settings in (
        ("notification", {"fetchNews": "false", "checkForUpdates": False}),
        ("themes", {"theme": theme}),
    ):
        file = folder / APPUTILS / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

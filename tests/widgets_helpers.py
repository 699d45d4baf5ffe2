"""What the tests of the panel share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
from tests.models import Doubling


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    """Wait until `condition()` holds; a failure says `what` was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


class Gated(Doubling):
    """Its first `free` loads pass; the others wait until the file `gate` exists."""

    def __init__(self, folder: str, free: int = 1) -> None:
        super().__init__()
        self.folder = folder
        self.free = free

    def load_model(self) -> list[int]:
        folder = Path(self.folder)
        number = len(list(folder.glob("load-*")))
        (folder / f"load-{number}-{time.monotonic_ns()}").touch()
        if number >= self.free:
            until((folder / "gate").exists, "the gate", 60)
        return []


class Failing(kit.ModelHandler):
    """Loads once; a second copy can't be loaded."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def load_model(self) -> Any:
        mark = Path(self.folder) / "loaded"
        if mark.exists():
            raise RuntimeError("the <second> copy is one too many")
        mark.touch()
        return len

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [model(example) for example in batch]

"""Where models compute, when that isn't host memory: the moves between a device and the tier in host memory."""

from __future__ import annotations

import sys
from typing import Any, Protocol


class Device(Protocol):
    """Moves models between a device and host memory; `ModelManager` takes any object with these methods."""

    def to_host(self, model: Any) -> Any:
        """The model in host memory; the device's bytes are free afterwards."""

    def to_device(self, model: Any) -> Any:
        """The model on the device."""

    def trim(self) -> None:
        """Return what the device's allocator keeps of dropped models."""


class TorchDevice:
    """A torch device: models are moved with their ``to``, torch modules and pipelines alike.

    Args:
        name: "cuda", "cuda:1", "mps".
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def to_host(self, model: Any) -> Any:
        """The model on the CPU; a torch module is moved in place."""
        return self._moved(model, "cpu")

    def to_device(self, model: Any) -> Any:
        """The model on the device; a torch module is moved in place."""
        return self._moved(model, self.name)

    def trim(self) -> None:
        """Empty torch's cache of device memory."""
        torch = sys.modules.get("torch")
        if torch is not None and self.name.startswith("cuda") and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _moved(self, model: Any, where: str) -> Any:
        moved = model.to(where)
        # Some pipelines' `to` returns nothing and moves in place.
        return model if moved is None else moved

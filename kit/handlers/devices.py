"""From the name of a device to a torch.device, and a plain error where there is none."""

from __future__ import annotations

import logging
import re
from typing import Any

from kit.errors import DeviceUnavailable, InvalidSetting

_NAME = re.compile(r"(auto|cpu|gpu|cuda|mps)(?::(\d+))?$")


def check(device: Any) -> str:
    """The device's name in lower case, without looking for the device or importing torch.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps", Beam's "GPU" and "CPU", a torch.device, an
            int as Hugging Face takes it (-1 is the CPU, 1 is "cuda:1"), or None for "auto".

    Raises:
        InvalidSetting: no name of a device.
    """
    if device is None:
        return "auto"
    if isinstance(device, int) and not isinstance(device, bool):
        return "cpu" if device < 0 else f"cuda:{device}"
    name = str(device).lower().replace("cpu:0", "cpu")
    found = _NAME.match(name)
    if not found or (found[2] is not None and found[1] not in ("cuda", "gpu")):
        raise InvalidSetting(f'device={device!r}: give "auto", "cpu", "cuda", "cuda:1", "mps" or "GPU".')
    return name


def resolve(device: Any = "auto") -> Any:
    """The torch.device that `device` names, in this process.

    "auto" is the first CUDA GPU where there is a usable one, else the CPU. "mps" is taken only when
    it is asked for: it has no float64, and it can't be relied on in a forked process. "GPU" is
    "cuda", or "mps" on a Mac.

    Raises:
        InvalidSetting: no name of a device.
        DeviceUnavailable: a GPU asked for by name and missing here. There is no silent fall back.
    """
    import torch

    name = check(device)
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "auto":
        return torch.device("cuda") if _usable_cuda() else torch.device("cpu")
    if kind == "mps" or (kind == "gpu" and not torch.cuda.is_available() and _has_mps()):
        if not _has_mps():
            raise DeviceUnavailable(
                f'device="{name}" was asked for, but this machine has no Apple GPU that torch '
                f'{torch.__version__} can use. Use device="auto" or device="cpu".'
            )
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise DeviceUnavailable(
            f'device="{device}" was asked for, but this process has no CUDA GPU: {_why_no_cuda()}. '
            'Use device="auto" (a GPU where there is one) or device="cpu".'
        )
    count = torch.cuda.device_count()
    if index and int(index) >= count:
        raise DeviceUnavailable(
            f'device="{device}" was asked for, but this process sees {count} CUDA GPU(s): '
            f'"cuda:0" to "cuda:{count - 1}".'
        )
    return torch.device(f"cuda:{index}" if index else "cuda")


def _has_mps() -> bool:
    import torch

    return bool(torch.backends.mps.is_available())


def _usable_cuda() -> bool:
    """True when a tensor can be made on the GPU; a broken driver shows only then."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.empty(1, device="cuda")
    except RuntimeError as error:
        logging.getLogger(__name__).warning("The CUDA GPU can't be used, so the CPU is: %s", error)
        return False
    return True


def _why_no_cuda() -> str:
    import os

    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides them all"
    return f"torch {torch.__version__} finds no driver or no device"

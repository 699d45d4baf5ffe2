"""Bytes of GPU memory by process, without importing torch."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterable


def gpu_bytes_of(pids: Iterable[int]) -> dict[int, int]:
    """Bytes of GPU memory held by each of `pids` that holds any, over all NVIDIA GPUs.

    Empty without an NVIDIA driver. In a container the driver may count the processes of the host,
    under their numbers there; then ours aren't found and the answer is empty too.
    """
    wanted = set(pids)
    if not wanted or not gpu_present():
        return {}
    held = _gpu_bytes_by_nvml()
    if held is None:
        held = _gpu_bytes_by_command()
    return {pid: size for pid, size in held.items() if pid in wanted}


def gpu_present() -> bool:
    """Whether the NVIDIA driver is there; costs a microsecond, loads nothing."""
    return os.path.exists("/proc/driver/nvidia") or os.path.exists("/dev/nvidiactl")


def _gpu_bytes_by_nvml() -> dict[int, int] | None:
    """Bytes by pid from the driver's library, None when the `pynvml` package isn't there or can't."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    held: dict[int, int] = {}
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
                held[process.pid] = held.get(process.pid, 0) + (process.usedGpuMemory or 0)
    except pynvml.NVMLError:
        return None
    return held


def _gpu_bytes_by_command() -> dict[int, int]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = [command, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    held: dict[int, int] = {}
    for row in csv.reader(answer.stdout.splitlines(), skipinitialspace=True):
        if len(row) == 2 and row[0].isdigit() and row[1].isdigit():  # "[N/A]" where it isn't known
            held[int(row[0])] = held.get(int(row[0]), 0) + int(row[1]) * 1024**2
    return held

"""What this process may use of the machine: cores and memory, cgroups of both versions respected."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def cpu_count() -> int:
    """Cores that this process may use: by affinity and by the cgroup's quota (rounded up)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(Path("/"))
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or less where a cgroup limits it."""
    return total_and_available()[0]


def total_and_available() -> tuple[int, int]:
    """(bytes this process may use, bytes of them free now, counting page cache that can be dropped)."""
    if not sys.platform.startswith("linux"):
        import psutil

        machine = psutil.virtual_memory()
        return int(machine.total), int(machine.available)
    return _linux_memory(Path("/"))


def _linux_memory(root: Path) -> tuple[int, int]:
    fields = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    total, available = fields["MemTotal"], fields["MemAvailable"]
    for version, folder in _cgroup_folders(root, "memory"):
        limit_name, usage_name, cache_name = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limit = _read_number(folder / limit_name)
        if limit is None or limit >= fields["MemTotal"]:
            continue
        total = min(total, limit)
        used = (_read_number(folder / usage_name) or 0) - _stat_value(folder / "memory.stat", cache_name)
        available = min(available, max(0, limit - max(0, used)))
    return total, available


def _cpu_quota(root: Path) -> float | None:
    """The smallest CPU quota in cores among this process's cgroups, None without one."""
    quotas = []
    for version, folder in _cgroup_folders(root, "cpu"):
        if version == 2:
            text = _read_text(folder / "cpu.max").split()
            quota, period = (text[0], text[1]) if len(text) == 2 else ("max", "1")
        else:
            quota, period = _read_text(folder / "cpu.cfs_quota_us"), _read_text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_folders(root: Path, controller: str) -> list[tuple[int, Path]]:
    """(version, folder) of every cgroup whose limits for `controller` hold for this process."""
    mounts: dict[int, Path] = {}
    for line in _read_text(root / "proc/self/mounts").splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            mounts[2] = root / where.lstrip("/")
        elif kind == "cgroup" and controller in options.split(","):
            mounts[1] = root / where.lstrip("/")
    folders = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if controllers == "" else 1
        if version not in mounts or (version == 1 and controller not in controllers.split(",")):
            continue
        # In a container the path may be the host's and not exist here; the mount's root is then ours.
        parts = [part for part in path.split("/") if part and part != ".."]
        folders += [(version, mounts[version].joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return folders


def _read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    text = _read_text(path)
    return int(text) if text.isdigit() else None


def _stat_value(path: Path, name: str) -> int:
    for line in _read_text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0

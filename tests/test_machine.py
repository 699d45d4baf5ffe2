from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.errors import InvalidSetting
from kit.machine import _cpu_quota, _linux_memory
from kit.memory import (
    cpu_count,
    format_bytes,
    memory_limit,
    parse_bytes,
    total_and_available,
)

MB = 1_000_000


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("2GiB", 2 * 1024**3),
        ("512 MB", 512 * MB),
        ("1.5g", 1_500_000_000),
        ("1.5Gi", 1_610_612_736),
        ("800M", 800 * MB),
        ("800mib", 800 * 1024**2),
        (" 7 kB ", 7000),
        ("1 TiB", 1024**4),
        ("1_000_000", MB),
        ("2e9", 2_000_000_000),
        ("12b", 12),
        (10**9, 10**9),
        (1.5e6, 1_500_000),
        (np.int64(123), 123),
        (np.float32(1024), 1024),
    ],
)
def test_parse_bytes(value: Any, count: int) -> None:
    assert parse_bytes(value) == count
    assert type(parse_bytes(value)) is int


@pytest.mark.parametrize(
    "value",
    [0, -1, 0.4, math.nan, math.inf, True, False, np.True_, "", "GiB", "-2GB", "2 XB", "two", "nan", "1e999", [1]],
)
def test_parse_bytes_refuses_with_the_value_and_an_example(value: Any) -> None:
    with pytest.raises(InvalidSetting) as caught:
        parse_bytes(value, "budget")
    assert f"budget={value!r}" in str(caught.value)
    assert "2GiB" in str(caught.value)


def test_parse_bytes_of_none_is_none() -> None:
    assert parse_bytes(None) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (90_852_864, "90.9 MB"),
        (91_000_000, "91 MB"),
        (1_140_000_000, "1.14 GB"),
        (999_600, "1 MB"),
        (1_687 * MB, "1.69 GB"),
        (-5 * MB, "-5 MB"),
        (1536 * 1024**2, "1.5 GiB"),
        (1024**3, "1 GiB"),
        (1024**2, "1.05 MB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("count", [1, 1023, 123_456, 98_765_432, 10**10, 5 * 1024**3, 2**41])
def test_what_is_printed_parses_to_nearly_the_same(count: int) -> None:
    parsed = parse_bytes(format_bytes(count))
    assert parsed is not None
    assert abs(parsed - count) <= 0.005 * count


# ---- the machine ---------------------------------------------------------------------------------


def fake_root(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    files = {
        "proc/self/cgroup": cgroup,
        "proc/self/mounts": mounts,
        "proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n",
        **files,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_limits_of_cgroup_v2_are_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    root = fake_root(
        tmp_path,
        "0::/pod/box\n",
        "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
        {
            "sys/fs/cgroup/pod/memory.max": "2000000000\n",
            "sys/fs/cgroup/pod/memory.current": "1500000000\n",
            "sys/fs/cgroup/pod/memory.stat": "anon 5\ninactive_file 600000000\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
        },
    )
    assert _linux_memory(root) == (2_000_000_000, 1_100_000_000)
    assert _cpu_quota(root) == 1.5


def test_limits_of_cgroup_v1_in_a_container_that_sees_the_hosts_path(tmp_path: Path) -> None:
    root = fake_root(
        tmp_path,
        "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "400000000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100000000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert _linux_memory(root) == (1_000_000_000, 700_000_000)
    assert _cpu_quota(root) == 0.5


def test_no_limit_is_the_machine(tmp_path: Path) -> None:
    root = fake_root(
        tmp_path,
        "5:memory:/\n4:cpu:/\n",
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert _linux_memory(root) == (16_384_000_000, 12_288_000_000)
    assert _cpu_quota(root) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
def test_cpu_count_respects_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}]); from kit.memory import cpu_count; print(cpu_count())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    assert 1 <= cpu_count() <= (os.cpu_count() or 1)


def test_total_and_available_of_this_machine() -> None:
    import psutil

    total, available = total_and_available()
    assert 0 < available <= total <= psutil.virtual_memory().total
    assert memory_limit() == total

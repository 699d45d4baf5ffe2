from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.gpu_memory import _gpu_bytes_by_command
from kit.memory import (
    MemorySampler,
    ProcessMemory,
    gpu_bytes_of,
    process_memory,
    segment_memory,
)

MB = 1_000_000
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/PID/smaps, which only Linux has")


# ---- processes -----------------------------------------------------------------------------------


class Child:
    """A process that runs a line of Python whenever it is told to, and says when it is done."""

    def __init__(self, pass_fds: tuple[int, ...] = ()) -> None:
        loop = "import os, sys, mmap\nfor line in sys.stdin:\n    exec(line)\n    print('done', flush=True)\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds
        )
        self.pid = self.process.pid
        self.run("pass")

    def run(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def children() -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start(*fds: int) -> Child:
        started.append(Child(fds))
        return started[-1]

    yield start
    for child in started:
        child.close()


def measured(pid: int) -> ProcessMemory:
    memory = process_memory(pid)
    assert memory is not None
    return memory


def test_process_memory_sees_200_mb_come_and_go(children: Callable[..., Child]) -> None:
    child = children()
    before = measured(child.pid)
    child.run("block = b'x' * 200_000_000")
    during = measured(child.pid)
    child.run("del block")
    after = measured(child.pid)
    for figure in ("pss_bytes", "uss_bytes", "rss_bytes", "anonymous_bytes"):
        grown = getattr(during, figure) - getattr(before, figure)
        assert 199 * MB < grown < 203 * MB, figure
        assert abs(getattr(after, figure) - getattr(before, figure)) < 3 * MB, figure
    assert before.at < during.at < after.at <= time.monotonic()
    assert 0 < during.read_s < 1
    assert during.uss_bytes <= during.pss_bytes <= during.rss_bytes
    assert abs(during.uss_bytes + during.shared_bytes - during.rss_bytes) <= 4096


def test_process_memory_of_a_process_that_is_gone() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    # Not reaped yet: a zombie has no memory either.
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
        assert process_memory(gone.pid) is None
    gone.wait()
    assert process_memory(gone.pid) is None


@linux
def test_a_segment_mapped_by_two_is_one_inode_and_half_the_pss_each(children: Callable[..., Child]) -> None:
    size = 50 * 1024**2
    descriptor = os.memfd_create("kit-weights-test")
    try:
        os.ftruncate(descriptor, size)
        with mmap.mmap(descriptor, size) as ours:
            ours[:] = b"w" * size
        attach = (
            f"m = mmap.mmap({descriptor}, {size}, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE); "
            f"os.close({descriptor}); n = sum(m[i] for i in range(0, {size}, 4096))"
        )
        first, second = children(descriptor), children(descriptor)
        process_before = measured(first.pid)
        first.run(attach)
        alone = segment_memory(first.pid, "/memfd:kit-weights")
        process_alone = measured(first.pid)
        second.run(attach)
        both = [segment_memory(child.pid, "/memfd:kit-weights") for child in (first, second)]
        # A stray write makes one page private in one process, and is seen as that.
        second.run("m[0] = 7")
        written = segment_memory(second.pid, "/memfd:kit-weights")
        inode = os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
    assert alone is not None
    assert written is not None
    assert (alone.size_bytes, alone.rss_bytes, alone.pss_bytes) == (size, size, size)
    assert alone.anonymous_bytes == 0
    # Of the whole process, too: the segment looks private to its only mapper, but isn't anonymous.
    assert process_alone.uss_bytes - process_before.uss_bytes > 0.9 * size
    assert process_alone.anonymous_bytes - process_before.anonymous_bytes < 0.02 * size
    for memory in both:
        assert memory is not None
        assert (memory.mappings, memory.inodes) == (1, (inode,))
        assert memory.rss_bytes == size
        assert memory.pss_bytes == size // 2
        assert memory.private_dirty_bytes == 0
    assert written.private_dirty_bytes == written.anonymous_bytes == mmap.PAGESIZE


@linux
def test_segments_of_another_name_or_none(children: Callable[..., Child]) -> None:
    descriptor = os.memfd_create("other")
    try:
        child = children(descriptor)
        child.run(f"os.ftruncate({descriptor}, 8192); maps = [mmap.mmap({descriptor}, n) for n in (4096, 8192)]")
    finally:
        os.close(descriptor)
    none = segment_memory(child.pid, "/memfd:kit-weights")
    assert none is not None
    assert none.mappings == none.size_bytes == 0
    assert none.inodes == ()
    two = segment_memory(child.pid, "/memfd:other")
    assert two is not None
    assert (two.mappings, two.size_bytes, len(two.inodes)) == (2, 12288, 1)
    child.close()
    assert segment_memory(child.pid, "/memfd:other") is None


# ---- GPUs ----------------------------------------------------------------------------------------


def test_gpu_bytes_from_the_drivers_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\nprintf '101, 512\\n102, [N/A]\\n101, 8\\n103, 1\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert _gpu_bytes_by_command() == {101: 520 * 1024**2, 103: 1024**2}
    monkeypatch.setattr("kit.gpu_memory.gpu_present", lambda: True)
    monkeypatch.setattr("kit.gpu_memory._gpu_bytes_by_nvml", lambda: None)
    assert gpu_bytes_of([101, 102]) == {101: 520 * 1024**2}


def test_gpu_bytes_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.gpu_memory.gpu_present", lambda: False)
    assert gpu_bytes_of([os.getpid()]) == {}


# ---- sampling ------------------------------------------------------------------------------------


class Reader:
    """Readings at a given cost, against a clock that the test moves."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.now = 1000.0
        self.reads: list[tuple[float, int]] = []

    def __call__(self, pid: int) -> ProcessMemory | None:
        self.reads.append((self.now, pid))
        self.now += self.cost_s
        return None if pid < 0 else ProcessMemory(4, 3, 2, 1, self.cost_s, self.now)


@pytest.mark.parametrize("count", [1, 4, 40])
@pytest.mark.parametrize("cost_s", [0.0001, 0.004, 0.05])
def test_the_sampler_stays_within_its_share_and_serves_all_alike(count: int, cost_s: float) -> None:
    reader = Reader(cost_s)
    sampler = MemorySampler(lambda: [(pid, "worker") for pid in range(count)], read=reader)
    ticks, began = 2000, reader.now
    for _ in range(ticks):
        reader.now += 1.0
        sampler.tick(reader.now)
    seconds = reader.now - began
    spent = len(reader.reads) * cost_s
    assert spent <= 0.01 * seconds + (count + 1) * cost_s + 0.01  # the first round and a second's burst are extra
    a_process = [sum(1 for _, pid in reader.reads if pid == wanted) for wanted in range(count)]
    assert max(a_process) - min(a_process) <= 1
    assert max(a_process) <= ticks
    if cost_s * count <= 0.01:
        assert min(a_process) >= ticks - 2  # cheap enough to read every second, so it is


def test_the_sampler_reads_new_processes_at_once_and_forgets_those_that_left() -> None:
    reader = Reader(0.5)  # so dear that a second reading isn't due for a long time
    watched = [(1, "worker"), (2, "host")]
    sampler = MemorySampler(lambda: watched, read=reader)
    assert sampler.tick(reader.now) == 2
    reader.now += 1
    assert sampler.tick(reader.now) == 0
    watched.append((3, "worker"))
    watched.append((-4, "worker"))  # died before it was read
    watched.remove((1, "worker"))
    assert sampler.tick(reader.now) == 1
    latest = {sample.pid: sample for sample in sampler.latest(reader.now)}
    assert sorted(latest) == [2, 3]
    assert latest[2].role == "host"
    assert latest[3].age_s < 1.0 < latest[2].age_s


def test_the_sampler_on_real_processes(children: Callable[..., Child]) -> None:
    child = children()
    sampler = MemorySampler(lambda: [(os.getpid(), "caller"), (child.pid, "worker")], min_interval_s=0.0, share=1000.0)
    assert sampler.tick() == 2
    before = {sample.role: sample.memory.pss_bytes for sample in sampler.latest()}
    child.run("block = b'x' * 20_000_000")
    assert sampler.tick() == 2
    after = {sample.role: sample.memory.pss_bytes for sample in sampler.latest()}
    assert 19 * MB < after["worker"] - before["worker"] < 22 * MB
    child.close()
    assert sampler.tick() == 1
    assert [sample.role for sample in sampler.latest()] == ["caller"]

"""Measurements of a running deployment: a thread that looks once a second, and the tables made of it.

PSS is dear to read (the kernel walks the page tables), so it is read seldom, by a sampler that keeps
within 0.3 % of a core, and each figure comes with its age.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kit.engine import board as fields
from kit.engine.memory_roles import FileUse, Report, by_role, weights_of, weights_together, written_to
from kit.engine.outsiders import Outsiders
from kit.engine.weights import SEGMENT_NAME
from kit.mapped_files import File
from kit.memory import MemorySampler, Sample, format_bytes, segment_memory

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.engine.process import Process

INTERVAL_S = 1.0
#: Busy shares and rates are over this time, seconds.
RATE_WINDOW_S = 2.0
#: Reading all mappings of a process is dear, so stray writes are looked for seldom, in seconds.
STRAY_WRITES_EVERY_S = 15.0


class Watch:
    """Looks at an engine once a second and writes its history."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sampler = MemorySampler(self._watched, share=0.003)
        self._stop = threading.Event()
        self._before = engine.dispatcher.counters.as_dict()
        self._latency = engine.dispatcher.latency.snapshot()
        self._at = time.monotonic()
        self._marks: dict[int, deque[tuple[float, int, int]]] = {}
        self._stray: dict[int, int] = {}
        self._looked_at = self._at
        self._outsiders = Outsiders()
        self._thread = threading.Thread(target=self._run, name="kit-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    def _watched(self) -> list[tuple[int, str]]:
        topology = self._engine.topology
        found = [(process.pid, process.role) for process in list(topology.processes) if process.alive]
        pid = self._engine.forkserver.pid
        return [*found, (pid, "forkserver")] if pid else found

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            if not self._engine.alive:
                return
            self._sampler.tick()
            self._note_work()
            if self._engine.places is not None:
                self._engine.places.copies.tick()
            if time.monotonic() - self._looked_at > STRAY_WRITES_EVERY_S:
                self.look_for_stray_writes()
            self._add_row()

    def _add_row(self) -> None:
        engine = self._engine
        counters, latency = engine.dispatcher.counters, engine.dispatcher.latency
        now = time.monotonic()
        elapsed = now - self._at
        rates = counters.rates_since(self._before, elapsed)
        # Snapshots first: what is recorded in between then counts in the next second.
        before, snapshot = self._latency, latency.snapshot()
        summary = latency.summary(before)
        self._before, self._latency, self._at = counters.as_dict(), snapshot, now
        memory = self.memory(self._uses_of_files())
        engine.history.add(
            {
                "mode": engine.settings.mode,
                "elements_per_s": rates["answered_per_s"],
                "failed_per_s": rates["failed_per_s"],
                **summary,
                "queued": engine.dispatcher.queued,
                "in_flight": counters.in_flight,
                "processes": len(engine.topology.processes),
                **memory,
            }
        )

    def look_for_stray_writes(self) -> None:
        """Warn when workers write to their shared weights: each written page becomes a private copy."""
        self._looked_at = time.monotonic()
        topology = self._engine.topology
        if topology.settings.mode != "shared":
            return
        for process in list(topology.processes):
            found = segment_memory(process.pid, f"/memfd:{SEGMENT_NAME}")
            written = found.anonymous_bytes if found is not None else 0
            if written > self._stray.get(process.pid, 0):
                self._stray[process.pid] = written
                words = (
                    f"{process.name} writes to its weights: {format_bytes(written)} are private now; "
                    "is the model in train mode? Use model.eval(), or mode 'large'"
                )
                self._engine.event("warning", words, process.pid)
                self._engine.logs.add(process, f"warning: {words}.")

    def _uses_of_files(self) -> Mapping[File, FileUse]:
        topology = self._engine.topology
        if topology.settings.mode == "shared":
            return {}  # its segments are mapped by its own processes only
        return self._outsiders.uses([(process.pid, self._report(process)) for process in list(topology.processes)])

    def memory(self, uses: Mapping[File, FileUse] | None = None) -> dict[str, int]:
        """Bytes of all processes by what they hold; PSS, so that shared pages count once (see `by_role`)."""
        processes = list(self._engine.topology.processes)
        samples = {sample.pid: sample for sample in self._sampler.latest()}
        if any(process.alive and process.pid not in samples for process in processes):
            # A switch has taken over since the last look: without its processes there would seem to be no memory.
            self._sampler.tick()
            samples = {sample.pid: sample for sample in self._sampler.latest()}
        read = [(self._report(process), samples[process.pid].memory) for process in processes if process.pid in samples]
        forkserver = samples.get(self._engine.forkserver.pid)
        found = by_role(read, None if forkserver is None else forkserver.memory, uses)
        on_gpu = [sample.gpu_bytes for sample in samples.values() if sample.gpu_bytes is not None]
        return {**({"gpu_bytes": sum(on_gpu)} if on_gpu else {}), **found}

    def weights_bytes(self) -> int:
        """Bytes of all copies of the model together, as they were loaded; see `weights_together`."""
        return weights_together(self._report(process) for process in list(self._engine.topology.processes))

    def rows(self) -> list[dict[str, Any]]:
        """One row a process, for `stats`."""
        samples = {sample.pid: sample for sample in self._sampler.latest()}
        engine = self._engine
        rows = []
        for process in list(engine.topology.processes):
            rows.append({**self._identity(process), **_memory_columns(samples.get(process.pid), self._report(process))})
            rows[-1].update(self._work(process))
        pid = engine.forkserver.pid
        if pid:  # of a closed deployment nothing is left
            about = {"role": "forkserver", "index": 0, "pid": pid, "mode": engine.settings.mode}
            rows.append({**about, **_memory_columns(samples.get(pid), {})})
        return rows

    def _report(self, process: Process) -> Report:
        return written_to(process.report, self._stray.get(process.pid, 0))

    def _identity(self, process: Process) -> dict[str, Any]:
        return {
            "role": process.role,
            "index": process.index,
            "pid": process.pid,
            "mode": self._engine.settings.mode,
            "uptime_s": time.monotonic() - process.started_at,
            "load_s": process.report.get("load_s", float("nan")),
        }

    def _work(self, process: Process) -> dict[str, Any]:
        board = self._engine.board
        slots = process.lane_slots or [process.slot]
        now_ns = time.monotonic_ns()
        busy_ns, examples = self._done(slots, now_ns)
        batches = sum(board.get(slot, fields.BATCHES) for slot in slots)
        marks = self._marks.get(process.pid)
        # A process that wasn't looked at before has done all of it since it started.
        before = marks[0] if marks else (process.started_at, 0, 0)
        seconds = max(1e-9, now_ns * 1e-9 - before[0])
        share = min(1.0, (busy_ns - before[1]) / 1e9 / seconds / len(slots))
        rate = (examples - before[2]) / seconds
        return {
            "examples": examples,
            "batches": batches,
            "batch_size": examples / batches if batches else float("nan"),
            "coalesced": board.get(process.slot, fields.COALESCED),
            "elements_per_s": rate,
            "busy_share": share,
            "heartbeat_age_s": (now_ns - board.get(process.slot, fields.HEARTBEAT_NS)) / 1e9,
        }

    def _done(self, slots: list[int], now_ns: int) -> tuple[int, int]:
        """Nanoseconds of work and examples so far."""
        board = self._engine.board
        return (
            sum(board.busy_ns(slot, now_ns) for slot in slots),
            sum(board.get(slot, fields.EXAMPLES) for slot in slots),
        )

    def _note_work(self) -> None:
        """Keep what each process has done so far, to tell its share and rate of the last seconds."""
        now_ns = time.monotonic_ns()
        processes = {process.pid: process for process in list(self._engine.topology.processes)}
        for pid in [pid for pid in self._marks if pid not in processes]:
            del self._marks[pid]
        for pid, process in processes.items():
            marks = self._marks.setdefault(pid, deque())
            marks.append((now_ns * 1e-9, *self._done(process.lane_slots or [process.slot], now_ns)))
            while len(marks) > 1 and now_ns * 1e-9 - marks[1][0] >= RATE_WINDOW_S:
                marks.popleft()

    def read_memory_now(self) -> None:
        """Read what is due now, without waiting for the next look."""
        self._sampler.tick()


def _memory_columns(sample: Sample | None, report: Report) -> dict[str, Any]:
    own, shared = weights_of(report)
    columns: dict[str, Any] = {"weights_private_bytes": own, "weights_shared_bytes": shared}
    if sample is None:
        return {"pss_bytes": None, "uss_bytes": None, "pss_age_s": None, **columns}
    columns = {
        "pss_bytes": sample.memory.pss_bytes,
        "uss_bytes": sample.memory.uss_bytes,
        "pss_age_s": sample.age_s,
        **columns,
    }
    if sample.gpu_bytes is not None:
        columns["gpu_bytes"] = sample.gpu_bytes
    return columns

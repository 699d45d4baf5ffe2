"""Models by key in mode shared: each in one segment that a loader process fills and all workers map."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine.homes import Place, Resident
from kit.engine.process import STOP_TIMEOUT_S
from kit.engine.protocol import ATTACH_MODEL
from kit.engine.trouble import Trouble
from kit.mapped_files import file_of

if TYPE_CHECKING:
    from kit.engine.keyed_requests import Specs
    from kit.engine.model_loads import ModelLoads
    from kit.engine.process import Process


class Segments:
    """Fills segments, and has workers map them.

    The bytes of every model are compared with the original's before it is used; outputs aren't, as there are no
    examples of each key to compare them on.
    """

    def __init__(self, loads: ModelLoads, specs: Specs) -> None:
        self._loads = loads
        self._specs = specs
        self._lock = threading.Lock()  # no worker may be missed by both `bring` and `attach_all`
        self._residents: list[Resident] = []

    def bring(self, place: Place) -> Resident:
        """Load a model in a process of its own and have all workers map it.

        Raises:
            WorkerDied: the loader died. SharedModeUnavailable, ModelLoadFailed.
        """
        topology = place.topology
        began = time.monotonic()
        spec = self._specs.loaded(place.spec)
        loader = topology.spawn_loader(spec)
        try:
            (_, segment), fds = loader.loaded.result()
        finally:
            loader.ask_to_stop()
            if not loader.exited.wait(STOP_TIMEOUT_S):
                loader.kill()
        mapped = {file_of(fds[0]): segment.size}
        resident = Resident(place, spec, [], segment.size, time.monotonic() - began, mapped, fds[0], segment)
        with self._lock:
            workers = [worker for worker in topology.of_role("worker") if worker.ready]
            try:
                self._attach(resident, workers)
            except BaseException:
                resident.close()
                raise
            self._residents = [one for one in self._residents if one.fd >= 0] + [resident]
            self._loads.settle(resident)
        return resident

    def attach_all(self, worker: Process) -> None:
        """Have a new worker map what is loaded."""
        with self._lock:
            for resident in self._residents:
                if resident.place.resident is resident:
                    with contextlib.suppress(errors.KitError):  # others have it; its death is noticed elsewhere
                        self._attach(resident, [worker])
                        resident.weigh(worker, 1)

    def _attach(self, resident: Resident, workers: list[Process]) -> None:
        asked: list[tuple[Process, Any]] = []
        fd = os.dup(resident.fd)
        try:
            for worker in workers:
                value = (resident.spec, resident.segment)
                asked.append((worker, worker.ask(ATTACH_MODEL, value, fds=(fd,))))
        finally:
            os.close(fd)
        for worker, answer in asked:
            try:
                trouble = answer.result()
            except errors.WorkerDied:
                continue
            if isinstance(trouble, Trouble):
                raise trouble.error()
            resident.homes.append(worker)

    def close(self) -> None:
        """Close all segments; idempotent."""
        for resident in self._residents:
            resident.close()
        self._residents = []

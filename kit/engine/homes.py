"""Places for models by key, what is there, and which process a model is to be loaded in."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kit.engine.keyed_requests import Spec
from kit.key_routes import KeyModel
from kit.mapped_files import File

if TYPE_CHECKING:
    from kit.engine.lane import Lane
    from kit.engine.process import Process
    from kit.engine.topology import Topology


#: Where the models of mode shared are, in words.
EVERYWHERE = "all workers"


class Place:
    """A model of one topology, or a further copy of it; the model manager's name for it.

    Attributes:
        copy: 0, or the number of the copy.
        resident: what is loaded, None when nothing is; loading_at: the process that loads it just now.
        filling: its segment is being filled, in mode shared.
        killed: the process that was to load it has just been killed on purpose.
        beside: others were being loaded in the process that died at its last load, and may be why.
        size_bytes: of the last load.
        fixed: the process where it has to be, None for any.
    """

    def __init__(
        self, model: KeyModel, spec: Spec, topology: Topology, copy: int, fixed: Process | None = None
    ) -> None:
        self.model = model
        self.spec = spec
        self.topology = topology
        self.copy = copy
        self.fixed = fixed
        self.resident: Resident | None = None
        self.loading_at: Process | None = None
        self.filling = self.killed = self.beside = False
        self.size_bytes: int | None = None

    def __repr__(self) -> str:
        return repr(self.model)

    @property
    def loading_where(self) -> str:
        """The process that loads it just now, in words; "" for none."""
        home = self.loading_at
        if home is not None:
            return home.name
        return EVERYWHERE if self.filling else ""

    def serves(self, lane: Lane) -> bool:
        """True when a worker thread can have this model computed on."""
        resident = self.resident
        if resident is None or lane.topology is not self.topology:
            return False
        if lane.hosts is None:
            return lane.process in resident.homes
        return any(home.index in lane.hosts for home in resident.homes)

    def about(self, route: Spec) -> tuple[Spec, int | None] | None:
        """What a worker thread is told: the spec of a handler on this model, and the pid of the host that has it."""
        resident = self.resident
        if resident is None or not resident.homes:
            return None
        home = resident.homes[0]
        return route._replace(model=resident.spec.model), home.pid if home.role == "host" else None


class Resident:
    """A loaded model.

    Attributes:
        spec: what it is called there; every load has another number.
        homes: the processes that have it.
        fd: its segment in mode shared, -1 elsewhere; `segment` is how to rebuild it from there.
        mapped: its bytes in mapped files, its segment among them, by (device, inode).
        at: when it was loaded (monotonic seconds).
    """

    def __init__(
        self,
        place: Place,
        spec: Spec,
        homes: list[Process],
        size_bytes: int,
        load_s: float,
        mapped: dict[File, int],
        fd: int = -1,
        segment: object = None,
    ) -> None:
        self.place = place
        self.spec = spec
        self.homes = homes
        self.size_bytes = size_bytes
        self.load_s = load_s
        self.mapped = mapped
        self.fd = fd
        self.segment = segment
        self.at = time.monotonic()

    @property
    def there(self) -> bool:
        """False once its last process has died, which may not be in the books yet."""
        return self.fd >= 0 or any(home.alive for home in self.homes)

    @property
    def where(self) -> str:
        """Its processes in words."""
        if self.fd >= 0:
            return EVERYWHERE
        return ", ".join(home.name for home in self.homes) or "a process that has ended"

    @property
    def pid(self) -> int | None:
        """Of its process, where there is one."""
        return self.homes[0].pid if len(self.homes) == 1 else None

    def weigh(self, home: Process, sign: int) -> None:
        """Add its bytes to what its process is known to hold, or take them away."""
        report = home.report
        report["weights_bytes"] = max(0, report.get("weights_bytes", 0) + sign * self.size_bytes)
        mapped = [one for one in report.get("mapped", ()) if one is not self.mapped]
        report["mapped"] = [*mapped, self.mapped] if sign > 0 else mapped

    def close(self) -> None:
        """Close the segment; its memory goes with the last process that maps it. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def choose_home(place: Place, others: Iterable[Place]) -> Process | None:
    """The process with the fewest bytes of models, of those that may have this one; None when there is none."""
    held: dict[Process, list[int]] = {}
    taken = set()
    for other in others:
        if other is place:
            continue
        resident = other.resident
        homes = [other.loading_at] if other.loading_at is not None else resident.homes if resident is not None else []
        for home in homes:
            held.setdefault(home, []).append(other.size_bytes or 0)
            if other.model is place.model:
                taken.add(home)
    able = [process for process in _homes_of(place.topology) if process not in taken]

    def weight(process: Process) -> tuple[int, int, bytes]:
        sizes = held.get(process, [])
        return sum(sizes), len(sizes), _rank(place.spec, process.index)

    return min(able, key=weight, default=None)


def _rank(spec: Spec, index: int) -> bytes:
    """Order of homes for a model that is the same each time, and another one for each model (rendezvous hashing)."""
    return hashlib.blake2b(f"{spec.model} {index}".encode(), digest_size=8).digest()


def least_busy(places: list[Place], lane: Lane, lanes: list[Lane]) -> Place:
    """Of the places that serve a lane the one with the fewest chunks on their way to it."""
    able = [place for place in places if place.serves(lane)] or places  # the last one may have just gone
    if len(able) == 1 or lane.hosts is None:
        return able[0]
    waiting = [chunk.about[1] for other in lanes for chunk in other.in_flight]

    def load(place: Place) -> int:
        resident = place.resident
        return 0 if resident is None else sum(waiting.count(home.pid) for home in resident.homes)

    return min(able, key=load)


def idle_home(topology: Topology, lanes: list[Lane], residents: Iterable[Resident | None]) -> Process | None:
    """A process that could have a copy of a model, and has nothing to do."""
    taken = {home for resident in residents if resident is not None for home in resident.homes}
    busy: set[int] = set()
    for lane in lanes:
        for chunk in lane.in_flight:
            busy.add(lane.process.pid if lane.hosts is None else chunk.about[1])
    for process in _homes_of(topology):
        if process not in taken and process.pid not in busy:
            return process
    return None


def _homes_of(topology: Topology) -> list[Process]:
    """The processes that models can be loaded in now."""
    role = "host" if topology.settings.remote else "worker"
    return [process for process in topology.of_role(role) if process.ready and process.alive]

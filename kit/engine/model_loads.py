"""Bringing models by key into serving processes and out of them: what the model manager asks of a deployment."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine.homes import Place, Resident, choose_home
from kit.engine.process import STOP_TIMEOUT_S
from kit.engine.protocol import KNOW_MODEL, LOAD_MODEL, SIZE_MODEL, UNLOAD_MODEL
from kit.engine.segments import Segments
from kit.engine.trouble import Trouble
from kit.key_routes import KeyModel
from kit.model_bytes import Loaded
from kit.sizes import format_bytes

if TYPE_CHECKING:
    from kit.engine.model_places import ModelPlaces
    from kit.engine.process import Process

#: A load whose process dies is tried in another one, until it has so much blame: as much as three deaths give where
#: nothing else was being loaded in the process, or nine where the other one may be why.
MOST_BLAME, ALONE, BESIDE = 9, 3, 1
#: Such tries go one by one, so that the one to blame is found; a slow one is waited for so long, seconds.
APART_S = 2.0


class ModelLoads:
    """Loads and unloads the models of places; its methods wait for other processes."""

    def __init__(self, places: ModelPlaces) -> None:
        self.segments = Segments(self, places.specs)
        self._places = places
        self._sizes: dict[KeyModel, int] = {}  # as measured at the last load
        self._homes_changed = threading.Condition()
        self._one_by_one = threading.Lock()

    def homes_changed(self) -> None:
        """Look again for homes: a process is ready, or another topology serves, or none any more."""
        with self._homes_changed:
            self._homes_changed.notify_all()

    def measured(self, model: KeyModel) -> int | None:
        """Bytes of a model at its last load."""
        return self._sizes.get(model)

    def size_of(self, place: Place) -> int | None:
        """Bytes of a model as measured once, else as its handler estimates them, in a serving process.

        Raises:
            KitError: its handler can't be had, or its estimate fails.
        """
        if place.model in self._sizes:
            return self._sizes[place.model]
        answer = None
        with contextlib.suppress(errors.KitError):
            answer = self._home_for(place).ask(SIZE_MODEL, place.spec).result()
        if isinstance(answer, Trouble):
            raise self._failed(place, answer.error())
        return answer

    def load(self, place: Place) -> Loaded:
        blame = deaths = 0
        while blame < MOST_BLAME:
            began = time.monotonic()
            try:
                with self._apart() if deaths else contextlib.nullcontext():
                    resident = self._bring(place)
            except errors.WorkerDied:
                deaths += not place.killed
                if not place.killed:
                    blame += BESIDE if place.beside else ALONE
                place.killed = False
                continue
            except errors.KitError as error:
                raise self._failed(place, error) from None
            words = (
                f"{place.model!r} at {resident.where}: {format_bytes(resident.size_bytes)} in {resident.load_s:.2f} s"
            )
            above = self._places.manager.above_budget(place, resident.size_bytes)
            if above:
                words += f", {format_bytes(above)} above the budget: its size wasn't known, or was another"
            self._places.engine.event("load", words, resident.pid, resident.load_s, repr(place.model))
            return Loaded(
                resident, resident.load_s or time.monotonic() - began, resident.size_bytes, resident.mapped, 0
            )
        words = f"the process that loaded it died, {deaths} times in a row. See deployment.logs(); "
        words += "does its load_model need more memory than there is?"
        raise self._failed(place, errors.ModelLoadFailed(words))

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        alone = self._one_by_one.acquire(timeout=APART_S)
        try:
            yield
        finally:
            if alone:
                self._one_by_one.release()

    def _failed(self, place: Place, error: errors.KitError) -> errors.KitError:
        """The error of a load with the key that it was for, noted in the history."""
        if isinstance(error, errors.ModelLoadFailed):
            words = f"loading the model of {place.model!r} failed: {error.args[0]}"
            error = errors.ModelLoadFailed(words, error.remote_traceback)
        if not isinstance(error, errors.SwitchCancelled):  # the next topology loads it
            words = f"{place.model!r}: {error.args[0]}"
            self._places.engine.event("fail", words, model=repr(place.model))
        return error

    def _bring(self, place: Place) -> Resident:
        """Load a model into its home.

        Raises:
            WorkerDied: the home died. KitError: the load failed.
        """
        if place.topology.settings.mode == "shared" and place.fixed is None:
            place.filling = True
            try:
                return self.segments.bring(place)
            finally:
                place.filling = False
        home = self._home_for(place)
        place.loading_at = home
        spec = self._places.specs.loaded(place.spec)
        self._count(home, 1)
        known = self._make_known(place)
        try:
            answer = home.ask(LOAD_MODEL, spec).result()
            self._count(home, -1)
        except errors.WorkerDied:
            home.exited.wait(STOP_TIMEOUT_S)  # or it would be chosen again
            place.killed, place.beside = home.expected_death, home.loads > 1
            raise
        finally:
            place.loading_at = None
        if isinstance(answer, Trouble):
            raise answer.error()
        for found in known:
            with contextlib.suppress(errors.WorkerDied):  # another takes its place
                found.result()
        load_s, size_bytes, mapped = answer
        resident = Resident(place, spec, [home], size_bytes, load_s, mapped)
        self.settle(resident)
        if not home.alive:  # its end may have been noted before it was in the books
            place.resident = None
            place.killed, place.beside = home.expected_death, True
            raise errors.WorkerDied(f"{home.name} died.")
        return resident

    def _make_known(self, place: Place) -> list[Future[Any]]:
        """Have the workers find the handler of a model that a host loads, before one of their threads has to.

        Only where a user's function finds it, which may take its time.
        """
        if self._places.listed or not place.topology.settings.remote:
            return []
        number = place.spec.route
        workers = [one for one in place.topology.of_role("worker") if one.ready and number not in one.knows]
        for worker in workers:
            worker.knows.add(number)
        return [worker.ask(KNOW_MODEL, place.spec) for worker in workers]

    def _count(self, home: Process, change: int) -> None:
        """Count the loads of a process; those under way when it dies stay."""
        with self._homes_changed:
            home.loads += change

    def settle(self, resident: Resident) -> None:
        """Enter a loaded model in the books."""
        resident.place.size_bytes = self._sizes[resident.place.model] = resident.size_bytes
        resident.place.resident = resident
        for home in resident.homes:
            resident.weigh(home, 1)

    def _home_for(self, place: Place) -> Process:
        """The process where a model is to be; waits for one to be there.

        Raises:
            SwitchCancelled: its topology, or the place, doesn't serve any more.
        """
        if place.fixed is not None:
            return place.fixed
        with self._homes_changed:
            while True:
                if not self._places.serves(place) or not self._places.engine.alive:
                    raise errors.SwitchCancelled("another topology serves now.")
                home = choose_home(place, self._places.all())
                if home is not None:
                    return home
                self._homes_changed.wait(0.5)

    def drop(self, residents: list[Any]) -> None:
        """Unload models in their processes, and wait until that is done."""
        gone: dict[Process, list[int]] = {}
        for resident in residents:
            if resident is None:
                continue
            if resident.place.resident is resident:
                resident.place.resident = None
            for home in resident.homes:
                resident.weigh(home, -1)
                gone.setdefault(home, []).append(resident.spec.model)
            where = resident.where
            resident.close()
            words = f"{resident.place.model!r} from {where}: {format_bytes(resident.size_bytes)}"
            self._places.engine.event("evict", words, model=repr(resident.place.model))
        residents.clear()
        answers = [home.ask(UNLOAD_MODEL, numbers) for home, numbers in gone.items() if home.alive]
        for answer in answers:
            with contextlib.suppress(errors.WorkerDied):
                answer.result()

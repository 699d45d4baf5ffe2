"""Having models by key loaded for the requests that wait for them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from kit import errors
from kit.engine.load_threads import LoadThreads
from kit.engine.trouble import Trouble
from kit.manager.entry import Unwanted

if TYPE_CHECKING:
    from kit.engine.keyed_backlog import KeyedBacklog
    from kit.engine.model_places import ModelPlaces
    from kit.engine.model_queue import ModelQueue
    from kit.engine.requests import Request


class Fetches:
    """Loads in turns: each request's first before any other's next, both for a thread and for room.

    See `LoadThreads` and `kit.manager.room`. A load that nobody waits for any more isn't begun, and ends where it waits
    for room.
    """

    def __init__(self, places: ModelPlaces, threads: LoadThreads) -> None:
        self._places = places
        self._threads = threads

    # ---- what the dispatcher asks; its lock is held ------------------------------------------

    def want(self, queue: ModelQueue, asked_by: Iterable[Request]) -> None:
        """Have the model of a queue loaded; the dispatcher is told when it is there, or can't be had."""
        for request in asked_by:
            self._threads.run(partial(self._fetch, queue), name=queue, whom=request)

    def unwant(self, queue: ModelQueue) -> bool:
        """Nobody waits for the model of a queue any more; False when its load is under way, which may end then."""
        taken_back = self._threads.take_back(queue)
        if not taken_back:
            self._places.manager.look_again()
        return taken_back

    # ---- in load threads ---------------------------------------------------------------------

    def _fetch(self, queue: ModelQueue) -> None:
        dispatcher = self._places.engine.dispatcher
        with dispatcher.lock:
            request = self._backlog.begins(queue)
        if request is None:
            return
        try:
            lease = self._places.lease(queue.route, whom=request, wanted=queue.waits)
        except Unwanted:
            with dispatcher.lock:
                self._backlog.given_up(queue)
        except errors.KitError as error:
            self._refuse(queue, Trouble.of(error))
        except BaseException as error:  # nobody else would tell those who wait, such as of a policy that raises
            trouble = Trouble.of(error, f"loading the model of {queue.route.model!r} failed")
            self._refuse(queue, trouble._replace(kind="ModelLoadFailed"))
            raise
        else:
            with dispatcher.lock:
                self._backlog.arrived(queue, lease)
        dispatcher.pump()

    def _refuse(self, queue: ModelQueue, trouble: Trouble) -> None:
        dispatcher = self._places.engine.dispatcher
        with dispatcher.lock:
            chunks = self._backlog.refused(queue)
        for chunk in chunks:
            dispatcher.answers.fail_all(chunk, trouble)

    @property
    def _backlog(self) -> KeyedBacklog:
        keyed = self._places.engine.dispatcher.keyed
        assert keyed is not None
        return keyed

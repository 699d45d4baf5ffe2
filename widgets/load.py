"""The load of a deployment, which all its panels share: any of them starts, changes and stops it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from kit.deployment import Deployment
from kit.errors import DeploymentClosed, InvalidSetting
from kit.load import LoadGenerator, LoadReport
from kit.settings import Settings

_loads: weakref.WeakKeyDictionary[Deployment, SharedLoad] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def load_of(deployment: Deployment) -> SharedLoad:
    """The one load of a deployment."""
    with _lock:
        return _loads.setdefault(deployment, SharedLoad(deployment))


def clients_of(settings: Settings) -> int:
    """Requests in flight that keep every worker thread busy: one that it computes, and the next."""
    return 2 * settings.processes * settings.threads


class WeakDeployment:
    """Passes examples on to a deployment without keeping it: dropping its last reference still closes it."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = weakref.ref(deployment)

    def submit(self, examples: Any) -> Future[list[Any]]:
        """As `Deployment.submit`.

        Raises:
            DeploymentClosed: it is gone.
        """
        deployment = self._deployment()
        if deployment is None:
            raise DeploymentClosed("the deployment was dropped, and the load with it.")
        future = deployment.submit(examples)
        # With requests always in flight the futures would keep it for ever.
        future.deployment = None  # type: ignore[attr-defined]
        return future


class SharedLoad:
    """Start, change and stop; ends with the last panel that uses it."""

    def __init__(self, deployment: Deployment) -> None:
        self._weak = WeakDeployment(deployment)
        self._lock = threading.RLock()
        self._generator: LoadGenerator | None = None
        self._examples: Sequence[Any] = ()
        self._users = 0
        self.rests = 0  # measurements that it rests for

    def join(self) -> None:
        """Count one more panel."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Count one panel less; the last one stops the load."""
        with self._lock:
            self._users -= 1
            last = self._users <= 0
        if last:
            self.stop(timeout_s=2.0)

    def start(self, examples: Sequence[Any], rate: float | None, settings: Settings) -> None:
        """Start it, or change the rate of the one that runs; `settings` say how many requests at once it takes.

        Raises:
            InvalidSetting: no examples, or a rate that can't be.
        """
        with self._lock:
            if self.rests:
                raise InvalidSetting(
                    "the load rests while modes are measured, which it would falsify: start it afterwards."
                )
            if self._generator is not None and self._generator.running:
                self._generator.rate = rate
                return
            if not len(examples):
                raise InvalidSetting(
                    "the load has no examples to send: make the panel with ServingPanel(deployment, examples=...), or "
                    "predict something first."
                )
            self._examples = examples
            self._generator = LoadGenerator(self._weak, examples, rate, clients=clients_of(settings)).start()

    @contextmanager
    def resting(self, settings: Callable[[], Settings]) -> Iterator[None]:
        """Within it nothing is sent; afterwards what was sent before goes on, unless no panel is left."""
        with self._lock:
            ran, rate = self.running, self.rate
            self.rests += 1
        try:
            self.stop()
            yield
        finally:
            with self._lock, suppress(DeploymentClosed):
                self.rests -= 1
                if ran and self._users > 0 and not self.rests:
                    self.start(self._examples, rate, settings())

    def follow(self, settings: Settings) -> None:
        """Send as many requests at once as these settings take."""
        generator = self._generator
        if generator is not None and generator.clients != clients_of(settings):
            generator.clients = clients_of(settings)

    def stop(self, timeout_s: float = 60.0) -> LoadReport | None:
        """Stop it and wait for the answers still due; None when there was none."""
        with self._lock:
            generator = self._generator
        return None if generator is None else generator.stop(timeout_s).report()

    @property
    def running(self) -> bool:
        """Whether requests are being sent."""
        return self._generator is not None and self._generator.running

    @property
    def clients(self) -> int:
        """Requests at once, as fast as possible."""
        return 0 if self._generator is None else self._generator.clients

    @property
    def rate(self) -> float | None:
        """Requests a second, None for as fast as possible."""
        return None if self._generator is None else self._generator.rate

    def report(self) -> LoadReport | None:
        """What it met so far; None when it never ran."""
        return None if self._generator is None else self._generator.report()

"""Models and clients that several tests share."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kit


class Wide(kit.ModelHandler):
    """A stack of linear layers of about `megabytes` MB, the same whenever it is loaded."""

    preload = ("torch",)

    def __init__(self, megabytes: int = 400, width: int = 2048, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.megabytes = megabytes
        self.width = width
        self.seed = seed

    def load_model(self) -> Any:
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        layers = max(1, round(self.megabytes * 1e6 / (4 * self.width**2)))
        modules: list[Any] = []
        for _ in range(layers):
            # Uninitialised first: initialising 400 MB twice would take seconds.
            layer = torch.nn.utils.skip_init(torch.nn.Linear, self.width, self.width, bias=False)
            with torch.no_grad():
                layer.weight.uniform_(-0.02, 0.02, generator=generator)
            modules += [layer, torch.nn.ReLU()]
        return torch.nn.Sequential(*modules).eval()

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        import torch

        with torch.no_grad():
            return list(model(torch.stack(list(batch)))[:, :8])


class Doubling(kit.ModelHandler):
    """Doubles numbers; its model notes the sizes of the batches that it saw."""

    def load_model(self) -> list[int]:
        return []

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        model.append(len(batch))
        return [example * 2 for example in batch]


@contextmanager
def clients(
    deployment: Any,
    draw_request: Callable[[random.Random], list[Any]],
    check: Callable[[list[Any], list[Any]], bool],
    count: int = 4,
    timeout: float = 120,
) -> Iterator[tuple[list[str], list[int]]]:
    """Clients that ask all the time and have each answer checked; yields what went wrong, and how much was answered."""
    wrong: list[str] = []
    answered = [0] * count
    stop = threading.Event()

    def ask(number: int) -> None:
        draw = random.Random(number)
        while not stop.is_set():
            request = draw_request(draw)
            try:
                predictions = deployment.predict(request, timeout=timeout)
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}"[:500])
                return
            if len(predictions) != len(request) or not check(request, predictions):
                wrong.append(f"wrong answer to {request!r}"[:500])
            answered[number] += len(request)

    threads = [threading.Thread(target=ask, args=(number,), name=f"client-{number}") for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield wrong, answered
    finally:
        stop.set()
        for thread in threads:
            thread.join(1.5 * timeout)
        assert not any(thread.is_alive() for thread in threads), "a client hangs"

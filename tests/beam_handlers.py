"""Handlers of Beam's kind, unmodified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apache_beam.ml.inference import base

from tests.beam_models import Model


class AddsOne(base.ModelHandler[int, int, Model]):
    """Gives bare values, one by one."""

    def load_model(self) -> Model:
        return Model()

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        for example in batch:
            yield model.predict(example)


class GivesResults(AddsOne):
    """Gives Beam's PredictionResults, one by one."""

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        for example in batch:
            yield base.PredictionResult(example, model.predict(example), "theirs")


class Remote(base.RemoteModelHandler[int, int, Model]):
    """Calls an endpoint, which fails the first `failures` times."""

    def __init__(self, failures: int = 0, retries: int = 2) -> None:
        super().__init__(namespace="Remote", num_retries=retries, throttle_delay_secs=1)
        self.failures = failures

    def create_client(self) -> Model:
        return Model()

    def request(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the endpoint is busy")
        return [model.predict(example) for example in batch]


class NoRoom(base.RateLimiter):
    """Lets nothing through."""

    def __init__(self) -> None:
        super().__init__(namespace="NoRoom")

    def allow(self, hits_added: int = 1, **kwargs: Any) -> bool:
        return False


class Limited(Remote):
    """Calls an endpoint that takes no more."""

    def __init__(self) -> None:
        super().__init__(retries=0)
        self._rate_limiter = NoRoom()

"""Handlers that the tests of `kit.beam` serve; Beam's worker processes import them from here.

Those of Beam's kind are in `beam_handlers`: importing Beam takes the serving processes seconds.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import kit


class Model:
    """Adds a number; Beam refers to models weakly, which plain numbers don't allow."""

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def predict(self, example: Any) -> Any:
        return example + self.step


class AddsOne(kit.ModelHandler):
    """Gives bare values, one by one."""

    def load_model(self) -> Model:
        return Model()

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        for example in batch:
            yield model.predict(example)


class Counting(AddsOne):
    """Its model counts up: two models count apart."""

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        for _ in batch:
            model.step += 1
            yield model.step - 1


class GivesResults(AddsOne):
    """Gives PredictionResults, which name the model."""

    def __init__(self, model_id: str = "default", **options: Any) -> None:
        super().__init__(**options)
        self.model_id = model_id

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        return [kit.PredictionResult(example, model.predict(example), self.model_id) for example in batch]

    def update_model_path(self, model_path: str | None = None) -> None:
        self.model_id = model_path or self.model_id


class Scaled(AddsOne):
    """Multiplies by a number; keeps a list of the processes that loaded it, a line each."""

    def __init__(self, factor: int, folder: str) -> None:
        super().__init__()
        self.factor, self.folder = factor, folder
        self.model_id = f"times {factor}"

    def load_model(self) -> int:
        with open(f"{self.folder}/loads-{self.factor}", "a") as file:
            file.write(f"{os.getpid()}\n")
        return self.factor

    def run_inference(
        self, batch: Sequence[Any], model: int, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        return [example * model for example in batch]


class WantsArgs(AddsOne):
    """Adds what the inference arguments say."""

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        if not inference_args:
            raise ValueError("inference_args should exist")
        return [example + inference_args["add"] for example in batch]


class RefusesArgs(AddsOne):
    """Takes no inference arguments."""

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        if inference_args:
            raise ValueError("inference_args were provided")


class Slow(AddsOne):
    """Takes `load_s` seconds to load, and as many seconds an example as this says."""

    def __init__(self, load_s: float = 0, **options: Any) -> None:
        super().__init__(min_batch_size=1, max_batch_size=1, **options)
        self.load_s = load_s

    def load_model(self) -> Model:
        time.sleep(self.load_s)
        return Model()

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        for example in batch:
            time.sleep(example)
            yield example


class FailsToLoad(AddsOne):
    """Has no model."""

    def load_model(self) -> Model:
        raise OSError("no such model")


class KillsItself(AddsOne):
    """Ends its own process on the example 13, where a file isn't there yet: the second time it lives."""

    def __init__(self, mark: str) -> None:
        super().__init__(max_batch_size=8)
        self.mark = mark

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        if 13 in batch and not os.path.exists(self.mark):
            with open(self.mark, "x"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return [model.predict(example) for example in batch]


class Padded(AddsOne):
    """Says of each text how long the longest of its batch is."""

    def __init__(self) -> None:
        super().__init__(min_batch_size=2, max_batch_size=2, batch_length_fn=len, batch_bucket_boundaries=[5])

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        longest = max(map(len, batch))
        return [f"{text}:{longest}" for text in batch]


class Marks(AddsOne):
    """Makes a file when it begins the first batch, and takes its time then."""

    def __init__(self, mark: str) -> None:
        super().__init__(max_batch_size=8)
        self.mark = mark

    def run_inference(
        self, batch: Sequence[Any], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        if not os.path.exists(self.mark):
            with open(self.mark, "w"):
                time.sleep(3)
        return [model.predict(example) for example in batch]


class Notes(AddsOne):
    """Writes a line for each batch that it computes: how many examples, their bytes, and seconds that it took."""

    def __init__(self, file: str, batch_s: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.file, self.batch_s = file, batch_s

    def run_inference(
        self, batch: Sequence[str], model: Model, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        began = time.perf_counter()
        if "bad" in batch:
            raise ValueError("bad")
        time.sleep(self.batch_s)
        results = [text.upper() for text in batch]
        line = f"{len(batch)} {sum(map(len, batch))} {time.perf_counter() - began}\n"
        with open(self.file, "a") as file:
            file.write(line)
        return results


class Counted(AddsOne):
    """Says itself how many bytes an example has."""

    def __init__(self, each: int) -> None:
        super().__init__()
        self.each = each

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return self.each * len(batch)

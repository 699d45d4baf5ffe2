"""What pickles and doesn't unpickle fails its own request, in words, and takes no process and no lane along."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kit
from kit import errors

MODES = ("default", "large", "medium", "shared")


class TwoArguments(Exception):
    """As errors often are: its pickle calls it with the one text that it has."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} {other}")


class Fragile:
    """Can't be rebuilt; `padding` makes its pickle long."""

    def __init__(self, padding: int = 0) -> None:
        self.padding = padding

    def __reduce__(self) -> Any:
        return rebuild, (bytes(self.padding),)


def rebuild(padding: bytes) -> None:
    raise ValueError("glued badly")


class OnlyThere:
    """Can be rebuilt anywhere but in the process with this pid."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return elsewhere, (self.pid,)


def elsewhere(pid: int) -> OnlyThere:
    if os.getpid() == pid:
        raise ValueError("glued badly here")
    return OnlyThere(pid)


HERE = OnlyThere(os.getpid())


class Gives(kit.ModelHandler):
    """Gives its examples back, and what doesn't unpickle for some words."""

    def __init__(self, by_preprocessing: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.by_preprocessing = by_preprocessing

    def load_model(self) -> Any:
        return np.zeros(1)

    def get_preprocess_fns(self) -> Any:
        return [lambda example: Fragile() if example == "fragile" else example] if self.by_preprocessing else []

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        return [self._made(example) for example in batch]

    def _made(self, example: Any) -> Any:
        if not isinstance(example, str):
            return example
        made = {"error": TwoArguments, "fragile": Fragile, "long": lambda *_: Fragile(100_000)}.get(example)
        if example.startswith("raise"):
            raise {"interrupt": KeyboardInterrupt, "exit": GeneratorExit}[example.split()[1]]("by hand")
        return example if made is None else made(*(1, 2) if made is TwoArguments else ())


def serves(deployment: Any) -> bool:
    """Every lane is free: more requests than all of them hold are answered."""
    return all(deployment.predict([number], timeout=20)[0].inference == number for number in range(10))


@pytest.mark.parametrize("mode", MODES)
def test_a_prediction_that_does_not_unpickle_fails_its_request(mode: str) -> None:
    with kit.deploy(Gives(), mode=mode, processes=1) as deployment:
        for _ in range(3):  # a lane takes two at most
            with pytest.raises(errors.InferenceFailed, match=r"TwoArguments.*can't be rebuilt.*missing 1 required"):
                deployment.predict(["error"], timeout=20)
        for example in ("fragile", "long"):
            with pytest.raises(errors.InferenceFailed, match=r"rebuild\).*ValueError: glued badly"):
                deployment.predict([example, 1], timeout=20)
        found = deployment.submit([1, "error", 2], isolate=True).result(20)
        assert "TwoArguments" in str(found[1].error)
        assert [found[0].inference, found[2].inference] == [1, 2]
        assert serves(deployment)
        assert deployment.counters["deaths"] == 0
        assert deployment.counters["accepted"] == deployment.counters["answered"] + deployment.counters["failed"]


@pytest.mark.parametrize("mode", MODES)
def test_an_example_that_does_not_unpickle_fails_its_request(mode: str) -> None:
    with kit.deploy(Gives(), mode=mode, processes=1) as deployment:
        for fragile in (Fragile(), Fragile(100_000)):
            with pytest.raises(errors.InferenceFailed, match=r"an example .*rebuild.*ValueError: glued badly"):
                deployment.predict([fragile], timeout=20)
        found = deployment.submit([1, Fragile(), 2], isolate=True).result(20)
        assert "glued badly" in str(found[1].error)
        assert [found[0].inference, found[2].inference] == [1, 2]
        assert serves(deployment)
        assert deployment.counters["deaths"] == 0


def test_requests_that_share_a_batch_with_it_are_answered() -> None:
    handler = Gives(min_batch_size=8, max_batch_size=8, max_batch_duration_secs=0.5)
    with kit.deploy(handler, processes=1) as deployment:
        for what in (Fragile(), "fragile"):
            asked = [deployment.submit([example]) for example in (1, what, 2, 3)]
            assert "glued badly" in str(asked.pop(1).exception(20))
            assert [future.result(20)[0].inference for future in asked] == [1, 2, 3]


@pytest.mark.parametrize("mode", ["large", "default"])
def test_what_pre_processing_makes_of_an_example(mode: str) -> None:
    with kit.deploy(Gives(by_preprocessing=True), mode=mode, processes=1) as deployment:
        with pytest.raises(errors.InferenceFailed, match="glued badly"):
            deployment.predict(["fragile"], timeout=20)
        assert serves(deployment)
        assert deployment.counters["deaths"] == 0


def test_inference_arguments_that_do_not_unpickle() -> None:
    with kit.deploy(Gives(), processes=1) as deployment:
        for _ in range(2):
            with pytest.raises(errors.InferenceFailed, match=r"the inference_args .*glued badly"):
                deployment.predict([1], timeout=20, inference_args={"fragile": Fragile()})
        assert deployment.predict([1], timeout=20, inference_args={"sound": 1})[0].inference == 1
        assert deployment.counters["deaths"] == 0


def test_models_by_key() -> None:
    handler = kit.KeyedModelHandler([kit.KeyModelMapping(["a", "b"], Gives())])
    with kit.deploy(handler, processes=1) as deployment:
        for pair in (("a", "error"), ("a", Fragile())):
            with pytest.raises(errors.InferenceFailed, match="can't be rebuilt"):
                deployment.predict([pair], timeout=20)
        assert deployment.predict([("b", 1)], timeout=20)[0][1].inference == 1
        assert deployment.counters["deaths"] == 0


def test_a_named_deployment_goes_on_for_everybody(runtime: Path) -> None:
    with kit.deploy(Gives(), name="gives", processes=1) as deployment:
        other = kit.connect("gives")
        for _ in range(3):
            with pytest.raises(errors.InferenceFailed, match=r"TwoArguments.*can't be rebuilt"):
                deployment.predict(["error"], timeout=20)
        assert serves(other)
        assert other.counters["deaths"] == 0


def test_pickles_that_a_named_deployment_takes_or_gives(runtime: Path) -> None:
    """Its kernel lost its connection over them."""
    with kit.deploy(Gives(), name="gives", processes=1, allow_pickle=True) as deployment:
        for number in range(20):  # by then asked directly
            with pytest.raises(errors.InferenceFailed, match=r"an example .*glued badly"):
                deployment.predict([Fragile()])
            with pytest.raises(errors.InferenceFailed, match=r"glued badly here"):
                deployment.predict([HERE])
            with pytest.raises(errors.InferenceFailed, match=r"the inference_args .*glued badly"):
                deployment.predict([1], inference_args={"x": Fragile()})
            assert deployment.predict([number])[0].inference == number
        found = deployment.submit([1, Fragile(), 2], isolate=True)
        with pytest.raises(errors.InferenceFailed, match=r"an example .*glued badly"):
            found.result(20)
        assert serves(deployment)
        assert deployment.counters["deaths"] == 0


@pytest.mark.parametrize("mode", [*MODES, "named"])
@pytest.mark.parametrize("way", ["raise interrupt", "raise exit"])
def test_an_interrupt_that_a_handler_raises_is_an_error_as_others(mode: str, way: str, runtime: Path) -> None:
    settings: dict[str, Any] = {"name": "raises"} if mode == "named" else {"mode": mode}
    words = {"raise interrupt": "KeyboardInterrupt: by hand", "raise exit": "GeneratorExit: by hand"}[way]
    with kit.deploy(Gives(), processes=1, **settings) as deployment:
        for _ in range(3):
            with pytest.raises(errors.InferenceFailed, match=words):
                deployment.predict([way], timeout=20)
        found = deployment.submit([1, way, 2], isolate=True).result(20)
        assert words in str(found[1].error)
        assert [found[0].inference, found[2].inference] == [1, 2]
        assert serves(deployment)
        for _ in range(20):  # by now asked directly where it is named
            deployment.predict([1], timeout=20)
        with pytest.raises(errors.InferenceFailed, match=words):
            deployment.predict([way], timeout=20)
        assert serves(deployment)
        assert deployment.counters["deaths"] == 0


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("named", [False, True])
def test_tensors_that_torch_cannot_unpickle_travel(name: str, named: bool, runtime: Path) -> None:
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    settings: dict[str, Any] = {"name": "gives"} if named else {"mode": "large"}
    tensors = [torch.arange(3 * width, dtype=torch.float32).to(dtype) for width in (1, 1, 1)]
    with kit.deploy(Gives(), processes=1, **settings) as deployment:
        for examples in (tensors[:1], tensors):
            for example, prediction in itertools.zip_longest(examples, deployment.predict(examples, timeout=20)):
                assert prediction.inference.dtype is dtype
                assert bytes(prediction.inference.view(torch.uint8).numpy()) == bytes(example.view(torch.uint8).numpy())
        with pytest.raises(errors.InferenceFailed, match=f"torch.{name}.*can't be rebuilt"):
            deployment.predict([{"inside": tensors[0]}], timeout=20)
        assert serves(deployment)

"""Models by key whose handlers, policies or keys are at fault: every request is answered, and told which key it was."""

from __future__ import annotations

import re
from typing import Any

import pytest

import kit
from kit import KeyedModelHandler, KeyModelMapping, ModelManager, RunInference, errors
from kit.manager.policy import Lru

MODES = ["default", "large", "shared"]


class Times(kit.ModelHandler):
    """Multiplies by its factor."""

    def __init__(self, factor: float, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def load_model(self) -> Any:
        import numpy as np

        return np.full(250_000, self.factor, np.float32)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[float]:
        return [float(example * model[0]) for example in batch]


class Guessing(Times):
    """Says that its model takes `estimate`, which may be an error to raise."""

    def __init__(self, estimate: Any) -> None:
        super().__init__(1)
        self.estimate = estimate

    def estimate_model_bytes(self) -> Any:
        if isinstance(self.estimate, Exception):
            raise self.estimate
        return self.estimate


def keyed(**handlers: Any) -> KeyedModelHandler:
    return KeyedModelHandler([KeyModelMapping([key], handler) for key, handler in handlers.items()])


# ---- estimates -----------------------------------------------------------------------------------

WRONG = {
    "text": ("1MB", "returned '1MB' (str): return bytes"),
    "list": ([1], "returned [1] (list): return bytes"),
    "nan": (float("nan"), "returned nan (float): return bytes"),
    "negative": (-1, "returned -1 (int): return bytes"),
    "raises": (RuntimeError("no estimate"), "failed: RuntimeError: no estimate"),
}


def with_wrong_estimates() -> KeyedModelHandler:
    return keyed(good=Times(2), **{name: Guessing(estimate) for name, (estimate, _) in WRONG.items()})


def said_of(name: str) -> str:
    return f"loading the model of {name!r} failed: Guessing.estimate_model_bytes {WRONG[name][1]}"


@pytest.mark.parametrize("mode", MODES)
def test_an_estimate_that_is_no_number_of_bytes_fails_the_requests_of_its_key_at_once(mode: str) -> None:
    with kit.deploy(with_wrong_estimates(), mode=mode, processes=2, memory_budget="20MB") as deployment:
        for name in WRONG:
            with pytest.raises(errors.ModelLoadFailed, match=re.escape(said_of(name))):
                deployment.submit([(name, 1)]).result(30)
            assert deployment.predict([("good", 3)], timeout=30)[0][1].inference == 6.0
        states = {keys[0]: state for keys, state in deployment.models()[["keys", "state"]].values}
        assert states == {"good": "resident"} | dict.fromkeys(WRONG, "failed")


def test_in_this_process_a_wrong_estimate_says_the_same() -> None:
    handler = with_wrong_estimates()
    for name in WRONG:
        with pytest.raises(errors.ModelLoadFailed, match=re.escape(said_of(name))):
            [(name, 1)] | RunInference(handler)
    assert ([("good", 3)] | RunInference(handler))[0][1].inference == 6.0
    rows = {row["keys"][0]: row for row in RunInference(handler).models().to_dict("records")}
    assert {rows[name]["state"] for name in WRONG} == {"failed"}
    assert "estimate_model_bytes" in rows["text"]["error"]


def test_a_deployment_of_one_model_refuses_a_wrong_estimate_in_words() -> None:
    with pytest.raises(errors.ModelLoadFailed, match=r"Guessing.estimate_model_bytes returned '1MB' \(str\)"):
        kit.deploy(Guessing("1MB"))


@pytest.mark.parametrize("estimate", ["1MB", -5, True])
def test_a_manager_takes_no_sizes_that_are_none(estimate: Any) -> None:
    manager = ModelManager(str, size_of=lambda name: estimate)
    with pytest.raises(errors.ModelLoadFailed, match="size_of returned"):
        manager.acquire("a")
    assert manager.rows()[0]["state"] == "failed"
    assert manager.used_bytes == 0
    with pytest.raises(errors.ModelLoadFailed, match="is tried in"):
        manager.acquire("a")


class Odd(Lru):
    """Fails once a model has been loaded."""

    def loaded(self, model: Any, size_bytes: int, load_s: float) -> None:
        raise ZeroDivisionError("odd")


def test_what_goes_wrong_in_a_load_thread_fails_the_requests_of_its_key(capfd: pytest.CaptureFixture[str]) -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a", "b"], Times(2))], policy=Odd())
    with kit.deploy(handler, processes=1) as deployment:
        futures = [deployment.submit([(key, 1)]) for key in "ab"]
        for future in futures:
            with pytest.raises(errors.ModelLoadFailed, match=r"the model of 'a' failed: ZeroDivisionError: odd"):
                future.result(30)
        assert deployment.models()["in_use"].sum() == 0
    assert "ZeroDivisionError" in capfd.readouterr().err

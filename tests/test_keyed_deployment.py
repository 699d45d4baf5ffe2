"""Models by key in a deployment: the same answers in every mode, within the deployment's budget."""

from __future__ import annotations

from typing import Any

import pytest

import kit
from kit import KeyedModelHandler, KeyModelMapping, MaybeKeyedModelHandler, RunInference, errors


class Weighted(kit.ModelHandler):
    """Multiplies by its factor; its model weighs 1 MB."""

    def __init__(self, factor: int, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def load_model(self) -> Any:
        import numpy as np

        return np.full(250_000, self.factor, np.float32)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[float]:
        return [float(example * model[0]) for example in batch]


def mapped(**options: Any) -> KeyedModelHandler:
    return KeyedModelHandler([KeyModelMapping([key], Weighted(key)) for key in range(1, 7)], **options)


EXAMPLES = [(1 + number % 6, number) for number in range(120)]
EXPECTED = [(key, (number, float(key * number), None)) for key, number in EXAMPLES]


@pytest.mark.parametrize("mode", ["default", "medium", "large"])
def test_answers_are_alike_in_every_mode(mode: str) -> None:
    with kit.deploy(mapped(memory_budget="9MB"), mode=mode, processes=2) as deployment:
        assert deployment.predict(EXAMPLES) == EXPECTED
        assert EXAMPLES | RunInference(deployment) == EXPECTED
        failures = ([(9, 1), *EXAMPLES, "x"] | RunInference(deployment).with_exception_handling()).failures
        assert [type(failure.error) for failure in failures] == [errors.UnknownKey, errors.UnsupportedInput]


def test_one_handler_for_all_keys_can_be_shared_too() -> None:
    handler = KeyedModelHandler(Weighted(3, max_batch_size=8))
    with kit.deploy(handler, mode="shared", processes=2) as deployment:
        assert deployment.predict([("a", 2), ("b", 4)]) == [("a", (2, 6.0, None)), ("b", (4, 12.0, None))]
        deployment.switch("large")
        assert deployment.predict([("a", 2)]) == [("a", (2, 6.0, None))]
    with kit.deploy(MaybeKeyedModelHandler(Weighted(3)), processes=1) as deployment:
        assert deployment.predict([2]) == [(2, 6.0, None)]
        assert deployment.predict([("k", 2)]) == [("k", (2, 6.0, None))]


def test_models_by_key_cannot_be_shared_as_one_and_the_error_says_what_to_do() -> None:
    with pytest.raises(errors.SharedModeUnavailable, match="Use mode 'large'"):
        kit.deploy(mapped(), mode="shared", processes=1)


def test_the_deployments_budget_is_shared_out_among_its_managers() -> None:
    with kit.deploy(mapped(memory_budget="100MB"), processes=2, memory_budget="1MB") as deployment:
        # Half of the megabyte is too little for any of the models.
        with pytest.raises(errors.BudgetExceeded, match=r"1 MB .*500 KB"):
            deployment.predict(EXAMPLES[:4])
        deployment.switch("large", memory_budget="3MB")
        assert deployment.predict(EXAMPLES) == EXPECTED

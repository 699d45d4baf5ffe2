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


MODES = ["default", "medium", "large", "shared"]


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_alike_in_every_mode_and_models_stay_within_the_budget(mode: str) -> None:
    with kit.deploy(mapped(memory_budget="3.5MB"), mode=mode, processes=2) as deployment:
        for _ in range(3):
            assert deployment.predict(EXAMPLES) == EXPECTED
            table = deployment.models()
            assert 1_000_000 <= table.resident_bytes.sum() <= 3_500_000
        assert EXAMPLES | RunInference(deployment) == EXPECTED
        failures = ([(9, 1), *EXAMPLES, "x"] | RunInference(deployment).with_exception_handling()).failures
        assert [type(failure.error) for failure in failures] == [errors.UnknownKey, errors.UnsupportedInput]
        assert [failure.example for failure in failures] == [(9, 1), "x"]
        table = deployment.models()
        assert sorted(key for keys in table["keys"] for key in keys) == [1, 2, 3, 4, 5, 6]
        assert (table.loads >= 1).all()
        assert table.evictions.sum() >= 3
        assert table.loads.sum() - table.evictions.sum() == (table.state == "resident").sum()
        assert {"load", "evict"} <= {event.kind for event in deployment._engine.history.events()}


@pytest.mark.parametrize("example", [7, "ab"])
def test_one_handler_for_all_keys_refuses_an_example_without_one(example: object) -> None:
    with kit.deploy(KeyedModelHandler(Weighted(3))) as deployment:
        failures = ([("a", 1), example] | RunInference(deployment).with_exception_handling()).failures
        assert [failure.example for failure in failures] == [example]
        assert isinstance(failures[0].error, errors.UnsupportedInput)
        assert f"example 1, {example!r} ({type(example).__name__}), has no key" in str(failures[0].error)


def test_one_handler_for_all_keys_can_be_shared_too() -> None:
    handler = KeyedModelHandler(Weighted(3, max_batch_size=8))
    with kit.deploy(handler, mode="shared", processes=2) as deployment:
        assert deployment.predict([("a", 2), ("b", 4)]) == [("a", (2, 6.0, None)), ("b", (4, 12.0, None))]
        deployment.switch("large")
        assert deployment.predict([("a", 2)]) == [("a", (2, 6.0, None))]
    with kit.deploy(MaybeKeyedModelHandler(Weighted(3)), processes=1) as deployment:
        assert deployment.predict([2]) == [(2, 6.0, None)]
        assert deployment.predict([("k", 2)]) == [("k", (2, 6.0, None))]


def test_a_model_may_be_as_large_as_the_budget_of_all_processes_and_no_larger() -> None:
    with kit.deploy(mapped(memory_budget="100MB"), processes=3, memory_budget="1.1MB") as deployment:
        assert deployment.predict(EXAMPLES) == EXPECTED
        assert (deployment.models().state == "resident").sum() == 1
        deployment.switch(memory_budget="500kB")
        with pytest.raises(errors.BudgetExceeded, match=r"1 MB .*500 KB"):
            deployment.predict(EXAMPLES[:4])
        deployment.switch("shared", memory_budget="1.5MB")
        # While its segment is filled, a model is there twice.
        with pytest.raises(errors.BudgetExceeded, match="2 MB while it is loaded"):
            deployment.predict(EXAMPLES[:4])


def test_the_budget_is_changed_live_and_models_over_it_go() -> None:
    with kit.deploy(mapped(), processes=2, memory_budget="10MB") as deployment:
        assert deployment.predict(EXAMPLES) == EXPECTED
        pids = set(deployment.stats().pid)
        assert (deployment.models().state == "resident").sum() == 6
        deployment.switch(memory_budget="2.5MB")
        assert deployment.models().resident_bytes.sum() <= 2_500_000
        assert deployment.predict(EXAMPLES) == EXPECTED
        deployment.pin([1, 2])
        with pytest.raises(errors.BudgetExceeded, match="unpin some first"):
            deployment.switch(memory_budget="1.5MB")
        with pytest.raises(errors.BudgetExceeded, match="pinned"):
            deployment.pin([3])
        assert deployment.settings.memory_budget == 2_500_000
        deployment.switch(memory_budget="2.5MB")  # as it is
        assert set(deployment.stats().pid) == pids
        deployment.switch(memory_budget="none").preload([1, 2, 3, 4, 5, 6])
        assert (deployment.models().state == "resident").all()
        assert set(deployment.stats().pid) == pids
        deployment.unload([1, 2, 3])
        assert deployment.predict([(4, 1)]) == [(4, (1, 4.0, None))]
        assert set(deployment.models().set_index("state").loc["evicted"]["keys"].str[0]) == {1, 2, 3}


@pytest.mark.parametrize("mode", ["default", "shared"])
def test_pinned_models_come_along_to_another_mode(mode: str) -> None:
    with kit.deploy(mapped(), processes=2, memory_budget="4.2MB") as deployment:
        deployment.pin([1])
        for wanted in ("large", mode):
            deployment.switch(wanted)
            assert deployment.predict(EXAMPLES) == EXPECTED
            row = deployment.models().set_index(deployment.models()["keys"].str[0]).loc[1]
            assert row.pinned
            assert row.state == "resident"


def test_of_several_keys_all_are_pinned_or_none() -> None:
    with kit.deploy(mapped(), processes=2, memory_budget="3.2MB") as deployment:
        deployment.pin([4])
        with pytest.raises(errors.BudgetExceeded, match="are pinned"):
            deployment.pin([1, 4, 2, 3])
        models = deployment.models()
        assert [keys[0] for keys in models[models.pinned]["keys"]] == [4]
        deployment.pin([1, 2])


def test_an_eviction_is_told_with_the_place_that_the_load_was() -> None:
    with kit.deploy(mapped(), mode="shared", processes=2) as deployment:
        deployment.preload([1]).unload([1])
        told = deployment.history["events"].str.cat(sep="; ")
        assert "load: 1 at all workers: 1 MB" in told
        assert "evict: 1 from all workers: 1 MB" in told


def test_methods_for_keys_say_when_there_are_none() -> None:
    with kit.deploy(Weighted(2), processes=1) as deployment:
        with pytest.raises(errors.InvalidSetting, match="one model"):
            deployment.pin(["a"])
        with pytest.raises(errors.InvalidSetting, match="has one model, and no keys"):
            deployment.update_models([])
        with pytest.raises(errors.InvalidSetting, match="Deploy the new handler"):
            deployment.update_model(mapped())
    with kit.deploy(mapped(), processes=1) as deployment:
        with pytest.raises(errors.UnknownKey, match="77"):
            deployment.preload([77])
        with pytest.raises(errors.InvalidSetting, match="list of keys"):
            deployment.preload("abc")


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_functions_of_the_keyed_handler_and_of_those_inside_run_in_their_places(mode: str) -> None:
    inside = Weighted(2).with_preprocess_fn(int).with_postprocess_fn(lambda value: value + 1)
    handler = KeyedModelHandler([KeyModelMapping(["a"], inside), KeyModelMapping(["b"], Weighted(3))])
    around = handler.with_preprocess_fn(lambda text: (text[0], text[1:] if text[0] == "a" else int(text[1:])))
    with kit.deploy(around, mode=mode, processes=1) as deployment:
        assert deployment.predict(["a5", "b7"]) == [("a", 11.0), ("b", (7, 21.0, None))]
    ended = around.with_postprocess_fn(lambda pair: (pair[0].upper(), pair[1]))
    with kit.deploy(ended, mode=mode, processes=1) as deployment:
        assert deployment.predict(["a5", "b7"]) == [("A", 11.0), ("B", (7, 21.0, None))]
        (failure,) = (["b7", "bx"] | RunInference(deployment).with_exception_handling()).failures
        assert failure.example == "bx"


def test_keys_that_are_not_listed_get_models_from_a_function_that_only_serving_processes_ask() -> None:
    asked: list[int] = []

    def make(key: int) -> Any:
        asked.append(key)
        return Weighted(key) if key < 40 else None

    with kit.deploy(KeyedModelHandler(make, memory_budget="5MB"), processes=2) as deployment:
        before = deployment.models()
        assert before.empty
        examples = [(key, 2) for key in range(30)]
        assert deployment.predict(examples) == [(key, (2, 2.0 * key, None)) for key in range(30)]
        assert deployment.models().resident_bytes.sum() <= 5_000_000
        assert sorted(before) == sorted(deployment.models())
        for _ in range(2):
            with pytest.raises(errors.UnknownKey, match="50"):
                deployment.predict([(50, 1)])
        assert asked == []


class Named(Weighted):
    """Multiplies by the number that its path is, and calls its model by that."""

    model_id: str | None = None

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path:
            self.factor, self.model_id = int(model_path), model_path


@pytest.mark.parametrize("key", ["a", "b"])
def test_a_key_that_leaves_others_takes_only_itself_along_also_after_a_switch(key: str) -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a", "b"], Named(2)), KeyModelMapping(["c"], Named(3))])
    expected = {"a": 2.0, "b": 2.0, "c": 3.0, key: 7.0}
    with kit.deploy(handler, processes=1) as deployment:
        deployment.predict([(name, 1) for name in "abc"])
        deployment.update_models([kit.KeyModelPathMapping([key], "7")])
        for mode in ("default", "large", "shared"):
            deployment.switch(mode)
            found = deployment.predict([(name, 1) for name in "abc"])
            assert {name: result.inference for name, result in found} == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_key_that_leaves_others_takes_only_itself_along_also_after_a_death(mode: str) -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a", "b"], Named(2))])
    with kit.deploy(handler, mode=mode, processes=1) as deployment:
        deployment.predict([("a", 1), ("b", 1)])
        deployment.update_models([kit.KeyModelPathMapping(["a"], "7")])
        for role in ("worker", "host") if mode in ("large", "medium") else ("worker",):
            deployment.kill(role, 0)
            found = deployment.predict([("a", 1), ("b", 1)])
            assert [result[1:] for _, result in found] == [(7.0, "7"), (2.0, None)]

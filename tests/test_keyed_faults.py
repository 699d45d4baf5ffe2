"""Models by key whose handlers, policies or keys are at fault: every request is answered, and told which key it was."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import numpy as np
import pytest

import kit
from kit import (
    KeyedModelHandler,
    KeyModelMapping,
    KeyModelPathMapping,
    MaybeKeyedModelHandler,
    ModelManager,
    RunInference,
    errors,
)
from kit.manager.policy import Lru

MODES = ["default", "large", "shared"]


class Times(kit.ModelHandler):
    """Multiplies by its factor."""

    def __init__(self, factor: float, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor
        self.model_id = None

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path is not None:
            self.factor, self.model_id = float(model_path), None

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


class Mine(Lru):
    """One of a user's own, which can't tell what a model is worth that it hasn't seen."""

    name = "mine"

    def score(self, model: Any) -> float:
        return float(self.facts[model].last)


def test_a_policy_of_ones_own_serves_again_and_again() -> None:
    mappings = [KeyModelMapping([key], Times(key)) for key in range(4)]
    handler = KeyedModelHandler(mappings, policy=Mine(), memory_budget="2.5MB")
    pairs = [(key, 2) for key in range(4)]
    for _ in range(2):  # what it has learnt of the first deployment's models isn't the handler's
        with kit.deploy(handler, processes=1) as deployment:
            assert deployment.predict(pairs) == [(key, (2, 2.0 * key, None)) for key in range(4)]
            deployment.update_models([KeyModelPathMapping([3], "5")])
            assert deployment.predict([(3, 2)])[0][1].inference == 10.0
            assert len(deployment.models()) == 4
    assert [one[1].inference for one in pairs | RunInference(handler)] == [0, 2, 4, 6]


def test_a_policy_that_cannot_tell_what_a_model_is_worth_leaves_the_table_to_be_seen() -> None:
    manager = ModelManager(str, policy=Mine(), size_of=lambda name: 5)
    manager.acquire("a").release()
    manager._traffic.policy.facts.clear()
    assert math.isnan(manager.rows()[0]["score"])


def test_a_policy_class_is_refused_with_what_to_give() -> None:
    with pytest.raises(errors.InvalidSetting, match="or an object of a class of your own"):
        KeyedModelHandler([KeyModelMapping(["a"], Times(1))], policy=Mine)


# ---- sizes and keys that can't be known beforehand ------------------------------------------------


def test_a_load_says_how_far_a_model_of_unknown_size_went_above_the_budget() -> None:
    with kit.deploy(keyed(a=Guessing(None)), processes=1, memory_budget="600kB") as deployment:
        with pytest.raises(errors.BudgetExceeded):
            deployment.predict([("a", 1)])
        loads = "; ".join(event for event in deployment.history.events if event)
        assert "1 MB in" in loads
        assert "400 KB above the budget: its size wasn't known" in loads


def test_models_of_a_function_are_not_updated_by_key() -> None:
    with kit.deploy(KeyedModelHandler(lambda key: Times(key)), processes=1) as deployment:
        with pytest.raises(errors.InvalidSetting, match="a function finds the handlers of this deployment's keys"):
            deployment.update_models([KeyModelPathMapping([1], "5")])
        with pytest.raises(errors.InvalidSetting, match="or a deployment's update_models"):
            deployment.update_model("5")


@pytest.mark.parametrize(("keys", "words"), [([math.nan], "isn't equal to itself"), (["a", "a"], "'a' is there twice")])
def test_keys_that_cannot_be_found_or_told_apart_are_refused(keys: list[Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=words):
        KeyModelMapping(keys, Times(1))


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_key_that_is_not_equal_to_itself_is_refused_by_a_function_of_keys_too(mode: str | None) -> None:
    handler = KeyedModelHandler(lambda key: Times(2))
    with contextlib.ExitStack() as stack:
        served = handler if mode is None else stack.enter_context(kit.deploy(handler, mode=mode, processes=1))
        run = RunInference(served)
        for odd in (math.nan, np.float32("nan")):
            with pytest.raises(errors.UnsupportedInput, match=r"the key .*nan.* isn't equal to itself, and can't be a"):
                [(odd, 1)] | run
        answers = [(math.nan, 1), ("a", 2)] | run.with_exception_handling()
        assert isinstance(answers[0].error, errors.UnsupportedInput)
        assert answers[1] == ("a", (2, 4.0, None))
        assert list(run.models()["keys"]) == [["a"]]


def test_pins_that_could_not_be_loaded_in_mode_shared_keep_it_from_being_chosen() -> None:
    handler = keyed(a=Times(1), b=Times(2), c=Times(3))
    with kit.deploy(handler, processes=1, memory_budget="3.5MB") as deployment:
        deployment.pin(list("abc"))
        with pytest.raises(errors.BudgetExceeded, match="1 MB more while the largest of them is loaded"):
            deployment.switch("shared")
        assert deployment.settings.mode == "default"
        deployment.unpin(["c"])
        deployment.switch("shared")
        deployment.preload(["a", "b"])
        assert list(deployment.models().query("pinned").state) == ["resident"] * 2


# ---- examples with and without keys --------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "medium", *MODES])
def test_a_request_of_examples_with_and_without_keys_is_refused(mode: str | None) -> None:
    handler = MaybeKeyedModelHandler(Times(2))
    mixed = [1, ("a", 1), (1, 2, 3), ["b", 2]]
    words = r"example 0, 1 \(int\), has no key, but others of the same request have: .* and not both in one request"
    with contextlib.ExitStack() as stack:
        served = handler if mode is None else stack.enter_context(kit.deploy(handler, mode=mode, processes=2))
        for _ in range(2):
            with pytest.raises(errors.UnsupportedInput, match=words):
                mixed | RunInference(served)
            answers = mixed | RunInference(served).with_exception_handling()
            assert [answers[1], answers[3]] == [("a", (1, 2.0, None)), ("b", (2, 4.0, None))]
            assert [failure.example for failure in answers.failures] == [1, (1, 2, 3)]
            assert {type(failure.error) for failure in answers.failures} == {errors.UnsupportedInput}
        assert len([1, 2, 3] | RunInference(served)) == 3
        if mode is not None:
            assert served.counters["failed"] == 2 * (len(mixed) + 2)
            assert served.counters["accepted"] == served.counters["failed"] + served.counters["answered"]


def test_requests_with_and_without_keys_of_several_callers_do_not_mix() -> None:
    with kit.deploy(MaybeKeyedModelHandler(Times(2)), processes=1) as deployment:
        futures = [
            (number, deployment.submit([number] if number % 2 else [["k", number], ("k", number)]))
            for number in range(200)
        ]
        for number, future in futures:
            one = (number, 2.0 * number, None)
            assert future.result(30) == ([one] if number % 2 else [("k", one)] * 2)


def test_one_handler_for_all_keys_says_where_the_example_without_a_key_is() -> None:
    with kit.deploy(KeyedModelHandler(Times(2)), processes=1) as deployment:
        with pytest.raises(errors.UnsupportedInput, match=r"example 1, 7 \(int\), has no key"):
            deployment.predict([("a", 1), 7])
        assert deployment.predict([("a", 1)]) == [("a", (1, 2.0, None))]


# ---- pins ----------------------------------------------------------------------------------------


def row_of(deployment: Any, key: str) -> Any:
    table = deployment.models()
    return table[table["keys"].map(lambda keys: key in keys)].iloc[0]


@pytest.mark.parametrize("mode", MODES)
def test_the_other_version_of_a_pinned_key_is_pinned(mode: str) -> None:
    handler = KeyedModelHandler(
        [KeyModelMapping(["a"], Times(2)), KeyModelMapping(["b"], Times(3)), KeyModelMapping(["c"], Times(4))],
        memory_budget="3.3MB" if mode != "shared" else "4.5MB",  # where the loader has one more
    )
    with kit.deploy(handler, mode=mode, processes=2) as deployment:
        deployment.pin(["a"]).update_models([KeyModelPathMapping(["a"], "7"), KeyModelPathMapping(["b"], "8")])
        assert [bool(row_of(deployment, key).pinned) for key in "abc"] == [True, False, False]
        deployment.pin(["a"])  # waits for its load
        for _ in range(3):
            answers = deployment.predict([("b", 1), ("c", 1), ("a", 1)])
            assert [one.inference for _, one in answers] == [8.0, 4.0, 7.0]
            assert (row_of(deployment, "a").state, row_of(deployment, "a").loads) == ("resident", 1)
        deployment.update_model(KeyedModelHandler([KeyModelMapping(["a"], Times(5)), KeyModelMapping(["c"], Times(6))]))
        assert row_of(deployment, "a").pinned
        assert not row_of(deployment, "c").pinned
        deployment.unpin(["a"])
        assert not deployment.models()["pinned"].any()


@pytest.mark.parametrize("mode", MODES)
def test_a_budget_below_the_pins_is_refused_right_after_a_switch(mode: str) -> None:
    with kit.deploy(keyed(a=Times(2), b=Times(3)), processes=1, memory_budget="9MB") as deployment:
        deployment.pin(["a", "b"]).switch(mode)
        assert deployment.models()["pinned"].all()
        with pytest.raises(errors.BudgetExceeded, match="the pinned models take 2 MB"):
            deployment.switch(memory_budget="1.5MB")
        assert deployment.settings.memory_budget == 9_000_000
        assert deployment.models()["pinned"].all()


def test_the_budget_that_rules_is_the_one_that_is_shown_and_none_takes_the_handlers_away_too() -> None:
    def handler(budget: str) -> KeyedModelHandler:
        return KeyedModelHandler([KeyModelMapping([key], Times(key)) for key in range(4)], memory_budget=budget)

    with kit.deploy(handler("2.5MB"), processes=1) as deployment:
        assert deployment.settings.memory_budget == 2_500_000
        deployment.preload(range(4))
        assert deployment.models().resident_bytes.sum() <= 2_500_000
        deployment.switch(memory_budget="none").preload(range(4))
        assert (deployment.models().state == "resident").all()
        assert deployment.settings.memory_budget is None
        deployment.switch("large").preload(range(4))  # it stays away
        assert (deployment.models().state == "resident").all()
        deployment.switch(memory_budget="3.5MB")
        said = "; ".join(deployment.history["events"])
        assert "memory budget 2.5 MB → none" in said
        assert "memory budget none → 3.5 MB" in said
        deployment.update_model(handler("1.5MB"))
        assert deployment.settings.memory_budget == 3_500_000  # asked for, so the new handler's is beaten
    with kit.deploy(handler("2.5MB"), processes=1) as deployment:
        deployment.update_model(handler("1.5MB")).preload(range(4))
        assert deployment.settings.memory_budget == 1_500_000
        assert deployment.models().resident_bytes.sum() <= 1_500_000


# ---- whose fault it was --------------------------------------------------------------------------


class Failing(Times):
    """Fails at the example 13, and forgets the prediction of 7."""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[float]:
        if 13 in batch:
            raise ValueError("unlucky")
        return super().run_inference([example for example in batch if example != 7], model)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_failure_names_the_key_of_the_model(mode: str | None) -> None:
    handler = keyed(good=Times(2), bad=Failing(3))
    with contextlib.ExitStack() as stack:
        served = handler if mode is None else stack.enter_context(kit.deploy(handler, mode=mode, processes=2))
        for example, kind, words in (
            (13, errors.InferenceFailed, "unlucky"),
            (7, errors.WrongPredictionCount, "returned 0 predictions"),
        ):
            with pytest.raises(kind, match=f"the model of 'bad': .*{words}") as raised:
                [("good", 1), ("bad", example)] | RunInference(served)
            assert str(raised.value.args[0]).count("the model of") == 1
            answers = [("good", 1), ("bad", example)] | RunInference(served).with_exception_handling()
            assert answers[0] == ("good", (1, 2.0, None))
            assert re.search(f"the model of 'bad': .*{words}", str(answers[1].error))


def test_a_path_that_a_handler_refuses_is_told_with_its_key_and_nothing_is_changed() -> None:
    updates = [KeyModelPathMapping(["a"], "7"), KeyModelPathMapping(["b"], "x")]
    words = r"Times.update_model_path\('x'\) failed for the key 'b': ValueError: could not convert"
    handler = keyed(a=Times(2), b=Times(3))
    with pytest.raises(errors.ModelLoadFailed, match=words):
        handler.update_model_paths(None, updates)
    assert [one.inference for _, one in [("a", 1), ("b", 1)] | RunInference(handler)] == [2.0, 3.0]
    with kit.deploy(handler, processes=1) as deployment:
        with pytest.raises(errors.ModelLoadFailed, match=words):
            deployment.update_models(updates)
        assert [one.inference for _, one in deployment.predict([("a", 1), ("b", 1)])] == [2.0, 3.0]

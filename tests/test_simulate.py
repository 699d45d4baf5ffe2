"""`simulate` replays a trace as a manager would do it, and says what each policy costs."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import kit
from kit import errors
from kit.manager import ModelManager
from kit.manager.policy import Cost, Lru
from tests.benchmarks import model_traffic
from tests.test_manager import Model

MODELS = {"a": (40, 1.0), "b": (40, 2.0), "c": (40, 4.0), "big": (90, 3.0)}


class Array(kit.ModelHandler):
    """A model of 1 MB."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def load_model(self) -> Any:
        return np.full(250_000, self.number, np.float32)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[float]:
        return [float(model[0]) for _ in batch]


def seconds(trace: str, budget: int, policy: str = "lru") -> float:
    table = kit.simulate(trace, MODELS, budget, [policy])
    return float(table.load_s[table.policy == policy].iloc[0])


def test_seconds_are_those_of_the_loads_that_a_budget_makes_necessary() -> None:
    assert seconds("abab", 80) == 3.0
    assert seconds("abcabc", 80) == 14.0  # the least recently used is always the next
    assert seconds("abcabc", 120) == 7.0
    table = kit.simulate("abcabc", MODELS, [80, "120 B"], ["lru", "cost"])
    assert list(table.policy) == ["lru", "cost", "offline"] * 2
    assert list(table.budget_bytes) == [80] * 3 + [120] * 3
    assert list(table.hits + table.loads) == [6] * 6
    assert (table.vs_lru[table.policy == "lru"] == 1).all()
    assert (table[table.budget_bytes == 120].load_s == 7.0).all()


def test_the_table_of_a_deployment_knows_which_keys_have_a_model_together() -> None:
    handler = kit.KeyedModelHandler(
        [
            kit.KeyModelMapping(["a", "b"], Array(1)),
            kit.KeyModelMapping(["c"], Array(2)),
            kit.KeyModelMapping(["d"], Array(3)),
        ]
    )
    assert list(kit.simulate("ab", {"a": np.array([40, 1.0]), "b": [40, 2.0]}, 80).load_s) == [3.0] * 4
    with kit.deploy(handler, processes=1, memory_budget="1.5MB") as deployment:
        for key in "abcab":
            deployment.predict([(key, 1)])
        models = deployment.models()
        found = kit.simulate("abcab", models, "1.5MB", ["lru"]).set_index("policy").loc["lru"]
        assert found.loads == models.loads.sum() == 3
        assert kit.simulate("abcab", models, "3MB", ["lru"]).loads[0] == 2
        with pytest.raises(errors.UnknownKey, match="'d', which isn't in models, or was never loaded"):
            kit.simulate("abd", models, "3MB")
        with pytest.raises(errors.InvalidSetting, match="no column load_s; give deployment"):
            kit.simulate("ab", models.drop(columns="load_s"), "3MB")


def test_costly_models_stay_under_cost() -> None:
    assert seconds("abc" * 5, 80, "lru") == 35.0
    assert seconds("abc" * 5, 80, "cost") == 4.0 + 5 * 3.0


def test_the_offline_heuristic_knows_what_comes() -> None:
    trace = model_traffic.traffic(1, 2000)
    models = model_traffic.models(1)
    budget = int(0.3 * sum(size for size, _ in models.values()))
    table = kit.simulate(trace, models, budget).set_index("policy")
    assert table.load_s["offline"] < table.load_s["cost"] < table.load_s["lru"]


@pytest.mark.parametrize("policy", ["cost", "lru", "gdsf"])
def test_a_manager_loads_what_the_simulation_says(policy: str) -> None:
    draw = random.Random(3)
    models = {number: (draw.randrange(10, 60), 1.0) for number in range(10)}
    trace = [min(int(draw.expovariate(0.4)), 9) for _ in range(300)]
    loads = []

    def load(name: object) -> Model:
        loads.append(name)
        return Model(name, models[name][0])  # type: ignore[index]

    manager = ModelManager(
        load, budget=120, size_of=lambda name: models[name][0], measure=lambda model: model.size,
        policy=policy, hysteresis=0,
    )  # fmt: skip
    # The manager measures its own seconds; here each load costs the same, as in the simulation.
    manager._traffic.tier.cost_s = lambda entry: 1.0  # type: ignore[method-assign]
    for name in trace:
        manager.acquire(name).release()
    table = kit.simulate(trace, models, 120, [policy]).set_index("policy")
    assert len(loads) == table.loads[policy]


USED = Lru()
USED.used("a")


def test_a_policy_object_learns_each_budget_anew_and_stays_as_it_is() -> None:
    policy = Lru()
    table = kit.simulate("abcab", MODELS, [80, 90], [policy, "lru"])
    pairs = [part.loads.tolist()[:2] for _, part in table.groupby("budget_bytes")]
    assert all(own == named for own, named in pairs)
    assert policy.clock == 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("", MODELS, 80), errors.InvalidSetting, "trace is empty"),
        (("az", MODELS, 80), errors.UnknownKey, "'z', which isn't in models"),
        (("a", MODELS, 0), errors.InvalidSetting, "budget=0 isn't a size"),
        (("a", MODELS, None), errors.InvalidSetting, "give a budget"),
        (("a", MODELS, 80, ["fifo"]), errors.InvalidSetting, "policy='fifo'"),
        (("a", MODELS, 80, "cost"), errors.InvalidSetting, "policies='cost': give a list of names"),
        (("a", MODELS, 80, 5), errors.InvalidSetting, "policies=5"),
        (("a", MODELS, []), errors.InvalidSetting, "at least one budget"),
        (("a", MODELS, [80, "much"]), errors.InvalidSetting, "budget='much' isn't a size"),
        (("a", MODELS, [80, 90], [USED]), errors.InvalidSetting, "'lru' has seen requests already"),
        ((5, MODELS, 80), errors.InvalidSetting, "trace=5: give the key of each request"),
        (([["a"]], MODELS, 80), errors.InvalidSetting, "can't be a key: unhashable type: 'list'"),
        (("a", [("a", 40, 1)], 80), errors.InvalidSetting, "models is a list; give a dict from each key"),
        (("a", {"a": 40}, 80), errors.InvalidSetting, r"models\['a'\] is 40; give \(bytes, load seconds\)"),
        (("a", {"a": (40, float("nan"))}, 80), errors.InvalidSetting, "both numbers of at least 0"),
        (("a", {"a": (None, 1.0)}, 80), errors.InvalidSetting, "both numbers of at least 0"),
        (("a", {"a": (40, -1.0)}, 80), errors.InvalidSetting, "both numbers of at least 0"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[object, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        kit.simulate(*arguments)  # type: ignore[arg-type]


def test_cost_notices_that_a_model_is_not_asked_for_any_more() -> None:
    policy = Cost()
    for model in "abcdefgh":
        policy.loaded(model, 100, 1.0)
    for number in range(200):  # "a" every other time, the others now and then
        policy.used("a" if number % 2 else "bcdefgh"[number // 2 % 7])
    assert policy.score("a") > 2 * policy.score("b")
    for number in range(70):
        policy.used("bcdefgh"[number % 7])
    assert policy.score("a") < policy.score("b")


def test_cost_takes_a_run_of_requests_for_one() -> None:
    once, often = Cost(), Cost()
    for policy, run in ((once, 1), (often, 50)):
        for model in "abc":
            policy.loaded(model, 100, 1.0)
        for model in "abcab":
            policy.used(model)
        for _ in range(run):
            policy.used("c")
    assert [often.score(model) for model in "abc"] == [once.score(model) for model in "abc"]
    assert once.score("c") > 0

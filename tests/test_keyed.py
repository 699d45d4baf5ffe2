"""Models by key: Beam's meaning and errors, and what Beam forbids; batches by model; budgets; failures by key."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import kit
from kit import KeyedModelHandler, KeyModelMapping, KeyModelPathMapping, MaybeKeyedModelHandler, RunInference, errors
from kit.engine.keyed_models import KeyedModels


class Scale(kit.ModelHandler):
    """Multiplies by a factor; its model is a list of the batches that it saw, beside a weight of some bytes."""

    def __init__(self, factor: int, size: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor
        self.size = size
        self.loads = 0
        self.batches: list[list[int]] = []
        self.broken = False

    def load_model(self) -> Any:
        import numpy as np

        self.loads += 1
        if self.broken:
            raise OSError("corrupt")
        return np.full(self.size, self.factor % 256, np.uint8)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[int]:
        self.batches.append(list(batch))
        return [example * self.factor for example in batch]


def mixed(count: int, keys: str = "abc") -> list[tuple[str, int]]:
    return [(keys[number % len(keys)], number) for number in range(count)]


def three(**options: Any) -> tuple[list[Scale], KeyedModelHandler]:
    handlers = [Scale(factor, 1000) for factor in (1, 10, 100)]
    return handlers, KeyedModelHandler(
        [KeyModelMapping([key], handler) for key, handler in zip("abc", handlers, strict=True)], **options
    )


# ---- results -------------------------------------------------------------------------------------


def test_predictions_come_with_their_keys_in_the_order_of_the_examples() -> None:
    _, handler = three()
    factors = {"a": 1, "b": 10, "c": 100}
    examples = mixed(100)
    expected = [(key, (number, number * factors[key], None)) for key, number in examples]
    assert examples | RunInference(handler) == expected
    assert list(iter(examples) | RunInference(handler)) == expected
    assert isinstance((examples | RunInference(handler))[0][1], kit.PredictionResult)


def test_mixed_traffic_does_not_shrink_the_batches() -> None:
    handlers, handler = three()
    for each in handlers:
        each._options = {"max_batch_size": 16}
    mixed(96) | RunInference(handler)
    assert [[len(batch) for batch in each.batches] for each in handlers] == [[16, 16]] * 3
    assert [each.loads for each in handlers] == [1, 1, 1]


def test_each_handler_keeps_its_own_batching_and_functions() -> None:
    small = Scale(2, max_batch_size=3).with_preprocess_fn(int).with_postprocess_fn(lambda number: f"<{number}>")
    sorted_ones = Scale(3, batch_length_fn=lambda x: x, max_batch_size=4)
    handler = KeyedModelHandler([KeyModelMapping(["text"], small), KeyModelMapping(["number"], sorted_ones)])
    examples = [("text", "1"), ("number", 5), ("text", "2"), ("number", 9), ("text", "3"), ("text", "4"), ("number", 7)]
    assert [value if key == "text" else value.inference for key, value in examples | RunInference(handler)] == [
        "<2>", 15, "<4>", 27, "<6>", "<8>", 21,
    ]  # fmt: skip
    assert [len(batch) for batch in small.batches] == [3, 1]  # type: ignore[attr-defined]
    assert sorted_ones.batches == [[9, 7, 5]]


def test_functions_of_the_keyed_handler_see_the_keys() -> None:
    _, handler = three()
    around = handler.with_preprocess_fn(lambda text: (text[0], int(text[1:]))).with_postprocess_fn(
        lambda pair: (pair[0].upper(), pair[1].inference)
    )
    assert ["a4", "b5"] | RunInference(around) == [("A", 4), ("B", 50)]


def test_one_handler_for_all_keys_has_one_model() -> None:
    scale = Scale(2)
    handler = KeyedModelHandler(scale)
    for _ in range(2):
        assert [(1, 5), ("x", 6)] | RunInference(handler) == [(1, (5, 10, None)), ("x", (6, 12, None))]
    assert scale.loads == 1
    assert len(scale.batches) == 2


def test_keys_of_a_mapping_share_a_model_and_so_do_variations_of_a_handler() -> None:
    scale = Scale(2)
    negative = scale.with_preprocess_fn(lambda number: -number)
    handler = KeyedModelHandler([KeyModelMapping(["a", "b"], scale), KeyModelMapping(["c"], negative)])
    assert [value.inference for _, value in mixed(3) | RunInference(handler)] == [0, 2, -4]
    assert (scale.loads, negative.loads) == (1, 0)  # type: ignore[attr-defined]
    assert list(RunInference(handler).models()["keys"]) == [["a", "b", "c"]]


def test_a_function_gives_handlers_for_keys_that_were_not_listed() -> None:
    asked: list[int] = []

    def handler_for(key: int) -> Any:
        asked.append(key)
        return Scale(key) if key < 2000 else None

    handler = KeyedModelHandler(handler_for)
    assert RunInference(handler).models().loads.sum() == 0
    examples = [(number % 1000, 3) for number in range(3000)]
    assert [value.inference for _, value in examples | RunInference(handler)] == [3 * key for key, _ in examples]
    assert sorted(asked) == list(range(1000))
    with pytest.raises(errors.UnknownKey, match="no model for the key 2000: the function for handlers returned None"):
        [(2000, 1)] | RunInference(handler)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_function_that_fails_for_a_key_fails_the_examples_of_that_key_only(processes: int) -> None:
    table = {1: Scale(1), 2: Scale(2)}

    def make(key: int) -> Any:
        return table[key] if key < 10 else Scale(1 // (key - 10))

    handler = KeyedModelHandler(make)
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(kit.deploy(handler, processes=processes)) if processes else handler
        answers = [(key, 5) for key in (1, 3, 10, 2)] | RunInference(served).with_exception_handling()
    assert [answers[0][1].inference, answers[3][1].inference] == [5, 10]
    unknown, failed = answers[1].error, answers[2].error
    assert isinstance(unknown, errors.UnknownKey)
    assert "no model for the key 3" in str(unknown)
    assert isinstance(failed, errors.ModelLoadFailed)
    assert "failed for the key 10: ZeroDivisionError" in str(failed)


def test_examples_may_come_without_keys() -> None:
    handler = MaybeKeyedModelHandler(Scale(2))
    assert [1, 2] | RunInference(handler) == [(1, 2, None), (2, 4, None)]
    assert [("a", 1)] | RunInference(handler) == [("a", (1, 2, None))]
    with pytest.raises(errors.UnsupportedInput, match=r"example 1, 2 \(int\), has no key"):
        [("a", 1), 2] | RunInference(handler)


class Duck:
    """Has the methods of a handler only."""

    load_model = run_inference = print


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KeyedModelHandler([]), "at least one KeyModelMapping"),
        (lambda: KeyedModelHandler([KeyModelMapping([], Scale(1))]), "a list of one or more keys"),
        (lambda: KeyedModelHandler([KeyModelMapping("ab", Scale(1))]), "a list of one or more keys"),
        (
            lambda: KeyedModelHandler([KeyModelMapping(["a", "b"], Scale(1)), KeyModelMapping(["b"], Scale(2))]),
            "'b' maps",
        ),
        (lambda: KeyedModelHandler([KeyModelMapping(["a"], Scale)]), r"Scale is a class: make an object of it, Scale"),
        (lambda: KeyModelMapping(["a"], 5), r"KeyModelMapping\(\['a'\], 5\): 5 isn't a model handler"),
        (lambda: KeyModelMapping(["a"], None), "None isn't a model handler"),
        (lambda: KeyModelMapping(["a"], Duck()), "Duck has load_model and run_inference but isn't derived"),
        (lambda: KeyModelMapping(5, Scale(1)), r"KeyModelMapping\(5, Scale\): give a list of one or more keys"),
        (lambda: KeyModelMapping(iter(()), Scale(1)), "a list of one or more keys"),
        (lambda: KeyModelMapping([{}], Scale(1)), "the key {} is a dict, which can't be a key"),
        (lambda: KeyedModelHandler(Scale), r"KeyedModelHandler.*Scale is a class: make an object of it"),
        (lambda: KeyedModelHandler(dict), r"KeyedModelHandler\(dict\): that is a class; make a handler of it, dict\("),
        (
            lambda: KeyedModelHandler(lambda: Scale(1)),
            "the function is called with a key alone, and can't be: too many",
        ),
        (lambda: KeyedModelHandler(lambda key, more: Scale(1)), "missing a required argument: 'more'"),
        (lambda: KeyedModelHandler(Duck()), "Duck has load_model and run_inference but isn't derived"),
        (lambda: KeyedModelHandler("tweets"), r"KeyedModelHandler\('tweets'\): give a list of KeyModelMapping"),
        (lambda: KeyedModelHandler(None), r"KeyedModelHandler\(None\): give a list of KeyModelMapping"),
        (lambda: KeyedModelHandler(KeyModelMapping(["a"], Scale(1))), "give a list of KeyModelMapping"),
        (lambda: KeyedModelHandler(iter([KeyModelMapping(["a"], Scale(1))])), "give a list of KeyModelMapping"),
        (lambda: KeyedModelHandler([("a", Scale(1))]), "isn't a mapping"),
        (lambda: KeyedModelHandler([KeyModelMapping([["a"]], Scale(1))]), "can't be a key"),
        (lambda: KeyedModelHandler([KeyModelMapping(["a"], Scale(1, model_copies=2))]), "model_copies=2"),
        (lambda: KeyedModelHandler([KeyModelMapping(["a"], KeyedModelHandler(Scale(1)))]), "inside another"),
        (lambda: KeyedModelHandler({"a": Scale(1)}), "give a list of KeyModelMapping"),
        (lambda: KeyedModelHandler(Scale(1), memory_budget="1GB"), "nothing to evict"),
        (lambda: three(policy="random"), "policy='random'"),
        (lambda: three(policy=None), "policy=None"),
        (lambda: three(max_models_per_worker_hint=0), "max_models_per_worker_hint=0: give a whole number"),
        (lambda: three(max_models_per_worker_hint=2.5), "max_models_per_worker_hint=2.5"),
        (lambda: three(max_models_per_worker_hint="many"), "max_models_per_worker_hint='many'"),
        (lambda: three(max_models_per_worker_hint=True), "max_models_per_worker_hint=True"),
        (lambda: three(max_models_per_worker_hint=float("nan")), "max_models_per_worker_hint=nan"),
        (lambda: KeyedModelHandler(Scale(1), max_models_per_worker_hint=0), "max_models_per_worker_hint=0"),
        (lambda: KeyedModelHandler(Scale(1), policy="random"), "policy='random'"),
        (lambda: three(keep_alive=0), "keep_alive=0: give seconds above 0"),
        (lambda: three(keep_alive="30m"), "keep_alive='30m': give seconds above 0"),
        (lambda: three(keep_alive=float("nan")), "keep_alive=nan"),
        (lambda: three(large_model="yes"), "large_model='yes': give True or False"),
        (lambda: three(memory_budget=0), "memory_budget=0"),
        (lambda: three(memory_budget="much"), "memory_budget='much'"),
        (lambda: MaybeKeyedModelHandler([KeyModelMapping(["a"], Scale(1))]), "one handler"),
        (lambda: MaybeKeyedModelHandler(Scale), r"MaybeKeyedModelHandler.*Scale is a class: make an object of it"),
        (lambda: MaybeKeyedModelHandler(dict), r"MaybeKeyedModelHandler.*give one handler for all examples"),
        (lambda: MaybeKeyedModelHandler(KeyedModelHandler(Scale(1))), "inside another"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=words):
        make()


def test_an_unknown_key_is_named_and_evicts_nothing() -> None:
    handlers, handler = three(max_models_per_worker_hint=3)
    mixed(3) | RunInference(handler)
    with pytest.raises(
        errors.UnknownKey, match=r"no model for the key 'd'; the keys are 'a', 'b', 'c'\. Add a KeyModel"
    ):
        [("a", 1), ("d", 2)] | RunInference(handler)
    with pytest.raises(KeyError):
        [("d", 2)] | RunInference(handler)
    mixed(3) | RunInference(handler)
    assert [each.loads for each in handlers] == [1, 1, 1]


@pytest.mark.parametrize("example", ["text", 7, None, ("a", 1, 2), {"a": 1}])
def test_an_example_without_a_key_is_named(example: Any) -> None:
    _, handler = three()
    with pytest.raises(errors.UnsupportedInput, match=r"example 1, .* has no key"):
        [("a", 1), example] | RunInference(handler)
    found = [("a", 1), example, ([], 1)] | RunInference(handler).with_exception_handling()
    assert found[0] == ("a", (1, 1, None))
    assert [type(failure.error) for failure in found.failures] == [errors.UnsupportedInput] * 2
    assert found.failures[0].example == example


# ---- budget and failures -------------------------------------------------------------------------


def test_models_are_evicted_under_the_budget_and_loaded_again() -> None:
    handlers, handler = three(memory_budget=2500, policy="lru")
    for _ in range(2):
        for key in "abc":
            [(key, 1)] * 4 | RunInference(handler)
    table = RunInference(handler).models().set_index(RunInference(handler).models()["keys"].str[0])
    assert [each.loads for each in handlers] == [2, 2, 2]
    assert list(table.loc[["a", "b", "c"], "state"]) == ["evicted", "resident", "resident"]
    assert table[table.state == "resident"].size_bytes.sum() <= 2500


def test_resident_models_go_first() -> None:
    handlers, handler = three(memory_budget=2500, policy="lru")
    [("a", 1), ("b", 1)] | RunInference(handler)
    [("c", 1), ("a", 1), ("b", 1)] | RunInference(handler)
    assert [each.loads for each in handlers] == [1, 1, 1]


def test_a_model_larger_than_the_budget_fails_its_own_examples_only() -> None:
    big = Scale(5, 10_000)
    handler = KeyedModelHandler(
        [KeyModelMapping(["a"], Scale(1, 1000)), KeyModelMapping(["big"], big)], memory_budget=4000
    )
    found = [("a", 1), ("big", 1)] | RunInference(handler).with_exception_handling()
    assert found[0] == ("a", (1, 1, None))
    assert "10.1 KB" in str(found[1].error) or "10,1" in str(found[1].error)
    assert "4,000 bytes" in str(found[1].error)


def test_a_load_that_fails_fails_its_own_examples_only() -> None:
    handlers, handler = three()
    handlers[1].broken = True
    found = mixed(9) | RunInference(handler).with_exception_handling()
    assert [failure.example for failure in found.failures] == [("b", 1), ("b", 4), ("b", 7)]
    assert all(isinstance(failure.error, errors.ModelLoadFailed) for failure in found.failures)
    with pytest.raises(errors.ModelLoadFailed, match=r"loading the model of 'b' failed: OSError: corrupt|tried in"):
        mixed(9) | RunInference(handler)
    assert [("a", 1)] | RunInference(handler) == [("a", (1, 1, None))]


def test_an_example_that_fails_leaves_the_others_of_its_model() -> None:
    _, handler = three()
    found = [("a", 1), ("a", "x"), ("b", None), ("b", 2)] | RunInference(handler).with_exception_handling()
    assert found.succeeded == [("a", (1, 1, None)), ("a", ("x", "x", None)), ("b", (2, 20, None))]
    assert [failure.example for failure in found.failures] == [("b", None)]


def test_a_batch_that_runs_too_long_fails_alone() -> None:
    stuck = threading.Event()
    slow = kit.ModelHandler.from_callable(
        lambda: 1, lambda batch, model: [stuck.wait(20) or x if x == 3 else x for x in batch], max_batch_size=1
    )
    handler = KeyedModelHandler([KeyModelMapping(["slow"], slow), KeyModelMapping(["a"], Scale(1))])
    examples = [("slow", 1), ("slow", 3), ("a", 5), ("slow", 4)]
    found = examples | RunInference(handler).with_exception_handling(timeout=0.5)
    stuck.set()
    assert [failure.example for failure in found.failures] == [("slow", 3)]
    assert isinstance(found.failures[0].error, errors.DeadlineExceeded)


def test_many_threads_share_the_models_of_a_handler() -> None:
    _, handler = three(memory_budget=2500)
    factors = {"a": 1, "b": 10, "c": 100}

    def ask(number: int) -> bool:
        examples = [(key, number) for key in "abc"] * 3
        return [r.inference for _, r in examples | RunInference(handler)] == [number * factors[k] for k, _ in examples]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(60)))
    assert RunInference(handler).models().in_use.sum() == 0


def test_a_model_that_is_not_thread_safe_is_called_by_one_thread_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []

    def run(batch: Any, model: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.005)
        inside.pop()
        return batch

    alone = kit.ModelHandler.from_callable(lambda: 1, run)
    alone.thread_safe = False
    handler = KeyedModelHandler([KeyModelMapping(["a"], alone)])
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: [("a", number)] | RunInference(handler), range(24)))
    assert max(most) == 1


# ---- updates -------------------------------------------------------------------------------------


class Pathed(kit.ModelHandler):
    """Its model is what its file says."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.model_id = path

    def load_model(self) -> str:
        return Path(self.model_id).read_text()

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[str]:
        return [f"{model}{example}" for example in batch]

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path is not None:
            self.model_id = model_path


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for name in ("one", "two", "three"):
        (tmp_path / name).write_text(name)
    return [str(tmp_path / name) for name in ("one", "two", "three")]


def test_some_keys_get_another_model_while_the_others_stay(paths: list[str]) -> None:
    handler = KeyedModelHandler(
        [KeyModelMapping(["a", "b"], Pathed(paths[0])), KeyModelMapping(["c"], Pathed(paths[1]))]
    )
    models = handler.load_model()
    assert isinstance(models, KeyedModels)
    ask = [("a", 1), ("b", 2), ("c", 3)]

    def answers() -> list[str]:
        return [result.inference for _, result in handler.run_inference(ask, models)]

    assert answers() == ["one1", "one2", "two3"]
    handler.update_model_paths(models, [KeyModelPathMapping(["b"], paths[2])])
    assert answers() == ["one1", "three2", "two3"]
    handler.update_model_paths(models, [KeyModelPathMapping(["b"], paths[2])])  # nothing to do
    assert sum(row["loads"] for row in models.rows()) == 3
    with models.manager.acquire(models.model_of("c")) as lease:
        handler.update_model_paths(models, [KeyModelPathMapping(["a", "c"], paths[2])])
        assert answers() == ["three1", "three2", "three3"]
        assert lease.model == "two"
    # The old versions are gone: "a" and "c" differ in handler, so they have a model each.
    assert [row["keys"] for row in models.rows()] == [["b"], ["a"], ["c"]] or len(models.rows()) == 3
    assert [value.model_id for _, value in handler.run_inference(ask, models)] == [paths[2]] * 3


def test_updates_that_cannot_work_change_nothing(paths: list[str]) -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a", "b"], Pathed(paths[0]))])
    models = handler.load_model()
    for mappings, words in [
        ([KeyModelPathMapping(["a"], "")], "is empty"),
        ([KeyModelPathMapping(["a"], paths[1]), KeyModelPathMapping(["a"], paths[2])], "in two mappings"),
        ([KeyModelPathMapping(["a"], paths[1]), KeyModelPathMapping(["z"], paths[2])], "no model for the key 'z'"),
    ]:
        with pytest.raises(errors.KitError, match=words):
            handler.update_model_paths(models, mappings)
    assert [r.inference for _, r in handler.run_inference([("a", 1)], models)] == ["one1"]
    with pytest.raises(errors.InvalidSetting, match="Use update_model_paths"):
        handler.update_model_path(paths[1])
    with pytest.raises(errors.InvalidSetting, match="use update_model_path for one handler"):
        KeyedModelHandler(Pathed(paths[0])).update_model_paths(None, [KeyModelPathMapping(["a"], paths[1])])


# ---- Beam ----------------------------------------------------------------------------------------


def test_beams_run_inference_takes_it_with_mappings_of_either_kind(paths: list[str]) -> None:
    base = pytest.importorskip("apache_beam.ml.inference.base")
    scale = Scale(2, max_batch_size=2).with_postprocess_fn(lambda number: number + 1)
    handler = KeyedModelHandler(
        [base.KeyModelMapping(["a", "b"], scale), KeyModelMapping(["c"], Pathed(paths[0]))], memory_budget="1MB"
    )
    found = dict([("a", 1), ("b", 2), ("c", 3)] | base.RunInference(handler))
    assert (found["a"], found["b"], found["c"].inference) == (3, 5, "one3")
    one = dict([("a", 1), ("b", 2)] | base.RunInference(KeyedModelHandler(Scale(3))))
    assert one == {"a": 3, "b": 6} or {k: v.inference for k, v in one.items()} == {"a": 3, "b": 6}


def test_beams_own_handlers_stand_in_mappings(tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    import pickle

    import numpy as np
    from apache_beam.ml.inference.sklearn_inference import SklearnModelHandlerNumpy
    from sklearn.linear_model import LinearRegression

    handlers = []
    for slope in (1, 2):
        model = LinearRegression().fit(np.arange(4.0).reshape(-1, 1), slope * np.arange(4.0))
        (tmp_path / f"{slope}.pkl").write_bytes(pickle.dumps(model))
        handlers.append(SklearnModelHandlerNumpy(str(tmp_path / f"{slope}.pkl")))
    handler = KeyedModelHandler([KeyModelMapping([slope], each) for slope, each in enumerate(handlers, 1)])
    examples = [(slope, np.array([5.0])) for slope in (1, 2, 1)]
    assert [round(float(r.inference), 6) for _, r in examples | RunInference(handler)] == [5, 10, 5]

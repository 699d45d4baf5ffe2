"""Batches: every example once, limits hold, and the size that pays is found."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kit
from kit import ModelHandler, batching
from kit.errors import InvalidSetting
from kit.settings import MODES
from tests.models import Doubling

lists = st.lists(st.integers(0, 300), max_size=200)


@given(lists, st.integers(1, 64))
def test_without_lengths_batches_are_consecutive_ranges(examples: list[int], most: int) -> None:
    plan = batching.plan(examples, {"max_batch_size": most})
    assert [index for batch in plan for index in batch] == list(range(len(examples)))
    assert all(len(batch) == most for batch in plan[:-1])
    assert all(isinstance(batch, range) and 0 < len(batch) <= most for batch in plan)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], dict[str, Any]]:
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["max_batch_size"] = draw(st.integers(1, 40))
    if draw(st.booleans()):
        options.update(element_size_fn=lambda x: x, max_batch_weight=draw(st.integers(1, 500)))
    if draw(st.booleans()):
        options["batch_length_fn"] = lambda x: x
        if draw(st.booleans()):
            options["max_batch_tokens"] = draw(st.integers(1, 2000))
        if draw(st.booleans()):
            options["batch_bucket_boundaries"] = sorted(draw(st.sets(st.integers(1, 250), min_size=1, max_size=5)))
    return draw(lists), options


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_index_once_and_every_limit_holds(case: tuple[list[int], dict[str, Any]]) -> None:
    examples, options = case
    plan = [list(batch) for batch in batching.plan(examples, options)]
    assert sorted(index for batch in plan for index in batch) == list(range(len(examples)))
    for batch in plan:
        values = [examples[index] for index in batch]
        assert 1 <= len(batch) <= options.get("max_batch_size", batching.MAX_BATCH_SIZE)
        if "max_batch_weight" in options and len(batch) > 1:
            assert sum(values) <= options["max_batch_weight"]
        if "max_batch_tokens" in options and len(batch) > 1:
            assert len(values) * max(values) <= options["max_batch_tokens"]
        if "batch_bucket_boundaries" in options:
            assert len({bisect_right(options["batch_bucket_boundaries"], value) for value in values}) == 1


@given(lists)
def test_with_lengths_the_longest_come_first(examples: list[int]) -> None:
    plan = batching.plan(examples, {"batch_length_fn": lambda x: x, "max_batch_size": 7})
    values = [examples[index] for batch in plan for index in batch]
    assert values == sorted(examples, reverse=True)


def test_an_example_beyond_every_limit_goes_alone() -> None:
    options = {"batch_length_fn": len, "max_batch_tokens": 10}
    examples = ["x" * 50, "abc", "ab", "x" * 30]
    plan = [sorted(batch) for batch in batching.plan(examples, options)]
    assert plan == [[0], [3], [1, 2]]


def test_known_lengths_are_not_computed_again() -> None:
    def never(example: Any) -> float:
        raise AssertionError("asked for a length that is known")

    plan = batching.plan(["a", "bbb"], {"batch_length_fn": never, "max_batch_size": 1}, lengths=[1, 3])
    assert [list(batch) for batch in plan] == [[1], [0]]


def test_options_of_a_beam_handler_get_our_names() -> None:
    class BeamLike:
        def batch_elements_kwargs(self) -> dict[str, Any]:
            return {"max_batch_size": 3, "length_fn": len, "bucket_boundaries": [4], "min_batch_size": None}

    found = batching.options_of(BeamLike())
    assert found == {"max_batch_size": 3, "batch_length_fn": len, "batch_bucket_boundaries": [4]}


def test_batch_elements_kwargs_of_ours_has_beams_names_and_no_others() -> None:
    handler = ModelHandler(max_batch_size=8, batch_length_fn=len, batch_bucket_boundaries=[5], max_batch_tokens=64)
    assert handler.batch_elements_kwargs() == {"max_batch_size": 8, "length_fn": len, "bucket_boundaries": [5]}
    assert batching.options_of(handler)["max_batch_tokens"] == 64


class OneByOne(Doubling):
    """Says so as handlers written for Beam do."""

    def batch_elements_kwargs(self) -> dict[str, Any]:
        return {"max_batch_size": 1, "length_fn": abs}


def test_an_overridden_batch_elements_kwargs_counts_until_the_options_are_changed() -> None:
    handler = OneByOne(max_batch_size=8, max_batch_tokens=64, batch_length_fn=abs)
    assert batching.options_of(handler) == {"max_batch_size": 1, "batch_length_fn": abs, "max_batch_tokens": 64}
    changed = handler.with_batching(max_batch_size=16)
    assert batching.options_of(changed) == {"max_batch_size": 16, "batch_length_fn": abs, "max_batch_tokens": 64}
    assert batching.options_of(kit.KeyedModelHandler(OneByOne()))["max_batch_size"] == 1
    handler.batch_elements_kwargs = lambda: {"max_batch_size": 0}  # type: ignore[method-assign]
    with pytest.raises(InvalidSetting, match="max_batch_size=0"):
        batching.options_of(handler)


class Sizes(kit.ModelHandler):
    """Answers with the size of the batch."""

    def load_model(self) -> None:
        return None

    def run_inference(self, batch: Any, model: None, inference_args: Any = None) -> Any:
        return [len(batch)] * len(batch)

    def batch_elements_kwargs(self) -> dict[str, Any]:
        return {"max_batch_size": 2}


@pytest.mark.parametrize("name", [None, "sizes"])
def test_an_overridden_batch_size_holds_from_the_first_request_in_every_mode(runtime: Path, name: str | None) -> None:
    def sizes() -> list[int]:
        return [prediction.inference for prediction in deployment.predict(list(range(9)))]

    assert max(prediction.inference for prediction in range(9) | kit.RunInference(Sizes())) == 2
    with kit.deploy(Sizes(), mode=MODES[0], processes=1, name=name) as deployment:
        for mode in MODES:
            if mode != deployment.mode:
                deployment.switch(mode)
            assert max(sizes()) == max(sizes()) == 2, mode
        deployment.switch(batching={"max_batch_size": 3})
        assert max(sizes()) == 3


def _settle(seconds_of: Any, largest: int = 1024) -> int:
    sizer = batching.BatchSizer(4, largest)
    for _ in range(100):
        sizer.record(sizer.size, seconds_of(sizer.size))
    return sizer.size


def test_batches_stop_growing_when_an_example_gets_no_cheaper() -> None:
    # 10 ms of overhead and 1 ms an example: at 64 the overhead is 14 %, at 256 it is 4 %.
    assert 64 <= _settle(lambda n: 0.010 + 0.001 * n) <= 256


def test_batches_stay_small_when_the_cost_is_all_in_the_examples() -> None:
    assert _settle(lambda n: 0.01 * n) == 4


def test_batches_grow_to_the_limit_when_the_cost_is_all_overhead() -> None:
    assert _settle(lambda n: 0.005) == 1024
    assert _settle(lambda n: 0.005, largest=100) == 64


def test_batches_that_take_a_second_grow_no_more() -> None:
    assert _settle(lambda n: 1.5) == 4


def test_coalescing_follows_the_measured_curve() -> None:
    curve = batching.CostCurve()
    for _ in range(curve.trials):
        curve.record(8, 0.008)
        curve.record(16, 0.009)
        curve.record(64, 0.064)
        curve.record(128, 0.160)
    assert curve.pays(8, 8)
    assert not curve.pays(64, 64)
    assert curve.pays(512, 512), "a size never tried is worth a trial"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"max_batch_size": 8.0}, r"max_batch_size=8\.0"),
        ({"min_batch_size": -1}, "min_batch_size=-1"),
        ({"max_batch_tokens": 1.5}, "max_batch_tokens=1.5"),
        ({"max_batch_size": True}, "max_batch_size=True"),
        ({"min_batch_size": 9, "max_batch_size": 3}, "min_batch_size=9 is above max_batch_size=3"),
        ({"max_batch_duration_secs": 0}, "max_batch_duration_secs=0"),
        ({"batch_bucket_boundaries": [8, 4], "batch_length_fn": len}, "ascending"),
        ({"batch_bucket_boundaries": [4, 8]}, "batch_length_fn"),
        ({"model_copies": 0}, "model_copies=0"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], word: str) -> None:
    from kit.errors import InvalidSetting

    with pytest.raises(InvalidSetting, match=word):
        ModelHandler(**options)


@pytest.mark.parametrize(
    "bound", [{"max_batch_tokens": 120, "batch_length_fn": len}, {"max_batch_weight": 120, "element_size_fn": len}]
)
def test_lists_fill_a_budget_at_once_and_whole_batches_lie_within_it(bound: dict[str, Any]) -> None:
    handler = kit.ModelHandler.from_callable(int, lambda batch, model: [len(batch)] * len(batch), **bound)
    texts = ["ab", "abcdef"] * 300
    with kit.deploy(handler, processes=1) as deployment:
        for answers in (texts | kit.RunInference(handler), deployment.predict(texts)):
            sizes = [answer.inference for answer in answers]
            if "max_batch_tokens" in bound:
                assert set(sizes[::2]) == {60}  # 2 tokens each
                assert set(sizes[1::2]) == {20}
            else:
                assert set(sizes) == {30}


def test_without_a_bound_batches_of_sorted_examples_grow_too() -> None:
    handler = kit.ModelHandler.from_callable(int, lambda batch, model: [len(batch)] * len(batch), batch_length_fn=len)
    texts = ["x" * (1 + number % 50) for number in range(6000)]
    answers = texts | kit.RunInference(handler)
    assert [answer.example for answer in answers] == texts
    assert max(answer.inference for answer in answers) >= 256


def test_a_weight_without_a_function_counts_examples() -> None:
    assert [len(part) for part in batching.plan("abcdefg", {"max_batch_weight": 3})] == [3, 3, 1]

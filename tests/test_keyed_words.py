"""Models by key: words for pins that don't fit and keys that can't travel, and the budgets that simulate takes."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest

import kit
from kit import KeyedModelHandler, KeyModelMapping, RunInference, errors
from tests.test_keyed_faults import MODES, Times, keyed


class Thing:
    """Equal to itself only."""


def test_pins_that_do_not_fit_are_told_from_those_that_there_were() -> None:
    with kit.deploy(keyed(a=Times(1), b=Times(2), c=Times(3)), processes=1, memory_budget="2.5MB") as deployment:
        with pytest.raises(
            errors.BudgetExceeded, match=r"2.5 MB \(2,500,000 bytes\), and 2 MB are to be pinned with it"
        ):
            deployment.pin(["a", "b", "c"])
        assert not deployment.models()["pinned"].any()
        deployment.pin(["a"])
        with pytest.raises(errors.BudgetExceeded, match="1 MB of it are pinned, and 1 MB are to be pinned with it"):
            deployment.pin(["b", "c"])
        assert deployment.models()["pinned"].sum() == 1
        deployment.pin(["b"])
        with pytest.raises(errors.BudgetExceeded, match=r"2 MB of it are pinned\. Raise memory_budget, unpin a model"):
            deployment.predict([("c", 1)])


@pytest.mark.parametrize("key", [Thing(), lambda: 0, ("a", Thing())])
def test_a_key_that_is_equal_to_itself_only_is_refused_when_it_is_deployed(key: Any) -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a"], Times(1)), KeyModelMapping([key], Times(2))])
    with pytest.raises(errors.InvalidSetting, match=f"{re.escape(repr(key))[:30]}.*is equal to itself only"):
        kit.deploy(handler, processes=1)


def test_simulate_takes_budgets_as_they_come() -> None:
    import numpy as np
    import pandas as pd

    models = {"a": (100, 1.0), "b": (200, 1.0)}
    for budgets in (np.array([150, 300]), pd.Series([150, 300]), range(150, 301, 150), [150, 300]):
        assert list(kit.simulate("abab", models, budgets)["budget_bytes"].unique()) == [150, 300]
    for wrong in (b"ab", {150: 1}):
        with pytest.raises(errors.InvalidSetting, match="isn't a size"):
            kit.simulate("abab", models, wrong)


# ---- one handler for all keys --------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, *MODES])
def test_one_handler_for_all_keys_takes_keys_that_are_not_hashable(mode: str | None) -> None:
    handler = KeyedModelHandler(Times(2))
    with contextlib.ExitStack() as stack:
        served = handler if mode is None else stack.enter_context(kit.deploy(handler, mode=mode, processes=1))
        expected = [(["u"], (1, 2.0, None)), ("a", (2, 4.0, None)), (["u"], (3, 6.0, None))]
        assert [(["u"], 1), ("a", 2), (["u"], 3)] | RunInference(served) == expected


@pytest.mark.parametrize("option", [{"max_models_per_worker_hint": 2}, {"policy": "lru"}, {"keep_alive": 5.0}])
def test_one_handler_for_all_keys_refuses_options_that_would_do_nothing(option: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidSetting, match=f"{next(iter(option))}=.*one handler for all keys is one model"):
        KeyedModelHandler(Times(2), **option)

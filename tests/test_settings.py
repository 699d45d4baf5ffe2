"""Settings: the mode that a handler asks for, what a switch keeps, and what fits a memory budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import kit
from kit.errors import BudgetExceeded, InvalidSetting
from kit.settings import MODES, Settings

GIB = 1 << 30


class Shared(kit.ModelHandler):
    def share_model_across_processes(self) -> bool:
        return True


class Copies(Shared):
    def model_copies(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("handler", "mode", "copies"),
    [
        (kit.ModelHandler(), "default", 2),
        (kit.ModelHandler(large_model=True), "large", 1),
        (kit.ModelHandler(model_copies=1), "large", 1),
        (kit.ModelHandler(model_copies=3), "medium", 3),
        (kit.ModelHandler(large_model=True, model_copies=3), "medium", 3),
        (Shared(), "large", 1),
        (Copies(), "medium", 4),
    ],
)
def test_the_handler_chooses_when_nothing_is_given(handler: Any, mode: str, copies: int) -> None:
    found = Settings.make(handler)
    assert (found.mode, found.copies, found.processes, found.threads) == (mode, copies, 2, 1)


@pytest.mark.parametrize(("mode", "copies"), [("default", 3), ("large", 1), ("shared", 1), ("medium", 2)])
def test_what_is_given_beats_the_handler(mode: str, copies: int) -> None:
    for handler in (kit.ModelHandler(), kit.ModelHandler(large_model=True)):
        found = Settings.make(handler, mode, processes=3)
        assert (found.mode, found.copies) == (mode, copies)


def test_model_copies_alone_mean_medium() -> None:
    assert Settings.make(kit.ModelHandler(), model_copies=3) == Settings("medium", 2, 1, 3)
    assert Settings.make(kit.ModelHandler(), "medium", model_copies=1).copies == 1


def test_a_change_keeps_what_is_not_given() -> None:
    first = Settings.make(kit.ModelHandler(), "medium", 3, 2, 4, "2GiB")
    assert first.change(kit.ModelHandler()) == first
    assert first.change(kit.ModelHandler(), processes=5) == Settings("medium", 5, 2, 4, 2 * GIB)
    large = first.change(kit.ModelHandler(), mode="large")
    assert large == Settings("large", 3, 2, 1, 2 * GIB)
    assert large.change(kit.ModelHandler(), model_copies=3) == Settings("medium", 3, 2, 3, 2 * GIB)
    assert large.change(kit.ModelHandler(), mode="default").copies == 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "Large"}, ["'Large'", *map(repr, MODES)]),
        ({"mode": "hyper"}, ["'hyper'", *map(repr, MODES)]),
        ({"processes": 0}, ["processes=0", "at least 1"]),
        ({"processes": -2}, ["processes=-2"]),
        ({"processes": 1.5}, ["processes=1.5"]),
        ({"processes": "two"}, ["processes='two'"]),
        ({"threads": 0}, ["threads=0"]),
        ({"threads": True}, ["threads=True"]),
        ({"mode": "medium", "model_copies": 0}, ["model_copies=0"]),
        ({"mode": "large", "model_copies": 2}, ["model_copies=2", "'large'", "'medium'"]),
        ({"memory_budget": "lots"}, ["memory_budget='lots'", "2GiB"]),
        ({"memory_budget": -1}, ["memory_budget=-1"]),
        ({"memory_budget": "3 parsecs"}, ["3 parsecs"]),
        ({"processes": 200, "threads": 2}, ["processes=200", "threads=2", "250"]),
    ],
)
def test_settings_that_cannot_work_name_the_value(wrong: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Settings.make(kit.ModelHandler(), **wrong)
    for word in words:
        assert word in str(caught.value)


def test_threads_need_a_thread_safe_handler() -> None:
    class Touchy(kit.ModelHandler):
        thread_safe = False

    assert Settings.make(Touchy(), processes=4).threads == 1
    with pytest.raises(InvalidSetting, match="Touchy says thread_safe = False"):
        Settings.make(Touchy(), threads=2)


def _message(settings: Settings, model_bytes: int) -> str:
    with pytest.raises(BudgetExceeded) as caught:
        settings.check_budget(model_bytes)
    return str(caught.value)


def test_over_budget_says_copies_times_bytes_the_budget_and_what_fits() -> None:
    words = _message(Settings.make(kit.ModelHandler(), "default", 4, memory_budget="1GiB"), 400_000_000)
    assert "4 × 400 MB = 1.6 GB" in words
    assert "1 GiB" in words
    assert "can only fit 2" in words
    for fitting in ("'default' with processes=2", "'medium'", "'large'", "'shared'"):
        assert fitting in words


def test_over_budget_with_room_for_one_copy_names_no_mode_that_needs_two() -> None:
    words = _message(Settings.make(kit.ModelHandler(), "medium", 4, model_copies=3, memory_budget="500MB"), 400_000_000)
    assert "3 × 400 MB" in words
    assert "can only fit 1" in words
    assert "'medium'" not in words.partition("Modes that fit")[2]
    assert "'large'" in words


def test_over_budget_with_no_room_at_all_says_so() -> None:
    words = _message(Settings.make(kit.ModelHandler(), "large", memory_budget="100MB"), 400_000_000)
    assert "No mode fits" in words
    assert "100 MB, less than one copy. No mode fits" in words


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_named_as_fitting_do_fit(mode: str) -> None:
    settings = Settings.make(kit.ModelHandler(), mode, 2, memory_budget=800_000_000)
    settings.check_budget(400_000_000)
    settings.check_budget(None)
    replace(settings, memory_budget=None).check_budget(10**12)

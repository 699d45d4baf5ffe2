"""The settings as form controls: what the user has chosen, and whether that differs from what is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from kit.errors import InvalidSetting
from kit.memory import format_bytes
from kit.settings import MODES, Settings

#: A line for each mode.
EXPLAINED = {
    "default": "default: a copy of the model in each process, no hop to it",
    "medium": "medium: a few model hosts compute for all processes",
    "large": "large: one model host computes for all, joining their batches",
    "shared": "shared: one copy in memory, every process computes on it",
}
_BATCHING = ("max_batch_size", "max_batch_tokens")
#: Names of the whole-number controls: what they are called on the page, and the highest value.
_NUMBERS = {
    "processes": ("Processes", 250),
    "threads": ("Threads each", 250),
    "model_copies": ("Model copies", 250),
    "max_batch_size": ("Batch size", 1_000_000),
    "max_batch_tokens": ("Token budget", 100_000_000),
}
_STYLE = {"description_width": "110px"}


class Controls:
    """The form; `on_change` is called, in whatever thread a widget's value changes, when the user changed something."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._showing = False
        self._served: dict[str, Any] = {}
        self.mode = widgets.RadioButtons(
            options=[(EXPLAINED[mode], mode) for mode in MODES],
            description="Mode",
            style={"description_width": "50px"},
            layout={"width": "max-content"},
        )
        self.numbers = {
            # Not a bounded one, nor one of whole numbers: they make another number of what was typed, without a word.
            name: widgets.FloatText(description=words, step=1, style=_STYLE, layout={"width": "215px"})
            for name, (words, _) in _NUMBERS.items()
        }
        self.numbers["max_batch_size"].tooltip = "Examples a batch at most; 0 lets the kit find the best size"
        self.numbers["max_batch_tokens"].tooltip = "Padded tokens a batch at most; 0 for no limit"
        self.budget = widgets.Text(
            description="Memory budget",
            placeholder="none, or 2GiB",
            continuous_update=False,
            style=_STYLE,
            layout={"width": "290px"},
        )
        for control in (self.mode, *self.numbers.values(), self.budget):
            control.observe(self._changed, "value")
        left = [self.numbers[name] for name in ("processes", "threads", "model_copies")]
        right = [self.budget, *(self.numbers[name] for name in _BATCHING)]
        self.box = widgets.HBox([self.mode, widgets.VBox(left), widgets.VBox(right)], layout={"flex_flow": "row wrap"})
        self.box.add_class("kit-controls")

    def _changed(self, change: Any) -> None:
        self._allow()
        if not self._showing:
            self._on_change()

    def _allow(self) -> None:
        """Copies can be chosen in mode medium only."""
        self.numbers["model_copies"].disabled = self.mode.value != "medium"

    def show(self, settings: Settings, batching: Mapping[str, Any]) -> None:
        """Set the form to what is served; what was chosen since it showed that before, and not applied, stays."""
        served = {
            "mode": settings.mode,
            "processes": settings.processes,
            "threads": settings.threads,
            "model_copies": settings.model_copies if settings.mode == "medium" else 2,
            "memory_budget": settings.memory_budget or "",
            **{name: batching.get(name) or 0 for name in _BATCHING},
        }
        before, self._served = self._served, served
        self.set(**{name: value for name, value in served.items() if self._is(name, before.get(name), value)})

    def _is(self, name: str, *values: Any) -> bool:
        """Whether a control has one of these values, as far as it was ever given one."""
        if values[0] is None:
            return True
        if name == "memory_budget":
            return any(_same_budget(self.budget.value, value) for value in values)
        return (self.mode if name == "mode" else self.numbers[name]).value in values

    def set(self, **values: Any) -> None:
        """Set some controls, without calling `on_change`.

        Raises:
            InvalidSetting: a value that a control can't take, which it then doesn't.
        """
        checked = {name: _checked(name, value) for name, value in values.items()}
        self._showing = True
        try:
            for name, value in checked.items():
                if name == "mode":
                    self.mode.value = value
                elif name == "memory_budget":
                    self.budget.value = value
                else:
                    self.numbers[name].value = value
        finally:
            self._showing = False

    def wanted(self, now: Settings, batching: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments for `Deployment.switch` that lead from what is served to what the form says; empty when equal.

        Not checked: see `check`.
        """
        numbers = {name: _whole(control.value) for name, control in self.numbers.items()}
        found: dict[str, Any] = {}
        if self.mode.value != now.mode:
            found["mode"] = self.mode.value
        for name in ("processes", "threads"):
            if numbers[name] != getattr(now, name):
                found[name] = numbers[name]
        if self.mode.value == "medium" and (now.mode != "medium" or numbers["model_copies"] != now.model_copies):
            found["model_copies"] = numbers["model_copies"]
        budget = self.budget.value.strip()
        budget = "" if budget.lower() == "none" else budget
        if budget != _budget_text(now.memory_budget):
            found["memory_budget"] = budget or "none"
        changed = {name: numbers[name] or None for name in _BATCHING if numbers[name] != (batching.get(name) or 0)}
        if changed:
            found["batching"] = changed
        return found

    def check(self) -> None:
        """Raise InvalidSetting for a number that can't be."""
        for name, control in self.numbers.items():
            if not control.disabled:
                _checked(name, _whole(control.value))

    def disable(self, disabled: bool) -> None:
        """While something else decides about the settings."""
        for control in (self.mode, *self.numbers.values(), self.budget):
            control.disabled = disabled
        if not disabled:
            self._allow()


def _whole(value: float) -> int | float:
    """What a control says: 2 for 2.0, and 2.7 as it is."""
    return int(value) if float(value).is_integer() else value


def _checked(name: str, value: Any) -> Any:
    if name == "mode":
        if value not in MODES:
            raise InvalidSetting(f"mode={value!r} is unknown; use one of {', '.join(map(repr, MODES))}.")
        return value
    if name == "memory_budget":
        return "" if value in (None, "none") else _budget_text(value)
    if name not in _NUMBERS:
        raise InvalidSetting(f"{name!r} isn't a control; use mode, memory_budget, {', '.join(_NUMBERS)}.")
    low, high = 0 if name in _BATCHING else 1, _NUMBERS[name][1]
    value = 0 if value is None and low == 0 else value
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidSetting(f"{name}={value!r} ({_NUMBERS[name][0]}): give a whole number from {low} to {high}.")
    return value


def _same_budget(text: str, size: int | str) -> bool:
    """Whether the form says a number of bytes, "" for none."""
    from kit.memory import parse_bytes

    try:
        return (parse_bytes(text.strip()) if text.strip() else "") == size
    except InvalidSetting:
        return False


def _budget_text(value: int | float | str | None) -> str:
    """A budget as the form shows it: in few words where these say it exactly."""
    from kit.memory import parse_bytes

    if not value:
        return ""
    if isinstance(value, str):
        return value.strip()
    size, words = int(value), format_bytes(value)
    return words if parse_bytes(words) == size else str(size)

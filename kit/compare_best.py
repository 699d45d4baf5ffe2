"""Which of the measured modes is the best for a memory budget, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kit.compare_plot import number
from kit.compare_run import Result
from kit.errors import InvalidSetting
from kit.memory import format_bytes

#: Differences below this are taken for noise, whatever the repeats say.
_LEAST_NOISE = 0.03


@dataclass(frozen=True, slots=True)
class Choice:
    """The best mode for a budget; `str()` of it is the reason.

    Attributes:
        mode: None when no mode fits.
        settings: arguments for `kit.deploy(handler, **choice.settings)`; empty when no mode fits.
        reason: a sentence or two with the figures, naming the runner-up.
        handler: what was measured.
    """

    mode: str | None
    settings: dict[str, Any]
    reason: str
    handler: Any = field(default=None, repr=False, compare=False)

    def to_beam(self, inference_args: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """A step of an Apache Beam pipeline with this mode and its settings: a `kit.beam.RunInference`.

        Args:
            inference_args: passed to ``run_inference``.
            options: those of `kit.beam.RunInference`; they go before these settings.

        Raises:
            InvalidSetting: no mode was chosen. MissingExtra: Apache Beam isn't installed.
        """
        import kit

        if self.mode is None:
            raise InvalidSetting(f"there is no mode to take into a pipeline: {self.reason}")
        return kit.beam.RunInference(self.handler, inference_args, **{**self.settings, **options})

    def __str__(self) -> str:
        return self.reason


def best(results: Sequence[Result], budget: int | None, handler: Any = None) -> Choice:
    """The fastest whose peak PSS is within `budget` (bytes); of those equal within the noise, the smallest."""
    measured = [result for result in results if result.measured]
    if not measured:
        return Choice(None, {}, "No mode could be measured. " + " ".join(f"{one.label}: {one.note}" for one in results))
    fitting = [result for result in measured if budget is None or result.peak_pss_bytes <= budget]
    if not fitting:
        return _nothing_fits(measured, budget)
    fastest = max(fitting, key=lambda result: result.throughput)
    rivals = [one for one in fitting if one.throughput >= fastest.throughput * (1 - _noise(one, fastest))]
    chosen = min(rivals, key=lambda result: result.peak_pss_bytes)
    words = f"{chosen.label}: {number(chosen.throughput)} elements/s in {format_bytes(chosen.peak_pss_bytes)}"
    words += "." if budget is None else f", within the budget of {_budget_text(budget)}."
    others = [result for result in measured if result is not chosen]
    if others:
        runner_up = max(others, key=lambda result: result.throughput)
        words += f" Runner-up: {_why_not(runner_up, chosen, budget)}"
    else:
        words += " No other mode was measured."
    return Choice(chosen.mode, dict(chosen.settings), words, handler)


def _noise(one: Result, other: Result) -> float:
    """Share by which two throughputs may differ by chance, judged by the spread of the repeats."""
    return max(_LEAST_NOISE, min(0.10, max(one.spread, other.spread) / 2))


def _budget_text(budget: int) -> str:
    """A budget as it was given, with the same in powers of 1000 where that isn't how it was given."""
    text, plain = format_bytes(budget), format_bytes(budget + 1)
    return text if text == plain or "i" not in text else f"{text} ({plain})"


def _nothing_fits(measured: Sequence[Result], budget: int | None) -> Choice:
    assert budget is not None
    smallest = min(measured, key=lambda result: result.peak_pss_bytes)
    over = smallest.peak_pss_bytes - budget
    reason = (
        f"No measured mode fits the budget of {_budget_text(budget)}. The smallest is {smallest.label} with "
        f"{format_bytes(smallest.peak_pss_bytes)}, {format_bytes(over)} over it "
        f"({number(smallest.throughput)} elements/s). "
        "Raise the budget, serve with fewer processes, or take a smaller model."
    )
    return Choice(None, {}, reason)


def _why_not(runner_up: Result, chosen: Result, budget: int | None) -> str:
    """A sentence: what the runner-up offers, and why it isn't the choice."""
    faster = runner_up.throughput / chosen.throughput - 1
    speed = f"{abs(faster):.0%} {'more' if faster > 0 else 'fewer'}" if abs(faster) >= 0.005 else "as many"
    words = f"{runner_up.label}, {number(runner_up.throughput)} elements/s ({speed})"
    size = format_bytes(runner_up.peak_pss_bytes)
    if budget is not None and runner_up.peak_pss_bytes > budget:
        return f"{words}, but its {size} are {format_bytes(runner_up.peak_pss_bytes - budget)} over the budget."
    difference = runner_up.peak_pss_bytes - chosen.peak_pss_bytes
    if runner_up.throughput >= chosen.throughput * (1 - _noise(runner_up, chosen)) and difference > 0:
        noise = _noise(runner_up, chosen)
        return (
            f"{words}, within the {noise:.0%} that are taken for equal, but in {size}, {format_bytes(difference)} more."
        )
    more = f"{format_bytes(abs(difference))} {'more' if difference > 0 else 'less'}"
    return f"{words}; it lost by its speed, in {size} ({more})."

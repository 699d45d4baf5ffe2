"""How often a model is asked for, where that changes from time to time.

A belief gives each of some rates a likelihood. The rate stays for a while, then is drawn anew: the forward algorithm
of a Poisson process whose rate is a Markov chain (T. Rydén, "An EM algorithm for estimation in Markov-modulated
Poisson processes", Computational Statistics & Data Analysis 21, 1996). Unlike a count that decays, it notices soon that
a model which was asked for every moment isn't any more, and still tells models apart that are asked for rarely.

Rates and times are relative: a model of average popularity has the rate 1, and as many requests as there are models
take the time 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from operator import mul
from typing import NamedTuple

#: Rates that are told apart.
RATES = tuple(2.0**power for power in range(-2, 14))
#: Mean time for which a rate stays; with half or twice as much, the seconds of loading are the same within 1 %.
STAYS = 128.0
#: As popularity is distributed (Zipf): there are half as many models with twice the rate.
_NEW = tuple(1 / (rate * sum(1 / other for other in RATES)) for rate in RATES)
#: The belief hardly changes after such a time, and the numbers would become too small.
_LONGEST = 8 * STAYS
#: Times are told apart by a twelfth of an octave, 6 %: what is reckoned for them is kept.
_STEPS = 12


class _Silence(NamedTuple):
    """What no request for some time says of each rate, and of the mean.

    `stays` is the likelihood of the silence and of no change. A change, one at most, comes at any moment, as likely as
    the silence up to then, which falls from 1 to S: `changes` + (S - 1) × `later` is the likelihood of the rate
    after it. The other numbers are the sums of these over all rates, and the sums of these times the rates.
    """

    stays: tuple[float, ...]
    changes: tuple[float, ...]
    later: tuple[float, ...]
    stays_rates: tuple[float, ...]
    changes_sum: float
    later_sum: float
    changes_mean: float
    later_mean: float


@functools.lru_cache(maxsize=1024)
def _silence(step: int) -> _Silence:
    time = 2.0 ** (step / _STEPS)
    silent = [math.exp(-rate * time) for rate in RATES]
    stays = tuple(one * math.exp(-time / STAYS) for one in silent)
    whole = [(1 - one) / rate for one, rate in zip(silent, RATES, strict=True)]
    changes = tuple(new * one / STAYS for new, one in zip(_NEW, whole, strict=True))
    parts = [(1 - one / time) / rate for one, rate in zip(whole, RATES, strict=True)]
    later = tuple(new * part / STAYS for new, part in zip(_NEW, parts, strict=True))
    return _Silence(
        stays, changes, later, tuple(map(mul, stays, RATES)), sum(changes), sum(later), mean(changes), mean(later)
    )


def fresh() -> Sequence[float]:
    """The belief about a model that nothing is known of."""
    return _NEW


def mean(belief: Sequence[float]) -> float:
    """The rate to be expected."""
    return math.fsum(map(mul, belief, RATES))


def asked(belief: Sequence[float], time: float) -> list[float]:
    """The belief at a request, the first in the `time` since the belief was had."""
    if time > 0:
        silence = _silence(_step(time))
        stays = list(map(mul, belief, silence.stays))
        falls = sum(stays) - 1
        belief = [
            one + change + falls * late for one, change, late in zip(stays, silence.changes, silence.later, strict=True)
        ]
    likelihoods = list(map(mul, belief, RATES))
    total = sum(likelihoods)
    return [likelihood / total for likelihood in likelihoods]


def expected(belief: Sequence[float], time: float) -> float:
    """The rate to be expected, when no request came in the `time` since the belief was had."""
    if time <= 0:
        return mean(belief)
    silence = _silence(_step(time))
    silent: float = sum(map(mul, belief, silence.stays))
    total = silent + silence.changes_sum + (silent - 1) * silence.later_sum
    rates: float = sum(map(mul, belief, silence.stays_rates)) + silence.changes_mean + (silent - 1) * silence.later_mean
    return rates / total


def _step(time: float) -> int:
    return round(math.log2(min(time, _LONGEST)) * _STEPS)

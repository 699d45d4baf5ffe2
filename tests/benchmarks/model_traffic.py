"""Models and traffic that cache policies are compared on; drawn from a seed, so that figures can be repeated."""

from __future__ import annotations

import bisect
import itertools
import math
import random

MODELS = 60
SMALLEST_BYTES, LARGEST_BYTES = 90_000_000, 26_000_000_000


def models(seed: int) -> dict[int, tuple[int, float]]:
    """Bytes and load seconds of 60 models, 0.09 to 26 GB, as many small as large ones (log-uniform).

    A load takes 1.5 s and the bytes at 1.5 GB/s, times what differs between formats, disks and frameworks
    (log-normal, sigma 0.8).
    """
    draw = random.Random(seed)
    found = {}
    for number in range(MODELS):
        size = round(math.exp(draw.uniform(math.log(SMALLEST_BYTES), math.log(LARGEST_BYTES))))
        found[number] = (size, (1.5 + size / 1.5e9) * math.exp(draw.gauss(0, 0.8)))
    return found


def traffic(seed: int, requests: int, drift: int = 250) -> list[int]:
    """Models asked for: the one at rank r about 1/r as often as the first; every `drift` requests two trade places."""
    draw = random.Random(seed)
    ranked = draw.sample(range(MODELS), MODELS)
    heights = list(itertools.accumulate(1 / (rank + 1) for rank in range(MODELS)))
    found = []
    for number in range(requests):
        if number % drift == drift - 1:
            one, other = draw.randrange(MODELS), draw.randrange(MODELS)
            ranked[one], ranked[other] = ranked[other], ranked[one]
        found.append(ranked[bisect.bisect_left(heights, draw.random() * heights[-1])])
    return found

"""What a handler of a cell's class may be made of, and how it travels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import kit
from kit.engine.packing import pack
from tests.daemon_kernels import Kernel

CACHED = """
import functools, kit

@functools.lru_cache(maxsize=10)
def fibonacci(number): return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

class Held:
    @functools.cached_property
    def double(self): return [2]

class Cached(kit.ModelHandler):
    def load_model(self): return Held()
    @functools.cache
    def again(self, number): return number
    def run_inference(self, batch, model, inference_args=None):
        assert model.double is model.double
        return [model.double[0] * self.again(fibonacci(x)) for x in batch]
"""


@pytest.mark.parametrize("name", [None, "cached"])
def test_functions_with_a_cache_travel_with_their_class(runtime: Path, name: str | None) -> None:
    with Kernel() as kernel:
        serve = f"d = kit.deploy(Cached(), name={name!r}, processes=1)"
        assert kernel.run(CACHED + serve, "[p.inference for p in d.predict([1, 10])]") == [2, 110]
        assert kernel.run("d.close()") is None


@functools.lru_cache(maxsize=3)
def importable(number: int) -> int:
    return number


def test_a_function_with_a_cache_is_itself_again_where_it_can_be_imported() -> None:
    def copied(function: Any) -> Any:
        packed = pack(kit.ModelHandler.from_callable(int, lambda batch, model: function))
        return cloudpickle.loads(packed).run_inference([], None)

    assert copied(importable) is importable
    made = functools.lru_cache(maxsize=3, typed=True)(lambda number: number + 1)
    assert copied(made) is not made
    assert copied(made)(1) == 2
    assert copied(made).cache_parameters() == {"maxsize": 3, "typed": True}
    assert copied(functools.lru_cache(functools.partial(pow, 2)))(3) == 8  # it has no name

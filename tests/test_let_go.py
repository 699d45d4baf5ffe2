"""A deployment that nobody has any more ends at once, also when its last answer was an error."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import kit
from kit import errors
from tests.widgets_helpers import until


class Troubled(kit.ModelHandler):
    """Does to its batch what the examples say."""

    def load_model(self) -> int:
        return 1

    def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
        if "bad" in batch:
            raise ValueError("bad")
        if "slow" in batch:
            time.sleep(1)
        if "die" in batch:
            os._exit(3)
        return list(batch)


def crash_loop(deployment: Any) -> None:
    for _ in range(4):
        try:
            deployment.predict(["die"])
        except errors.WorkerDied:
            pass
    deployment.predict(["good"])


TROUBLES: dict[str, tuple[type[Exception], Callable[[Any], Any]]] = {
    "predict": (errors.InferenceFailed, lambda d: d.predict(["bad"])),
    "predict-late": (errors.DeadlineExceeded, lambda d: d.predict(["slow"], timeout=0.2)),
    "predict-dead": (errors.WorkerDied, lambda d: d.predict(["die"])),
    "submit": (errors.InferenceFailed, lambda d: d.submit(["bad"]).result()),
    "run-inference": (errors.InferenceFailed, lambda d: ["bad"] | kit.RunInference(d)),
    "stream": (errors.InferenceFailed, lambda d: list(iter(["bad"]) | kit.RunInference(d))),
    "crash-loop": (errors.CrashLoop, crash_loop),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_deployment_whose_last_answer_was_an_error_ends_when_it_is_let_go(name: str) -> None:
    kind, trouble = TROUBLES[name]
    deployment = kit.deploy(Troubled(), processes=1)
    gone = weakref.ref(deployment)
    gc.disable()  # in a notebook it may take minutes to come
    try:
        with pytest.raises(kind):
            trouble(deployment)
        del deployment
        until(lambda: gone() is None, "the end of the deployment")
    finally:
        gc.enable()


def test_an_error_is_a_new_one_each_time_that_it_is_asked_for() -> None:
    with kit.deploy(Troubled(), processes=1) as deployment:
        future = deployment.submit(["bad"])
        with pytest.raises(errors.InferenceFailed) as first:
            future.result()
        with pytest.raises(errors.InferenceFailed) as second:
            future.result()
        assert first.value is not second.value
        assert str(first.value) == str(second.value) == str(future.exception())
        assert "ValueError: bad" in str(second.value)


def test_a_deployment_that_has_given_up_says_so() -> None:
    with kit.deploy(Troubled(), processes=1) as deployment:
        with pytest.raises(errors.CrashLoop, match=r"5 serving processes died within \d+ s"):
            crash_loop(deployment)
        assert "broken by CrashLoop" in repr(deployment)
        assert "CrashLoop" in deployment._repr_mimebundle_()["text/html"]
    assert "closed" in repr(deployment)

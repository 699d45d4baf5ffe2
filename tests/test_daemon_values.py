"""What travels to and from a named deployment, unaltered or not at all, and what comes of examples that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kit
from kit import errors


class Echo(kit.ModelHandler):
    """Gives the examples back; raises over "boom", and makes a set of "set"."""

    def load_model(self) -> None:
        return None

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        if any(type(example) is str and example == "boom" for example in batch):
            raise ValueError("boom!")
        return [{1} if type(example) is str and example == "set" else example for example in batch]


@pytest.fixture
def echo(runtime: Path) -> Iterator[Any]:
    with kit.deploy(Echo(), name="echo", processes=1) as deployment:
        yield deployment


@pytest.mark.parametrize("examples", [["boom"], ["boom"] * 5, ["boom", 1], ["boom"] * 8200 + ["ok"]])
def test_examples_that_fail_are_failures_even_where_none_succeeds(echo: Any, examples: list[Any]) -> None:
    found = echo.submit(examples, isolate=True).result(60)
    assert len(found) == len(examples)
    for example, result in zip(examples, found, strict=True):
        if example == "boom":
            assert type(result).__name__ == "Failure"
            assert isinstance(result.error, errors.InferenceFailed)
            assert "ValueError: boom!" in str(result.error)
        else:
            assert result.inference == example
    found = ["boom"] | kit.RunInference(echo).with_exception_handling()
    assert "boom!" in str(found[0].error)


def test_a_pipelines_dead_letters_have_the_handlers_error(echo: Any) -> None:
    beam = pytest.importorskip("apache_beam")
    from apache_beam.testing.util import assert_that

    def are_the_handlers(dead: list[Any]) -> None:
        assert len(dead) == 2, dead
        assert all("boom!" in str(letter) for letter in dead), dead

    with beam.Pipeline() as running:
        _, failed = running | beam.Create(["boom", "boom"]) | echo.to_beam().with_exception_handling()
        assert_that(failed.failed_inferences, are_the_handlers)

"""The Export tab's code runs, and reproduces the settings."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys

import pytest

import kit
from kit.settings import Settings
from widgets.export import beam_code, python_code


class Factor:
    """A model; Beam keeps weak references to one, and calls it through a proxy."""

    def __init__(self, factor):
        self.factor = factor

    def times(self, batch):
        return [example * self.factor for example in batch]


class Doubling(kit.ModelHandler):
    def load_model(self):
        return Factor(2)

    def run_inference(self, batch, model, inference_args=None):
        return model.times(batch)


class Own(Doubling):
    """Takes none of the kit's options."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def load_model(self):
        return Factor(self.factor)


def doubled(example):
    return example * 2


def load():
    return Factor(2)


def run_batch(batch, model):
    return model.times(batch)


def run(code, **names):
    space = {"examples": [1, 2, 3], "__name__": "exported", **names}
    exec(compile(code, "exported", "exec"), space)
    return space


def made(code, **names):
    """The handler that Beam code makes, without running the pipeline."""
    return run(code.partition("with beam.Pipeline()")[0], **names)["handler"]


@pytest.mark.parametrize(
    ("wanted", "shares"),
    [
        ({"mode": "default", "processes": 1, "threads": 2}, (False, 1)),
        ({"mode": "large", "processes": 2}, (True, 1)),
        ({"mode": "medium", "processes": 1, "model_copies": 3, "memory_budget": "1GiB"}, (True, 3)),
        ({"mode": "shared", "processes": 1}, (True, 1)),
    ],
)
def test_both_codes_reproduce_the_settings(wanted, shares):
    handler = Doubling(max_batch_size=4, large_model=True).with_batching(max_batch_size=2, min_batch_size=1)
    settings = Settings.make(handler, **wanted)
    space = run(python_code(handler, settings))
    with space["deployment"] as deployment:
        assert deployment.settings == settings
        assert deployment.handler.batching_options() == handler.batching_options()
        assert [p.inference for p in space["predictions"]] == [2, 4, 6]
    theirs = made(beam_code(handler, settings))
    assert (theirs.share_model_across_processes(), theirs.model_copies()) == shares
    assert theirs.batch_elements_kwargs() == handler.batch_elements_kwargs()


def test_with_examples_that_can_be_written_down_both_codes_run_as_they_are(capsys):
    handler, examples = Doubling(max_batch_size=4), [1, 2, 3, 4]
    settings = Settings.make(handler, processes=1)
    space = {}
    exec(python_code(handler, settings, examples), space)
    with space["deployment"]:
        assert [p.inference for p in space["predictions"]] == [2, 4, 6]
    exec(beam_code(handler, settings, examples), {})
    assert sorted(capsys.readouterr().out.split()) == ["2", "4", "6"]
    assert "examples: a list of your own" in python_code(handler, settings, [object()])


@pytest.mark.parametrize("count", [2, 6])
def test_models_by_key_are_written_down_mapping_by_mapping(count):
    mappings = [kit.KeyModelMapping([f"key {at}", at], Own(factor=at + 1)) for at in range(count)]
    handler = kit.KeyedModelHandler(mappings, memory_budget="1GB", policy="lru")
    settings = Settings.make(handler, mode="large", processes=1, memory_budget="2GB")
    code = python_code(handler, settings, [("key 1", 5), (0, 7)])
    assert "from kit import KeyModelMapping\n" in code
    assert "KeyModelMapping(['key 1', 1], Own(factor=2))" in code
    space = run(code, Own=Own)
    with space["deployment"] as deployment:
        assert [found.inference for _, found in space["predictions"]] == [10, 7]
        assert (deployment.settings, deployment.handler.policy) == (settings, "lru")
    many = kit.KeyedModelHandler([kit.KeyModelMapping([at], Own(at)) for at in range(1000)])
    assert "would take" in python_code(many, settings)
    assert "handler = handler" in python_code(many, settings)


def test_the_beam_code_runs(capsys):
    handler = Doubling(max_batch_size=4)
    run(beam_code(handler, Settings.make(handler, processes=1)))
    assert sorted(capsys.readouterr().out.split()) == ["2", "4", "6"]


def test_the_beam_code_of_mode_large_runs():
    handler = Doubling()
    code = beam_code(handler, Settings.make(handler, mode="large"))
    # In a process of its own: Beam leaves the process that holds the shared model behind.
    process = subprocess.Popen(
        [sys.executable, "-c", f"examples = [1, 2, 3]\n{code}"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=120)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it left nothing after all
    assert process.returncode == 0, err
    assert sorted(out.split()) == ["2", "4", "6"]


def test_functions_around_the_model_are_written_down():
    handler = Doubling().with_preprocess_fn(doubled).with_preprocess_fn(abs).with_postprocess_fn(repr)
    with run(python_code(handler, Settings.make(handler, processes=1)))["deployment"] as deployment:
        assert deployment.predict([-1]) == ["4"]


@pytest.mark.parametrize("handler", [Own(3), Doubling().with_preprocess_fn(lambda x: x)], ids=["options", "lambda"])
def test_what_cannot_be_written_down_is_taken_from_the_notebook(handler):
    settings = Settings.make(handler, mode="medium", processes=1)
    theirs = made(beam_code(handler, settings), handler=handler)
    assert (theirs.share_model_across_processes(), theirs.model_copies()) == (True, 2)
    with run(python_code(handler, settings), handler=handler)["deployment"] as deployment:
        assert deployment.settings == settings


def test_a_handler_that_came_from_another_process_is_not_written_down_without_its_arguments():
    handler = pickle.loads(pickle.dumps(Doubling(max_batch_size=3)))
    assert "its arguments stayed" in python_code(handler, Settings.make(handler))


def test_two_functions_as_a_handler():
    handler = kit.ModelHandler.from_callable(load, run_batch, max_batch_size=2)
    code = python_code(handler, Settings.make(handler, processes=1))
    assert "kit.ModelHandler.from_callable(load, run_batch, max_batch_size=2)" in code
    with run(code)["deployment"] as deployment:
        assert deployment.predict([5])[0].inference == 10

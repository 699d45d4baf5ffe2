"""Apache Beam 2.77 doing the same jobs, as its documentation has it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

# Beam's worker processes import this module by name.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
logging.disable(logging.ERROR)

import apache_beam as beam  # noqa: E402
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402

from tests.benchmarks import models  # noqa: E402
from tests.benchmarks.beam_steps import KEYED, KEYS, NAMESPACE, PROCESSES, Noting, keyed_row, mlp_row, same  # noqa: E402

IN_MEMORY = ("--runner=DirectRunner", "--direct_running_mode=in_memory")
TWO_PROCESSES = ("--runner=DirectRunner", "--direct_running_mode=multi_processing", f"--direct_num_workers={PROCESSES}")


class Identity(ModelHandler):  # type: ignore[misc]
    """Gives back what it gets."""

    def load_model(self) -> models.Nothing:
        return models.Nothing()

    def run_inference(
        self, batch: Sequence[Any], model: models.Nothing, inference_args: dict[str, Any] | None = None
    ) -> list[Any]:
        return [PredictionResult(example, example) for example in batch]


def run(examples: Sequence[Any], handler: Any, options: Sequence[str]) -> None:
    """Run a pipeline of examples and a handler, and wait for its end.

    In memory, arrays and tensors come into it by number: ``Create`` would pickle each of them, which
    takes many times as long as the inference and is no part of the comparison.
    """
    by_number = options is IN_MEMORY and not isinstance(examples[0], int)
    with _silent():
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            if by_number:
                _table[:] = examples
                elements = pipeline | beam.Create(range(len(examples))) | beam.Map(_look_up)
            else:
                elements = pipeline | beam.Create(examples)
            elements | RunInference(handler)


_table: list[Any] = []


def _look_up(number: int) -> Any:
    return _table[number]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what Beam's processes print to themselves, unless the pipeline fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(kept, file.read()[-4000:])
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def run_numbers(count: int, step: Any, row: Any = None) -> float:
    """Run a pipeline in two worker processes: numbers that become rows there, and a step.

    Returns:
        Seconds from the first element into the step to the last result out of it, over both processes; their
        start, which takes as long whatever the step is, isn't in it.

    Raises:
        RuntimeError: not every element came back.
    """
    with _silent(), tempfile.TemporaryDirectory(prefix="kit-bench-beam-") as folder:
        pipeline = beam.Pipeline(options=PipelineOptions(list(TWO_PROCESSES)))
        first, last = Noting("in", row or mlp_row, folder), Noting("out", same)
        last.start_us = first.start_us
        _ = pipeline | beam.Create(range(count)) | "row" >> beam.Map(first) | step | "out" >> beam.Map(last)
        done = pipeline.run()
        done.wait_until_finish()
    found = {one.key.metric.name: one.committed for one in done.metrics().query(_NOTED)["distributions"]}
    if found["out"].count != count:
        raise RuntimeError(f"{found['out'].count} of {count} elements came back")
    seconds: float = (found["out"].max - found["in"].min) / 1e6
    return seconds


_NOTED = beam.metrics.MetricsFilter().with_namespace(NAMESPACE)


def nothing() -> Any:
    """A step that does nothing."""
    return beam.Map(same)


def mlp_handler(path: str, batch_size: int, *, mended: bool, large: bool = False) -> Any:
    """Beam's PyTorch handler of the MLP; mended, its ``get_num_bytes`` doesn't look at every number."""
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

    cls = _mended(PytorchModelHandlerTensor) if mended else PytorchModelHandlerTensor
    return cls(
        state_dict_path=path,
        model_class=models.mlp,
        model_params={},
        min_batch_size=batch_size,
        max_batch_size=batch_size,
        large_model=large,
    )


def _mended(base: Any) -> Any:
    class Mended(base):  # type: ignore[misc]
        def get_num_bytes(self, batch: Sequence[Any]) -> int:
            return sum(tensor.nbytes for tensor in batch)

    return Mended


def keyed_handler() -> Any:
    """`beam_steps.KEYS` models by key, each shared by all processes, as Beam's documentation has it."""
    from apache_beam.ml.inference.base import KeyedModelHandler, KeyModelMapping

    return KeyedModelHandler([KeyModelMapping([key], models.SharedIdentity()) for key in range(KEYS)])


@functools.cache
def keyed_seconds() -> float:
    """Seconds that they take in two worker processes, whose start doesn't count."""
    return run_numbers(KEYED, RunInference(keyed_handler()), keyed_row)


class Echo:
    """What Beam's shared-model process serves in the round trip."""

    def __call__(self, batch: Any) -> Any:
        return batch


@contextlib.contextmanager
def shared_echo() -> Iterator[Any]:
    """A proxy of an `Echo` in a process of its own, as Beam shares a large model."""
    import multiprocessing
    import uuid

    from apache_beam.utils.multi_process_shared import MultiProcessShared

    with tempfile.TemporaryDirectory(prefix="kit-bench-beam-") as folder, _silent():
        shared = MultiProcessShared(
            Echo, f"echo_{uuid.uuid4().hex}", path=folder, always_proxy=True, spawn_process=True
        )
        proxy = shared.acquire()
        try:
            yield proxy
        finally:
            # The server exits while it answers.
            with contextlib.suppress(EOFError, OSError):
                shared.unsafe_hard_delete()
            for child in multiprocessing.active_children():
                child.join(5)

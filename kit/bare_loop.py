"""The bare loop that serving modes are compared with: a model and a `for`, in a process of its own.

Nothing of the engine takes part: examples are pre-processed, batched by the handler's options, passed
to `run_inference`, wrapped into results and post-processed, with one torch thread. It runs in a fresh
process, so that the caller's memory stays as it was and the loop's own can be measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

from kit import batching, errors, search_path
from kit.checks import check_prediction_count
from kit.engine import forkserver, loading, system
from kit.engine.packing import pack
from kit.engine.trouble import FAILURES
from kit.handler import PredictionResult
from kit.metrics import LatencyHistogram

_BOOTSTRAP = (
    "import sys, json; path, fd, parent = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from kit import bare_loop; bare_loop.serve(fd, parent)"
)


class BareLoop:
    """A process that runs the loop on demand, once `start` has loaded the model in it.

    Args:
        handler: any model handler, of ours or of Beam's.
        examples: the examples, the same for every measurement.

    Attributes:
        pid: of the process.
        weights_bytes: bytes of the model, 0 before it is loaded.

    Raises:
        HandlerNotPicklable: the handler can't travel to the process.
        ModelLoadFailed, InferenceFailed: from its methods, the handler failed in the process; with its traceback.
        WorkerDied: from its methods, the process ended; with what it last printed.
    """

    def __init__(self, handler: Any, examples: Sequence[Any]) -> None:
        self._work = pack(handler), pack(list(examples))
        ours, theirs = Pipe()
        self._connection = ours
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
        argument = json.dumps([search_path.entries(), theirs.fileno(), os.getpid()])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, argument],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **forkserver.environment(), "OMP_NUM_THREADS": "1"},
            )
        finally:
            theirs.close()
        self.pid = self._process.pid
        self.weights_bytes = 0

    def start(self) -> None:
        """Load the model and answer the first examples."""
        try:
            self._connection.send(self._work)
        except OSError:
            raise self._died() from None
        self.weights_bytes = self._answer()
        self.latency(0.0)  # as a deployment's, this start lasts until the first answers

    def pids(self) -> list[int]:
        """The process."""
        return [self.pid]

    def warm_up(self, seconds: float) -> None:
        """Run for about `seconds`, to find the batch size where the handler sets none."""
        self._ask("warm_up", seconds)

    def throughput(self, seconds: float) -> float:
        """Elements a second over whole passes that take at least `seconds`."""
        return float(self._ask("throughput", seconds))

    def latency(self, seconds: float) -> LatencyHistogram:
        """Latencies of requests of one example, one after the other, for `seconds`."""
        found = self._ask("latency", seconds)
        assert isinstance(found, LatencyHistogram)
        return found

    def close(self) -> None:
        """End the process; twice is once."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._output.close()

    def abort(self) -> None:
        """Kill the process; who waits for its answer gets WorkerDied."""
        self._process.kill()

    def _ask(self, what: str, seconds: float) -> Any:
        try:
            self._connection.send((what, seconds))
        except OSError:
            raise self._died() from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if kind == "error":
            name, message, trace = value
            raise getattr(errors, name)(message, trace)
        return value

    def _died(self) -> errors.WorkerDied:
        code = self._process.wait()
        self._output.seek(0)
        tail = self._output.read()[-4000:].decode(errors="replace")
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        return errors.WorkerDied(f"The process of the bare loop {how} before it answered.", tail)


# ---- in the process ------------------------------------------------------------------------------


def serve(fd: int, parent: int) -> None:
    """Load the model, then obey until the other side closes."""
    import pickle

    system.die_with_parent(parent)
    system.set_name("kit-bare-loop")
    connection: Connection[Any, Any] = Connection(fd)
    try:
        handler_bytes, examples_bytes = connection.recv()
        loop = _Loop(pickle.loads(handler_bytes), pickle.loads(examples_bytes))
    except FAILURES as error:
        connection.send(("error", _described(error, "ModelLoadFailed", "The model couldn't be loaded")))
        return
    connection.send(("ok", loop.weights_bytes))
    while True:
        try:
            what, seconds = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("ok", getattr(loop, what)(seconds)))
        except FAILURES as error:
            connection.send(("error", _described(error, "InferenceFailed", "The handler failed")))


def _described(error: BaseException, kind: str, what: str) -> tuple[str, str, str]:
    if isinstance(error, errors.KitError):
        return (type(error).__name__, str(error.args[0]), error.remote_traceback or traceback.format_exc())
    return (kind, f"{what} in the bare loop: {type(error).__name__}: {error}", traceback.format_exc())


class _Loop:
    def __init__(self, handler: Any, examples: list[Any]) -> None:
        self.handler = handler
        self.examples = examples
        handler.set_environment_vars()
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(1)
        self.model, report = loading.load(handler)
        if (torch := sys.modules.get("torch")) is not None:  # load_model may have been the first to import it
            torch.set_num_threads(1)
        self.weights_bytes = int(report["weights_bytes"])
        self.before = handler.get_preprocess_fns()
        self.after = handler.get_postprocess_fns()
        self.options = batching.options_of(handler)
        smallest = self.options.get("min_batch_size") or 4
        self.sizer = batching.BatchSizer(smallest, max(smallest, batching.MAX_BATCH_SIZE))

    def run(self, examples: list[Any]) -> list[Any]:
        """The whole job on some examples: results in their order."""
        inputs = examples
        results: list[Any]
        for function in self.before:
            inputs = [function(example) for example in inputs]
        if self.handler.should_skip_batching():
            results = [list(self.handler.run_inference(batch, self.model, None)) for batch in inputs]
        else:
            results = [None] * len(inputs)
            for indices in batching.plan(inputs, self.options, self.sizer.size):
                values = list(self.handler.run_inference([inputs[index] for index in indices], self.model, None))
                check_prediction_count(self.handler, values, len(indices))
                for index, value in zip(indices, values, strict=True):
                    results[index] = self._result(examples[index], value)
        for function in self.after:
            results = [function(result) for result in results]
        return results

    def _result(self, example: Any, value: Any) -> Any:
        """As the engine: results have the caller's example, and post-processing is given bare values as they are."""
        if hasattr(value, "inference") and hasattr(value, "example"):
            return PredictionResult(example, value.inference, value.model_id) if self.before else value
        return value if self.after else PredictionResult(example, value)

    def warm_up(self, seconds: float) -> None:
        began, position = time.perf_counter(), 0
        while True:
            # The chunk is one batch, so its time tells whether a larger one pays.
            chunk = self.examples[position : position + self.sizer.size]
            start = time.perf_counter()
            self.run(chunk)
            end = time.perf_counter()
            self.sizer.record(len(chunk), end - start)
            position = position + len(chunk) if position + len(chunk) < len(self.examples) else 0
            if end - began >= seconds:
                return

    def throughput(self, seconds: float) -> float:
        began, passes = time.perf_counter(), 0
        while True:
            self.run(self.examples)
            passes += 1
            elapsed = time.perf_counter() - began
            if elapsed >= seconds:
                return passes * len(self.examples) / elapsed

    def latency(self, seconds: float) -> LatencyHistogram:
        histogram, began = LatencyHistogram(), time.perf_counter()
        index = 0
        while (start := time.perf_counter()) - began < seconds or index < 3:
            self.run([self.examples[index % len(self.examples)]])
            histogram.record(time.perf_counter() - start)
            index += 1
        return histogram

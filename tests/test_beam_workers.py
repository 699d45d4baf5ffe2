"""Pipelines in Beam's worker processes (`multi_processing`, 2 workers): one deployment, and no element is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("apache_beam")

ROOT = Path(__file__).parents[1]
#: Beam's runner leaves sockets open in its process, so each pipeline has a process of its own, which prints JSON.
HEAD = """
import json, os, signal, sys, threading, time

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.ml.inference import base
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

import kit, kit.beam
from tests import beam_models as models

KEYS = [("a", 2), ("b", 3), ("c", 5)]
OPTIONS = PipelineOptions(
    ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
)


def counted(done, name):
    return sum(found.committed for found in done.metrics().query(MetricsFilter().with_name(name))["counters"])


def serving():
    return json.loads(kit.deployments()[["name", "mode", "pid", "handler"]].to_json(orient="records"))


"""

Run = Callable[[str], Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a script in a process of its own, with a daemon of its own; what it prints last, from JSON."""
    runtime = tempfile.mkdtemp(prefix="kit-rt-", dir="/tmp")
    monkeypatch.setenv("KIT_RUNTIME_DIR", runtime)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(code: str) -> Any:
        script = tmp_path / "pipeline.py"
        script.write_text(HEAD + textwrap.dedent(code))
        done = subprocess.run(
            [sys.executable, script, str(tmp_path)], capture_output=True, text=True, timeout=200, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    yield run
    from kit.daemon import client

    for name in client.names():
        client.stop(name, missing_ok=True)
    until = time.monotonic() + 20
    while os.path.exists(f"{runtime}/daemon.sock") and time.monotonic() < until:
        time.sleep(0.05)
    assert client.names() == []
    shutil.rmtree(runtime)


def test_workers_share_one_deployment_and_every_element_comes_back(run: Run) -> None:
    """1,237 elements, which fill no whole number of windows; two steps with the same handler share as well."""
    found = run("""
        if __name__ == "__main__":
            running = beam.Pipeline(options=OPTIONS)
            step = kit.beam.RunInference(models.AddsOne(), mode="large", processes=2)
            results = running | beam.Create(range(1237)) | "a" >> step | "shuffle" >> beam.Reshuffle()
            results = results | "b" >> kit.beam.RunInference(models.AddsOne(), mode="large", processes=2)
            assert_that(results, equal_to(list(range(2, 1239))))
            done = running.run()
            done.wait_until_finish()
            loads = done.metrics().query(MetricsFilter().with_name("load_model_latency_milli_secs"))["distributions"]
            loads = sum(one.committed.count for one in loads)
            print(json.dumps([serving(), counted(done, "num_inferences"), loads, step.deployment_name]))
    """)
    (deployment,), inferences, loads, name = found
    assert deployment["name"] == name
    assert (deployment["mode"], deployment["handler"]) == ("large", "AddsOne")
    assert inferences == 2 * 1237
    assert loads == 1


def test_batches_are_reported_as_they_were_computed(run: Run, tmp_path: Path) -> None:
    """Each element is in one of them. One that holds elements of both workers is reported by both: its own ones."""
    found = run("""
        def distribution(done, name):
            found = done.metrics().query(MetricsFilter().with_name(name))["distributions"]
            return [[one.committed.count, one.committed.sum, one.committed.max] for one in found]

        if __name__ == "__main__":
            texts = ["a" * (1 + number % 31) for number in range(1237)]
            running = beam.Pipeline(options=OPTIONS)
            handler = models.Notes(sys.argv[1] + "/noted", max_batch_size=16)
            results = running | beam.Create(texts) | kit.beam.RunInference(handler, processes=2)
            assert_that(results, equal_to([text.upper() for text in texts]))
            done = running.run()
            done.wait_until_finish()
            names = "inference_request_batch_size", "inference_request_batch_byte_size"
            print(json.dumps([counted(done, "num_inferences"), *(distribution(done, name) for name in names)]))
    """)
    inferences, ((count, total, largest),), ((_, size_bytes, _),) = found
    noted = [int(line.split()[0]) for line in (tmp_path / "noted").read_text().splitlines()]
    assert (inferences, total, sum(noted)) == (1237, 1237, 1237)
    assert size_bytes == sum(1 + number % 31 for number in range(1237))
    assert largest <= max(noted)
    assert len(noted) <= count < 2 * len(noted)


def test_tensors_failures_and_windows_come_back_where_they_belong(run: Run) -> None:
    """Each result with its own example and of Beam's class, in its window and at its time, in either kind of answer."""
    found = run("""
        import torch
        from apache_beam.transforms import window
        from kit.handlers import PytorchModelHandlerTensor

        class Look(beam.DoFn):
            def process(self, found, at=beam.DoFn.TimestampParam, where=beam.DoFn.WindowParam):
                assert type(found) is base.PredictionResult
                yield int(found.example), int(found.inference), int(at), int(where.start)

        def stamped(number):
            return window.TimestampedValue(torch.tensor([float(number)]), number)

        if __name__ == "__main__":
            torch.save({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}, sys.argv[1] + "/m.pt")
            sizes = {"in_features": 1, "out_features": 1}
            handler = PytorchModelHandlerTensor(sys.argv[1] + "/m.pt", torch.nn.Linear, sizes, max_batch_size=50)
            with beam.Pipeline(options=OPTIONS) as running:
                tensors = running | beam.Create(range(1237)) | beam.Map(stamped)
                for name, windows in (("fixed", window.FixedWindows(100)), ("sliding", window.SlidingWindows(100, 50))):
                    results = tensors | name >> beam.WindowInto(windows)
                    results = results | "run " + name >> kit.beam.RunInference(handler, mode="large", processes=1)
                    results = results | "look " + name >> beam.ParDo(Look())
                    starts = {n: [n // 100 * 100] for n in range(1237)}
                    if name == "sliding":
                        starts = {n: [n // 50 * 50, n // 50 * 50 - 50] for n in range(1237)}
                    expected = [(n, 2 * n + 1, n, start) for n in range(1237) for start in starts[n]]
                    results = results | "global " + name >> beam.WindowInto(window.GlobalWindows())
                    assert_that(results, equal_to(expected), label="check " + name)
            with beam.Pipeline(options=OPTIONS) as running:
                examples = [n if n % 100 else str(n) for n in range(1237)]
                step = kit.beam.RunInference(models.AddsOne(max_batch_size=50)).with_exception_handling()
                good, bad = running | beam.Create(examples) | step
                assert_that(good, equal_to([n + 1 for n in range(1237) if n % 100]), label="good")
                letters = bad.failed_inferences | beam.Map(lambda letter: (letter[0], letter[1][0]))
                assert_that(letters, equal_to([([str(n)], TypeError) for n in range(0, 1237, 100)]), label="bad")
            print(json.dumps(sorted(one["handler"] for one in serving())))
    """)
    assert found == ["AddsOne", "PytorchModelHandlerTensor"]


def test_a_killed_host_and_a_killed_deployment_lose_nothing(run: Run) -> None:
    """The model's host kills itself; then the whole deployment is killed while it computes."""
    found = run("""
        def kill_deployment():
            while not os.path.exists(sys.argv[1] + "/slow"):
                time.sleep(0.02)
            killed.extend(serving())
            os.kill(killed[0]["pid"], signal.SIGKILL)

        if __name__ == "__main__":
            with beam.Pipeline(options=OPTIONS) as running:
                step = kit.beam.RunInference(models.KillsItself(sys.argv[1] + "/died"), mode="large", keep_alive=1)
                results = running | beam.Create(range(643)) | step
                assert_that(results, equal_to(list(range(1, 644))))
            assert os.path.exists(sys.argv[1] + "/died")
            while serving():
                time.sleep(0.1)
            killed = []
            killer = threading.Thread(target=kill_deployment)
            killer.start()
            with beam.Pipeline(options=OPTIONS) as running:
                results = running | beam.Create(range(643)) | kit.beam.RunInference(models.Marks(sys.argv[1] + "/slow"))
                assert_that(results, equal_to(list(range(1, 644))))
            killer.join()
            print(json.dumps([killed, serving()]))
    """)
    (before,), (after,) = found
    assert before["name"] == after["name"]
    assert before["pid"] != after["pid"]


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_workers_share_the_models_of_all_keys(run: Run, tmp_path: Path, mode: str) -> None:
    """Each example is answered by the model of its key, which is loaded once for both workers (not `default`)."""
    found = run(f"""
        if __name__ == "__main__":
            mappings = [kit.KeyModelMapping([key], models.Scaled(factor, sys.argv[1])) for key, factor in KEYS]
            step = kit.beam.RunInference(kit.KeyedModelHandler(mappings), mode={mode!r}, processes=2)
            running = beam.Pipeline(options=OPTIONS)
            results = running | beam.Create([(KEYS[n % 3][0], n) for n in range(1237)]) | step
            assert_that(
                results | beam.Map(lambda pair: (pair[0], *pair[1])),
                equal_to([(KEYS[n % 3][0], n, n * KEYS[n % 3][1], f"times {{KEYS[n % 3][1]}}") for n in range(1237)]),
            )
            done = running.run()
            done.wait_until_finish()
            print(json.dumps([serving(), counted(done, "num_inferences")]))
    """)
    (deployment,), inferences = found
    assert (deployment["mode"], deployment["handler"], inferences) == (mode, "KeyedModelHandler", 1237)
    loads = [len((tmp_path / f"loads-{factor}").read_text().split()) for factor in (2, 3, 5)]
    assert loads == [1, 1, 1] if mode != "default" else max(loads) <= 2


def test_the_step_leaves_torch_out_of_beams_workers(run: Run) -> None:
    """Beam's own step imports it into each of them: 165 MB a process. Its module works all the same."""
    found = run("""
        def look(number):
            from apache_beam.ml.inference import base
            return number, "torch" in sys.modules, base.resource is not None, base.PredictionResult(1, 2).inference

        if __name__ == "__main__":
            with beam.Pipeline(options=OPTIONS) as running:
                step = kit.beam.RunInference(models.AddsOne(), mode="large")
                found = running | beam.Create(range(57)) | step | beam.Map(look)
                assert_that(found, equal_to([(number + 1, False, True, 2) for number in range(57)]))
            print(json.dumps(True))
    """)
    assert found


def test_pipelines_ask_a_named_deployment_and_leave_it_as_it_is(run: Run) -> None:
    found = run("""
        if __name__ == "__main__":
            with kit.deploy(models.AddsOne(), processes=1, name="mine") as deployment:
                with beam.Pipeline(options=OPTIONS) as running:
                    results = running | beam.Create(range(101)) | deployment.to_beam()
                    inferences = results | beam.Map(lambda result: result.inference)
                    assert_that(inferences, equal_to(list(range(1, 102))))
                shown = repr(deployment.to_beam())
                print(json.dumps([serving(), deployment.counters["answered"], shown]))
    """)
    (deployment,), answered, shown = found
    assert (deployment["name"], answered) == ("mine", 101)
    words = "AddsOne: mode 'default', 1 process × 1 thread, 1 copy of the model; deployment 'mine'"
    assert shown == f"<kit.beam.RunInference of {words}>"


def test_the_kits_handlers_in_beams_own_workers(run: Run) -> None:
    """Beam's RunInference, our handlers, unmodified; also one that all workers share."""
    found = run("""
        import torch
        from kit.handlers import PytorchModelHandlerTensor

        if __name__ == "__main__":
            torch.save({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}, sys.argv[1] + "/m.pt")
            settings = {"in_features": 1, "out_features": 1}
            answers = []
            for large in (False, True):
                handler = PytorchModelHandlerTensor(sys.argv[1] + "/m.pt", torch.nn.Linear, settings, large_model=large)
                handler = handler.with_preprocess_fn(lambda number: torch.tensor([float(number)]))
                handler = handler.with_postprocess_fn(lambda result: int(result.inference.item()))
                running = beam.Pipeline(options=OPTIONS)
                assert_that(
                    running | beam.Create(range(57)) | base.RunInference(handler),
                    equal_to([2 * number + 1 for number in range(57)]),
                )
                done = running.run()
                done.wait_until_finish()
                answers.append(counted(done, "num_inferences"))
            print(json.dumps(answers))
            sys.stdout.flush()
            os._exit(0)  # Beam's server of the shared model doesn't end by itself
    """)
    assert found == [57, 57]

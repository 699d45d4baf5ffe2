"""Named deployments are shared by kernels, outlive them, and have the whole surface of a deployment."""

from __future__ import annotations

import asyncio
import functools
import importlib
import itertools
import os
import statistics
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import kit
from kit import RunInference, errors
from kit.daemon import client, sameness
from kit.machine import cpu_count
from tests.daemon_kernels import DOUBLE, Kernel, wait_for
from tests.models import Doubling, clients


class Factor(kit.ModelHandler):
    """Multiplies by a factor, and by inference_args["again"]."""

    def __init__(self, factor: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def load_model(self) -> int:
        print("loading")
        return self.factor

    def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
        return [example * model * (inference_args or {}).get("again", 1) for example in batch]

    def validate_inference_args(self, inference_args: Any) -> None:
        if set(inference_args) - {"again"}:
            raise errors.InvalidSetting(f"unknown: {inference_args}")


def test_a_class_of_one_kernel_serves_another(runtime: Path) -> None:
    with Kernel() as first, Kernel() as second:
        first.run(DOUBLE + "d = kit.deploy(Double(), name='double', processes=1)")
        found = second.run(
            "import kit; d = kit.connect('double')", "[p.inference for p in [1, 2, 3] | kit.RunInference(d)]"
        )
        assert found == [2, 4, 6]
        assert "Double" in second.run("", "repr(d)")


def test_a_deployment_outlives_the_kernel_that_served_it(runtime: Path) -> None:
    with Kernel() as first:
        pid = first.run(DOUBLE + "d = kit.deploy(Double(), name='double', processes=1)", "int(d.stats().pid[0])")
    deployment = kit.connect("double")
    assert deployment.predict([5])[0].inference == 10
    assert deployment.stats()["pid"][0] == pid
    assert list(kit.deployments()["name"]) == ["double"]
    deployment.close()


def test_the_whole_surface_works_from_another_process(runtime: Path) -> None:
    with kit.deploy(Factor(), name="factor", processes=1, memory_budget="1GiB") as deployment:
        assert isinstance(deployment, kit.Deployment)
        assert deployment.predict([1, 2]) == [(1, 2, None), (2, 4, None)]
        assert deployment.submit([3]).result(30)[0].inference == 6
        assert asyncio.run(deployment.apredict([4]))[0].inference == 8
        assert deployment.predict([]) == []
        assert deployment.predict([1], inference_args={"again": 10})[0].inference == 20
        assert [p.inference for p in iter(range(100)) | RunInference(deployment)] == list(range(0, 200, 2))
        frame = (range(5) | RunInference(deployment)).to_frame()
        assert list(frame["inference"]) == [0, 2, 4, 6, 8]
        assert (deployment.mode, deployment.settings.processes) == ("default", 1)
        assert deployment.settings.memory_budget == 1 << 30
        deployment.switch("large", processes=2)
        assert (deployment.mode, deployment.settings.processes) == ("large", 2)
        assert not deployment.cancel_switch()
        deployment.update_model(Factor(7))
        assert deployment.predict([2])[0].inference == 14
        assert set(deployment.stats()["role"]) == {"worker", "host", "forkserver"}
        assert "switch" in " ".join(deployment.history["events"])
        assert list(deployment.models()["state"]) == ["resident"]
        assert deployment.counters["answered"] > 100
        wait_for(lambda: "loading" in deployment.logs(), "the worker's print")
        assert deployment.logs(0) == ""
        assert deployment.handler.type_name == "Factor"
        deployment.switch(batching={"max_batch_size": 16}, memory_budget="none")
        assert deployment.settings.memory_budget is None
        assert deployment.settings_for("medium", model_copies=3).model_copies == 3
        snapshot = deployment.snapshot()
        assert (snapshot.handler_name, snapshot.settings.mode, snapshot.batching) == (
            "Factor",
            "large",
            {"max_batch_size": 16},
        )
        assert {row["role"] for row in snapshot.processes} >= {"worker", "host"}
        assert any(event.kind == "switch" for event in snapshot.events)
        assert snapshot.latest["result"] is not None
        killed = deployment.kill("worker")
        assert killed in {row["pid"] for row in snapshot.processes}
        assert deployment.predict([2])[0].inference == 14
        ended: list[int] = []
        deployment.at_close(lambda: ended.append(1))
        bundle = deployment._repr_mimebundle_()
        assert "Factor" in bundle["text/html"]
        assert "large" in bundle["text/plain"]
    assert deployment.closed
    assert ended == [1]
    with pytest.raises(errors.DeploymentClosed, match=r"kit\.connect"):
        deployment.predict([1])
    assert kit.connect("factor").predict([1])[0].inference == 7


def test_arrays_tensors_tables_and_text_travel(runtime: Path) -> None:
    import torch

    handler = kit.ModelHandler.from_callable(lambda: None, lambda batch, model: list(batch))
    with kit.deploy(handler, name="same", processes=1) as deployment:
        block = np.random.default_rng(0).random((300, 500), dtype=np.float32)
        found = deployment.predict(block)
        assert np.array_equal(np.stack([p.inference for p in found]), block)
        assert found[7].example is not None
        tensors = torch.randn(40, 3)
        assert torch.equal(torch.stack([p.inference for p in tensors | RunInference(deployment)]), tensors)
        large = np.arange(40_000_000, dtype=np.float32)  # larger than the ring
        assert np.array_equal(deployment.predict([large])[0].inference, large)
        mixed = ["text", 1.5, None, {"a": [1, (2, b"x")]}, np.arange(3)]
        assert [str(p.inference) for p in deployment.predict(mixed)] == [str(value) for value in mixed]
        frame = pd.DataFrame({"a": range(20), "b": list("abcdefghijklmnopqrst")})
        rows = [p.inference for p in frame | RunInference(deployment)]
        pd.testing.assert_frame_equal(pd.concat(rows), frame)
        with pytest.raises(errors.UnsupportedType, match=r"builtins\.set"):
            deployment.predict([{1}])
        assert deployment.predict(["still there"])[0].inference == "still there"


def test_predictions_are_made_when_they_are_read_where_that_is_asked_for(runtime: Path) -> None:
    """As `predict` gives them: tensors in one block, plain lists, and batches that are answered out of order."""
    import torch

    rows = [torch.full((2,), float(number)) for number in range(150)]
    texts = ["x" * (number * 37 % 150) for number in range(150)]
    with kit.deploy(Factor(), name="factor", processes=1) as deployment:
        made = list(deployment._submit(rows, None, unmade=True).result().made(tuple, list))
        for one, expected in zip(made, deployment.predict(rows), strict=True):
            assert one[0] is expected.example
            assert torch.equal(one[1], expected.inference)
        unmade = deployment._submit(list(range(150)), None, unmade=True).result()
        assert len(unmade) == 150
        assert list(unmade.made(tuple, list)) == [tuple(one) for one in deployment.predict(range(150))]
    with kit.deploy(Factor(batch_length_fn=len, max_batch_size=8), name="sorted", processes=1) as deployment:
        found = deployment._submit(texts, None, unmade=True).result()
        assert found == deployment.predict(texts)


def test_a_million_elements_come_back_in_order(runtime: Path) -> None:
    with kit.deploy(Doubling(), name="double") as deployment:
        progress: list[int] = []
        found = deployment.submit(list(range(200_000)), on_progress=progress.append).result(120)
        assert [p.inference for p in found] == list(range(0, 400_000, 2))
        assert sum(progress) == 200_000
        assert len(progress) > 10


def test_predictions_of_other_types_need_the_owners_leave(runtime: Path) -> None:
    handler = kit.ModelHandler.from_callable(lambda: None, lambda batch, model: [{x} for x in batch])
    with kit.deploy(handler, name="sets", processes=1) as deployment:
        with pytest.raises(errors.UnsupportedType, match="allow_pickle"):
            deployment.predict([1])
        deployment.stop()
    with kit.deploy(handler, name="sets", processes=1, allow_pickle=True) as deployment:
        assert deployment.predict([1, 2])[1].inference == {2}
        assert kit.connect("sets").predict([4])[0].inference == {4}


def test_failures_come_back_in_their_places(runtime: Path) -> None:
    with kit.deploy(Factor(), name="factor", processes=1) as deployment:
        run = RunInference(deployment).with_exception_handling()
        found = [1, {}, 3, None] | run
        assert [type(f).__name__ for f in found] == ["PredictionResult", "Failure", "PredictionResult", "Failure"]
        assert found[1].example == {}
        assert "TypeError" in str(found[1].error)
        with pytest.raises(errors.InferenceFailed, match="TypeError") as caught:
            deployment.predict([{}])
        assert "run_inference" in caught.value.remote_traceback
        with pytest.raises(errors.InvalidSetting, match="unknown"):
            deployment.predict([1], inference_args={"other": 1})
        with pytest.raises(errors.InvalidSetting, match="mode"):
            deployment.switch("huge")
        with pytest.raises(errors.InvalidSetting, match="deadline"):
            deployment.submit([1], -1)
        with pytest.raises(errors.UnsupportedInput):
            deployment.predict("text")


def test_the_same_handler_attaches_and_another_one_is_told(runtime: Path) -> None:
    first = kit.deploy(Factor(2), name="factor", processes=1)
    assert not first.attached
    again = kit.deploy(Factor(2), name="factor", processes=1)
    assert again.attached
    with pytest.raises(errors.NameTaken, match="--replace"):
        kit.deploy(Factor(3), name="factor")
    assert first.predict([1])[0].inference == 2
    replaced = kit.deploy(Factor(3), name="factor", replace=True)
    assert not replaced.attached
    assert [d.predict([1])[0].inference for d in (first, again, replaced)] == [3, 3, 3]
    assert "update" in " ".join(first.history["events"])
    assert kit.deploy(Factor(3), name="factor").attached


def test_settings_that_attaching_leaves_alone_are_warned_of(runtime: Path) -> None:
    kit.deploy(Factor(2), name="factor", processes=1)
    with pytest.warns(UserWarning, match=r"'factor' was served already\. Its settings stay") as told:
        again = kit.deploy(Factor(2), name="factor", mode="large", processes=2, keep_alive="30m")
    [warning] = told
    assert warning.filename == __file__
    for words in ("mode 'default', 1 × 1 workers", "switch(mode='large', processes=2)", "It ends only when it is"):
        assert words in str(warning.message)
    assert again.settings.mode == "default"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kit.deploy(Factor(2), name="factor", processes=1, mode="default")
        replaced = kit.deploy(Factor(2), name="factor", mode="large", processes=2, keep_alive="30m", replace=True)
    assert (replaced.replaced, replaced.mode, replaced.settings.processes) == (True, "large", 2)
    assert replaced.keep_alive_s == 1800
    with pytest.raises(errors.InvalidSetting, match="go with mode"):
        kit.deploy(Factor(3), name="factor", mode="large", model_copies=3, replace=True)
    assert replaced.predict([1])[0].inference == 2


def test_replacing_fails_no_request(runtime: Path) -> None:
    deployment = kit.deploy(Factor(1), name="factor", processes=1)
    with clients(deployment, lambda draw: [draw.randrange(1, 99)], lambda asked, got: True, count=3) as (
        wrong,
        answered,
    ):
        for factor in (2, 3):
            kit.deploy(Factor(factor), name="factor", replace=True)
        wait_for(lambda: min(answered) > 20, "answers")
    assert wrong == []
    assert deployment.predict([1])[0].inference == 3


def test_two_kernels_that_switch_at_once_both_see_the_result(runtime: Path) -> None:
    first = kit.deploy(Doubling(), name="double", processes=1)
    second = kit.connect("double")
    threads = [
        threading.Thread(target=first.switch, args=("large",)),
        threading.Thread(target=second.switch, args=("medium",)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert first.mode == second.mode
    assert first.mode in ("large", "medium")
    events = " ".join(first.history["events"])
    assert events.count("switch:") == 2
    assert second.predict([4])[0].inference == 8


def test_requests_of_several_kernels_share_a_batch(runtime: Path) -> None:
    handler = kit.ModelHandler.from_callable(
        lambda: None, lambda batch, model: [len(batch)] * len(batch), max_batch_size=64
    )
    deployment = kit.deploy(handler, name="sizes", processes=1)
    others = [kit.connect("sizes") for _ in range(3)]
    seen = set()
    for _ in range(50):
        futures = [other.submit([number]) for other in others for number in range(8)]
        seen |= {future.result(30)[0].inference for future in futures}
        if max(seen) > 1:
            break
    assert max(seen) > 1
    # Four connections of one kernel, which is listed once.
    [row] = deployment.clients().to_dict("records")
    assert row["connections"] == 4
    assert row["requests"] >= 24
    assert list(kit.deployments()["kernels"]) == [1]


class Counted(kit.ModelHandler):
    """Answers with how many examples were computed before, and how many in the same batch; some milliseconds each."""

    def load_model(self) -> list[int]:
        return [0]

    def run_inference(self, batch: Any, model: list[int], inference_args: Any = None) -> Any:
        time.sleep(0.005 * len(batch))
        model[0] += len(batch)
        return [(model[0], len(batch))] * len(batch)


@pytest.mark.parametrize(("mode", "processes"), [("default", 1), ("large", 2)])
def test_a_job_of_a_million_lets_a_single_request_in_after_one_example(
    runtime: Path, mode: str, processes: int
) -> None:
    with kit.deploy(Counted(max_batch_size=8), name="counted", mode=mode, processes=processes) as deployment:
        deployment.predict(list(range(8)))  # now it is known what an example costs
        job = kit.connect("counted").submit(list(range(1_000_000)))
        found = [deployment.predict([number])[0].inference[0] for number in range(40)]
        job.cancel()
        between = sorted(after - before for before, after in itertools.pairwise(found))
        # The request itself, and one of the job's that was begun when the one before was answered.
        assert statistics.median(between) <= 2, between


class When(kit.ModelHandler):
    """Answers with when the batch was computed, nanoseconds, by which process, and how many were in it."""

    def load_model(self) -> None:
        return None

    def run_inference(self, batch: Any, model: None, inference_args: Any = None) -> Any:
        began = time.monotonic_ns()
        time.sleep(0.002 * len(batch))
        return [(began, time.monotonic_ns(), os.getpid(), len(batch))] * len(batch)


@pytest.mark.parametrize("mode", ["default", "shared"])
def test_a_job_leaves_a_worker_to_other_kernels_and_keeps_its_batches(runtime: Path, mode: str) -> None:
    with kit.deploy(When(max_batch_size=16), name="when", mode=mode, processes=2) as deployment:
        deployment.predict([0])
        job = kit.connect("when").submit(list(range(1600)))
        singles = []
        while not job.done():
            singles.append(deployment.predict([0])[0].inference)
        batches = sorted({prediction.inference for prediction in job.result()})
    assert len(singles) > 20
    assert all(end <= begin for (_, end, *_), (begin, *_) in itertools.pairwise(batches)), "two at once of the job"
    if cpu_count() > 1:  # with one batch at once the job has pieces like the others' requests
        assert statistics.median(size for *_, size in batches) == 16


def test_a_job_that_is_alone_has_all_workers(runtime: Path) -> None:
    with kit.deploy(When(max_batch_size=16), name="when", processes=2) as deployment:
        batches = {prediction.inference for prediction in deployment.predict(list(range(1600)))}
        assert len({pid for *_, pid, _ in batches}) == 2


def test_kernels_with_requests_of_one_size_keep_whole_batches(runtime: Path) -> None:
    with kit.deploy(Counted(max_batch_size=16), name="counted", processes=1) as deployment:
        others = [kit.connect("counted") for _ in range(3)]
        sizes = set()
        for _ in range(5):
            futures = [other.submit(list(range(16))) for other in (deployment, *others)]
            sizes |= {prediction.inference[1] for future in futures for prediction in future.result(60)}
        assert sizes == {16}


def test_a_kernel_with_a_thousand_requests_lets_one_of_another_in(runtime: Path) -> None:
    with kit.deploy(Counted(max_batch_size=1), name="counted", processes=1) as deployment:
        many = kit.connect("counted")
        many.predict([0])
        flood = [many.submit([number]) for number in range(1000)]
        before = sum(future.done() for future in flood)  # many, where they are computed as they come
        assert deployment.predict([0])[0].inference[0] < before + 200
        for future in flood:
            future.cancel()


def test_planned_batches_that_are_cut_for_others_are_answered_in_order(runtime: Path) -> None:
    handler = kit.ModelHandler.from_callable(
        lambda: None,
        lambda batch, model: [time.sleep(0.001 * len(batch)) or len(text) for text in batch],
        batch_length_fn=len,
        max_batch_size=32,
    )
    texts = ["x" * (number % 50 + 1) for number in range(3000)]
    with kit.deploy(handler, name="lengths", processes=1) as deployment:
        deployment.predict(texts[:32])
        job = kit.connect("lengths").submit(texts)

        def done() -> bool:
            assert deployment.predict(["abc"])[0].inference == 3
            return job.done()

        wait_for(done, "the job is done beside another kernel's requests", 60)
        assert [prediction.inference for prediction in job.result()] == list(map(len, texts))


def test_each_kernel_is_listed_with_its_rate(runtime: Path) -> None:
    deployment = kit.deploy(Doubling(), name="double", processes=1)
    with Kernel(JPY_SESSION_NAME="/home/x/lesson.ipynb") as kernel:
        kernel.run("import kit; d = kit.connect('double'); d.predict([1, 2]); d.predict([3])")
        rows = deployment.clients().set_index("notebook")
        assert rows.loc["lesson.ipynb", "pid"] == kernel.process.pid
        assert rows.loc["lesson.ipynb", "requests"] == 2
        assert rows.loc["lesson.ipynb", "examples"] == 3
        wait_for(lambda: deployment.clients().set_index("notebook").loc["lesson.ipynb", "elements_per_s"] > 0, "a rate")
    wait_for(lambda: len(deployment.clients()) == 1, "the kernel is forgotten")


def test_a_handler_of_a_module_beside_the_notebook_is_found(runtime: Path, tmp_path: Path) -> None:
    for folder, factor in (("one", 2), ("two", 3)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mymodel.py").write_text(DOUBLE.replace("factor = 2", f"factor = {factor}"))
    results = []
    with Kernel() as first, Kernel() as second:
        for kernel, folder in ((first, "one"), (second, "two")):
            code = (
                f"import os, sys; os.chdir({str(tmp_path / folder)!r}); sys.path.insert(0, ''); import kit, mymodel\n"
            )
            results.append(
                kernel.run(
                    f"{code}d = kit.deploy(mymodel.Double(), name={folder!r}, processes=1)",
                    "d.predict([1])[0].inference",
                )
            )
    assert results == [2, 3]


def test_a_deployment_that_cannot_load_leaves_no_name_behind(runtime: Path) -> None:
    def fail() -> None:
        raise ValueError("no such weights")

    with pytest.raises(errors.ModelLoadFailed, match="no such weights"):
        kit.deploy(kit.ModelHandler.from_callable(fail, Doubling().run_inference), name="broken", processes=1)
    wait_for(lambda: client.names() == [], "the name is free")
    assert kit.deploy(Doubling(), name="broken", processes=1).predict([1])[0].inference == 2


def test_bad_names_and_settings_are_refused_before_anything_starts(runtime: Path) -> None:
    for name in ("", "a/b", "../x", "a" * 65, "-x", 3):
        with pytest.raises(errors.InvalidSetting, match="name="):
            kit.deploy(Doubling(), name=name)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidSetting, match="mode"):
        kit.deploy(Doubling(), name="a", mode="huge")
    for keep_alive in ("soon", 0, -1, True):
        with pytest.raises(errors.InvalidSetting, match="keep_alive"):
            kit.deploy(Doubling(), name="a", keep_alive=keep_alive)
    with pytest.raises(errors.InvalidSetting, match="named deployments"):
        kit.deploy(Doubling(), keep_alive="30m")
    with pytest.raises(errors.UnknownDeployment, match="there is none"):
        kit.connect("nobody")
    assert len(kit.deployments()) == 0
    assert list(runtime.iterdir()) == []


def test_an_unknown_name_lists_the_known_ones(runtime: Path) -> None:
    kit.deploy(Doubling(), name="double", processes=1)
    with pytest.raises(errors.UnknownDeployment, match="'double'"):
        kit.connect("duoble")
    with pytest.raises(errors.UnknownDeployment, match="'double'"):
        client.stop("duoble")


def test_the_digest_is_of_what_a_handler_does() -> None:
    def handler(source: str, expression: str) -> str:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, f"cell {hash(source)}", "exec"), space)
        return sameness.digest(eval(expression, space))

    base = handler(DOUBLE, "Double()")
    assert handler("\n\n# a comment\n" + DOUBLE, "Double()") == base
    assert handler(DOUBLE.replace("factor = 2", "factor = 3"), "Double()") != base
    assert handler(DOUBLE.replace("x * model", "x + model"), "Double()") != base
    assert handler(DOUBLE.replace("[x * model for", "[scale(x) for") + "def scale(x): return x", "Double()") != handler(
        DOUBLE.replace("[x * model for", "[scale(x) for") + "def scale(x): return -x", "Double()"
    )
    assert sameness.digest(Factor(2)) == sameness.digest(Factor(2))
    assert sameness.digest(Factor(2)) != sameness.digest(Factor(3))
    arrays = [np.arange(5), np.arange(5), np.arange(1, 6)]
    digests = [
        sameness.digest(kit.ModelHandler.from_callable(lambda: None, lambda batch, model: list(batch)))
        for _ in range(2)
    ]
    assert digests[0] == digests[1]
    values = []
    for array in arrays:
        made = Factor(2)
        made.weights = array  # type: ignore[attr-defined]
        values.append(sameness.digest(made))
    assert values[0] == values[1] != values[2]


def test_the_digest_tells_partial_functions_apart() -> None:
    def digest(power: int) -> str:
        return sameness.digest(kit.ModelHandler.from_callable(int, functools.partial(pow, power)))

    assert digest(2) == digest(2) != digest(3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pd.DataFrame({'q': [1.0]})", "pd.DataFrame({'q': [2.0]})"),
        ("pd.DataFrame({'q': [1.0]})", "pd.DataFrame({'r': [1.0]})"),
        ("{'a': pd.DataFrame({'q': ['x']})}", "{'a': pd.DataFrame({'q': ['y']})}"),
        ("pd.Timestamp('2020')", "pd.Timestamp('2021')"),
        ("np.ma.array([1], mask=[0])", "np.ma.array([1], mask=[1])"),
        ("re.compile('a')", "re.compile('b')"),
        ("collections.deque([1])", "collections.deque([2])"),
        ("decimal.Decimal(1)", "decimal.Decimal(2)"),
    ],
)
def test_the_digest_looks_into_what_a_handler_holds(one: str, other: str) -> None:
    space = {name: importlib.import_module(name) for name in ("re", "collections", "decimal")}
    space |= {"np": np, "pd": importlib.import_module("pandas")}

    def digest(source: str) -> str:
        made = Factor(2)
        made.table = eval(source, space)  # type: ignore[attr-defined]
        return sameness.digest(made)

    assert digest(one) == digest(one) != digest(other)


def test_the_digest_is_the_same_in_another_process(runtime: Path) -> None:
    code = DOUBLE + "from kit.daemon.sameness import digest"
    with Kernel(PYTHONHASHSEED="1") as first, Kernel(PYTHONHASHSEED="2") as second:
        assert first.run(code, "digest(Double())") == second.run(code, "digest(Double())")


def test_the_panel_watches_a_named_deployment(runtime: Path) -> None:
    from widgets import ServingPanel

    with kit.deploy(Doubling(), name="double", processes=1) as deployment:
        deployment.predict([1])
        panel = ServingPanel(deployment)
        kit.connect("double").switch("large")
        wait_for(lambda: deployment.snapshot().settings.mode == "large", "the switch is seen")
        panel.close()
    assert client.names() == ["double"]


class Chatty(kit.ModelHandler):
    """Prints what it does."""

    def load_model(self) -> None:
        print("loads")

    def run_inference(self, batch: Any, model: None, inference_args: Any = None) -> Any:
        print(f"computes {batch}")
        return batch


def test_prints_reach_every_connected_kernel(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ""

    def heard(text: str) -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return text in said

    with kit.deploy(Chatty(), name="chatty", processes=1) as deployment:
        pid = deployment.snapshot().processes[0]["pid"]
        wait_for(lambda: heard(f"[worker {pid}] loads"), "what the model prints when it loads")
        with Kernel() as other:
            other.run("import kit; kit.connect('chatty').predict([7])")
            # This kernel asks nothing meanwhile.
            wait_for(lambda: heard(f"[worker {pid}] computes [7]"), "what another kernel's request prints")
        for number in range(200):
            deployment.predict([number])
        wait_for(lambda: heard("computes [199]"), "what its own requests print")
        assert said.count("computes [3]\n") == 1
        again = kit.connect("chatty")
        again.predict([200])
        again.predict([201])
        wait_for(lambda: heard("computes [201]\n"), "what is printed for a kernel with two connections")
        assert said.count("computes [200]\n") == 1
        again.close()
        deployment.switch("large")
        wait_for(lambda: heard("[host "), "a new process is heard, too")


def test_the_panel_draws_each_connected_kernel(runtime: Path) -> None:
    from widgets import ServingPanel

    with (
        kit.deploy(Doubling(), name="double", processes=1) as deployment,
        Kernel(JPY_SESSION_NAME="a/b.ipynb") as other,
    ):
        panel = ServingPanel(deployment)
        other.run("import kit; d = kit.connect('double')")
        other.send("while True: d.predict([1])")
        pid = other.process.pid
        wait_for(lambda: deployment.clients().set_index("pid").requests_per_s.get(pid), "the kernel asks")
        panel.refresh().result(30)
        picture = panel._view.topology.value
        assert picture.count('class="kit-kernel"') == 2
        assert f'data-pid="{pid}"' in picture
        told = next(line for line in panel.text().splitlines() if f"pid {pid}," in line)
        assert told.split(":")[0].strip() == "b.ipynb"
        assert " 0 requests/s" not in told
        other.kill()
        wait_for(lambda: panel._view.topology.value.count('class="kit-kernel"') == 1, "the kernel is taken off")
        panel.close()


def test_a_panel_that_is_shown_ends_with_its_deployment(runtime: Path) -> None:
    from widgets import ServingPanel

    deployment = kit.deploy(Doubling(), name="double", processes=1)
    deployment.predict([1])
    panel = ServingPanel(deployment)
    panel._ipython_display_()
    client.stop("double")
    wait_for(lambda: panel.closed and "(closed)" in panel.text(), "the panel closes, and says so")
    assert deployment.snapshot().counters["answered"] == 1
    deployment.close()


def test_models_by_key_answer_in_the_daemon_as_they_do_here(runtime: Path) -> None:
    handler = kit.KeyedModelHandler([kit.KeyModelMapping([key], Doubling()) for key in "ab"])
    with kit.deploy(handler, name="keyed", processes=1) as deployment:
        examples = [("b", 1), ("a", 2), ("b", 3)]
        assert deployment.predict(examples) == examples | RunInference(handler)
        assert sorted(deployment.models()["state"]) == ["resident", "resident"]
        failures = ([*examples, ("z", 1)] | RunInference(deployment).with_exception_handling()).failures
        assert [type(failure.error) for failure in failures] == [errors.UnknownKey]

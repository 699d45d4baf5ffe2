"""Bad input: one clear error of our own with the numbers in it, nothing hanging, nothing orphaned.

That nothing is orphaned is checked after every test by the fixture in conftest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import kit
from kit import ModelHandler, RunInference, errors
from kit.daemon.sameness import digest
from kit.engine.packing import pack
from kit.engine.topology import Topology
from kit.handlers import HuggingFaceModelHandlerTensor
from kit.settings import MODES


class Double(ModelHandler):
    def load_model(self) -> Any:
        return np.array([2])

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [example * int(model[0]) for example in batch]


class Heavy(Double):
    """Weighs 8 MB and says so only once it is loaded."""

    def load_model(self) -> Any:
        return np.full(1_000_000, 2)


class Announced(Heavy):
    """Weighs 8 MB and says so before; loading it is an error."""

    def load_model(self) -> Any:
        raise AssertionError("loaded although it doesn't fit")

    def estimate_model_bytes(self) -> int:
        return 8_000_000


class LoadsAfter(ModelHandler):
    """Fails to load, in a way of choice."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def load_model(self) -> Any:
        if self.way == "raise":
            raise RuntimeError("the weights of 7 layers are missing")
        if self.way == "exit":
            raise SystemExit(3)
        if self.way == "missing file":
            return open("/nowhere/model.bin", "rb")
        os.kill(os.getpid(), signal.SIGKILL if self.way == "kill" else signal.SIGSEGV)
        raise AssertionError("survived")

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return batch


@pytest.fixture(scope="module", params=["default", "large"])
def double(request: pytest.FixtureRequest) -> Any:
    with kit.deploy(Double(), mode=request.param) as deployment:
        yield deployment


def serves(deployment: Any) -> bool:
    return [p.inference for p in deployment.predict([1, 2])] == [2, 4]


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "huge"}, "mode='huge'.*'default', 'medium', 'large', 'shared'"),
        ({"processes": 0}, "processes=0.*at least 1"),
        ({"threads": 0}, "threads=0"),
        ({"mode": "medium", "model_copies": 0}, "model_copies=0"),
        ({"memory_budget": "two gigs"}, "memory_budget='two gigs'.*2GiB"),
        ({"memory_budget": 0}, "memory_budget=0"),
        ({"name": "my model"}, "name='my model'"),
        ({"keep_alive": 5}, "keep_alive=5"),
    ],
)
def test_deploy_refuses_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=words):
        kit.deploy(Announced(), **settings)


@pytest.mark.parametrize("settings", [{"mode": "huge"}, {"processes": 0}, {"memory_budget": "x"}, {"threads": -1}])
def test_switch_refuses_them_and_serves_on(double: Any, settings: dict[str, Any]) -> None:
    mode = double.mode
    with pytest.raises(errors.InvalidSetting):
        double.switch(**settings)
    assert double.mode == mode
    assert serves(double)


def test_threads_with_a_handler_that_is_not_thread_safe() -> None:
    class Touchy(Double):
        thread_safe = False

    with pytest.raises(errors.InvalidSetting, match=r"threads=2: Touchy says thread_safe = False.*threads=1"):
        kit.deploy(Touchy(), threads=2)


@pytest.mark.parametrize("bad", [Double, 3, None, "model.pt", lambda batch: batch])
def test_what_is_no_handler_is_refused(bad: Any) -> None:
    with pytest.raises(errors.InvalidSetting):
        kit.deploy(bad)


@pytest.mark.parametrize("take", [kit.deploy, RunInference, lambda given: kit.compare(given, [1])])
def test_run_inference_in_the_place_of_a_handler_is_told_to_give_the_handler(take: Any) -> None:
    with pytest.raises(errors.InvalidSetting, match=r"this is a RunInference, .* pass the handler itself"):
        take(RunInference(Double()))


def test_a_class_with_the_methods_but_not_derived_is_told_what_to_write() -> None:
    class Plain:
        def load_model(self) -> Any:
            return 1

        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            return batch

    with pytest.raises(errors.InvalidSetting, match=r"class Plain\(kit.ModelHandler\)"):
        kit.deploy(Plain())


# ---- memory budget -------------------------------------------------------------------------------


def test_a_size_known_before_is_refused_before_loading() -> None:
    with pytest.raises(errors.BudgetExceeded) as caught:
        kit.deploy(Announced(), processes=3, memory_budget="20MB")
    words = str(caught.value)
    assert "3 × 8 MB = 24 MB" in words
    assert "20 MB" in words
    assert "can only fit 2" in words
    assert "'default' with processes=2" in words
    assert "'shared'" in words


@pytest.mark.parametrize("mode", ["default", "medium"])
def test_a_size_known_after_the_first_copy_is_refused_then(mode: str) -> None:
    with pytest.raises(errors.BudgetExceeded, match="can only fit 1"):
        kit.deploy(Heavy(), mode=mode, memory_budget="10MB")


@pytest.mark.parametrize("mode", ["large", "shared"])
def test_one_copy_too_large_is_refused(mode: str) -> None:
    with pytest.raises(errors.BudgetExceeded, match="No mode fits"):
        kit.deploy(Heavy(), mode=mode, memory_budget="1MB")


def test_a_switch_over_the_budget_leaves_the_old_mode_serving() -> None:
    with kit.deploy(Heavy(), mode="large", memory_budget="10MB") as deployment:
        with pytest.raises(errors.BudgetExceeded, match="2 × 8 MB"):
            deployment.switch("default")
        assert deployment.mode == "large"
        assert serves(deployment)
        with pytest.raises(errors.BudgetExceeded):
            deployment.switch(memory_budget="1MB")
        assert deployment.settings.memory_budget == 10_000_000
        assert serves(deployment)


class Leaves(Double):
    """Calls sys.exit on a 2, or when it loads."""

    def __init__(self, loads: bool = True) -> None:
        super().__init__()
        self.loads = loads

    def load_model(self) -> Any:
        return np.array([2]) if self.loads else sys.exit(2)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return sys.exit(2) if 2 in batch else super().run_inference(batch, model)


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("by_key", [False, True])
def test_sys_exit_in_a_handler_fails_the_example_and_ends_no_process(mode: str | None, by_key: bool) -> None:
    handler: Any = kit.KeyedModelHandler([kit.KeyModelMapping(["a"], Leaves())]) if by_key else Leaves()
    examples = [("a", x) for x in (1, 2, 3)] if by_key else [1, 2, 3]
    with contextlib.ExitStack() as stack:
        served = handler if mode is None else stack.enter_context(kit.deploy(handler, mode=mode, processes=1))
        with pytest.raises(errors.InferenceFailed, match="SystemExit: 2"):
            examples | RunInference(served)
        found = list(examples | RunInference(served).with_exception_handling())
        assert "SystemExit: 2" in str(found[1].error)
        last = found[2][1] if by_key else found[2]
        assert last.inference == 6
        if mode is not None:
            assert "death" not in " ".join(served.history["events"])


@pytest.mark.parametrize("mode", [None, *MODES])
def test_sys_exit_in_load_model_is_a_failed_load(mode: str | None) -> None:
    for handler in (Leaves(loads=False), kit.KeyedModelHandler([kit.KeyModelMapping(["a"], Leaves(loads=False))])):
        examples = [("a", 1)] if isinstance(handler, kit.KeyedModelHandler) else [1]
        with pytest.raises(errors.ModelLoadFailed, match="SystemExit: 2"):
            if mode is None:
                examples | RunInference(handler)
            else:
                with kit.deploy(handler, mode=mode, processes=1) as deployment:
                    examples | RunInference(deployment)


# ---- handlers and weights ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_process_that_ends_before_the_others_are_started_is_noticed(mode: str, monkeypatch: Any) -> None:
    """Nobody waited for a host that had failed, and had been forgotten, by the time that its workers were there."""
    spawn = Topology._spawn_worker

    def slowly(*args: Any, **options: Any) -> Any:
        process = spawn(*args, **options)
        time.sleep(1)
        return process

    monkeypatch.setattr(Topology, "_spawn_worker", slowly)
    handler = ModelHandler.from_callable(lambda: 1 / 0, lambda batch, model: list(batch))
    with pytest.raises(errors.ModelLoadFailed, match="ZeroDivisionError"):
        kit.deploy(handler, mode=mode, processes=2)


@pytest.mark.parametrize("mode", MODES)
def test_an_error_in_load_model_comes_with_the_workers_traceback(mode: str) -> None:
    with pytest.raises(errors.ModelLoadFailed, match="the weights of 7 layers are missing") as caught:
        kit.deploy(LoadsAfter("raise"), mode=mode)
    assert "load_model" in caught.value.remote_traceback
    assert "RuntimeError" in caught.value.remote_traceback
    assert "in the process that ran it" in str(caught.value)


@pytest.mark.parametrize("mode", ["default", "large"])
@pytest.mark.parametrize(
    ("way", "words"),
    [("kill", "SIGKILL.*memory.*while it loaded the model"), ("crash", "SIGSEGV"), ("exit", "SystemExit: 3")],
)
def test_a_process_that_dies_while_loading(mode: str, way: str, words: str) -> None:
    with pytest.raises(errors.ModelLoadFailed, match=words):
        kit.deploy(LoadsAfter(way), mode=mode)


def test_a_loader_of_shared_that_dies_is_no_endless_wait() -> None:
    with pytest.raises(errors.ModelLoadFailed, match="SIGKILL"):
        kit.deploy(LoadsAfter("kill"), mode="shared")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(errors.ModelLoadFailed, match=r"FileNotFoundError.*/nowhere/model.bin"):
        kit.deploy(LoadsAfter("missing file"))
    with pytest.raises(errors.ModelLoadFailed, match=r"FileNotFoundError.*/nowhere/model.bin"):
        [1] | RunInference(LoadsAfter("missing file"))


def test_a_failed_load_here_is_tried_again() -> None:
    handler = LoadsAfter("raise")
    for _ in range(2):
        with pytest.raises(errors.ModelLoadFailed, match="7 layers"):
            [1] | RunInference(handler)


def _torch_handler(path: Path, inputs: int = 3) -> Any:
    torch = pytest.importorskip("torch")
    from kit.handlers import PytorchModelHandlerTensor

    return PytorchModelHandlerTensor(str(path), torch.nn.Linear, {"in_features": inputs, "out_features": 1})


def _save_weights(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(3, 1).state_dict(), path)


def test_weights_that_are_missing_corrupt_or_do_not_fit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"

    def message(inputs: int) -> str:
        with pytest.raises(errors.WeightsFileError) as caught:
            [torch.ones(inputs)] | RunInference(_torch_handler(path, inputs))
        return str(caught.value)

    assert "model.pt" in message(3)
    path.write_bytes(b"these are no weights")
    assert "model.pt" in message(3)
    _save_weights(path)
    words = message(5)
    assert all(word in words for word in ("weight", "3", "5"))
    with pytest.raises(errors.WeightsFileError) as caught:
        kit.deploy(_torch_handler(path, 5))
    assert words in str(caught.value), "the same error in a worker"
    assert "load_model" in caught.value.remote_traceback


def test_an_update_to_weights_that_do_not_load_leaves_the_old_model_serving(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    _save_weights(tmp_path / "model.pt")
    with kit.deploy(_torch_handler(tmp_path / "model.pt"), processes=1) as deployment:
        before = deployment.predict([torch.ones(3)])
        (tmp_path / "next.pt").write_bytes(b"no weights")
        for path in ("next.pt", "missing.pt"):
            with pytest.raises(errors.KitError, match=path):
                deployment.update_model(str(tmp_path / path))
        after = deployment.predict([torch.ones(3)])
        assert after[0].model_id == before[0].model_id
        assert torch.equal(after[0].inference, before[0].inference)


def test_update_model_wants_a_path_or_a_handler(double: Any) -> None:
    with pytest.raises(errors.InvalidSetting, match="give a path, a model handler"):
        double.update_model(3)
    with pytest.raises(errors.InvalidSetting, match=r"update_model\('next.pt'\): Double has no update_model_path"):
        double.update_model("next.pt")
    assert serves(double)


def test_a_handler_that_cannot_be_pickled_names_the_attribute() -> None:
    handler = Double()
    handler.guard = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(errors.HandlerNotPicklable, match=r"Double\.guard \(a lock\).*load_model"):
        kit.deploy(handler)
    assert ([2] | RunInference(handler))[0].inference == 4, "in this process it needn't travel"


class Keeps(Double):
    """Keeps what it is made with, or nothing of it."""

    def __init__(self, given: Any, keep: bool = True) -> None:
        super().__init__()
        self.lock = given if keep else None


def test_arguments_of_a_constructor_that_cannot_be_pickled() -> None:
    with pytest.raises(errors.HandlerNotPicklable, match=r"Keeps\.lock \(a lock\) can't travel"):
        kit.deploy(Keeps(threading.Lock()))
    with kit.deploy(Keeps(threading.Lock(), keep=False).with_preprocess_fn(abs), processes=1) as deployment:
        assert deployment.predict([-2])[0].inference == 4


def test_arguments_that_a_handler_does_not_keep_do_not_travel_but_tell_handlers_apart() -> None:
    array = np.zeros(1_000_000)
    assert len(pack(Keeps(array, keep=False))) < 10_000
    assert digest(Keeps(array, keep=False)) != digest(Keeps(array + 1, keep=False))


def test_functions_around_the_model_that_cannot_be_pickled_are_named() -> None:
    lock = threading.Lock()

    def tidy(value: Any) -> Any:
        with lock:
            return value

    uses = "uses the variable 'lock' \\(a lock\\), which can't travel"
    for handler, words in (
        (Double().with_preprocess_fn(tidy), f"pre-processing function 'tidy' {uses}"),
        (Double().with_preprocess_fn(abs).with_postprocess_fn(tidy), f"post-processing function 'tidy' {uses}"),
        (Double(element_size_fn=tidy), f"option 'element_size_fn' {uses}"),
        (
            ModelHandler.from_callable(int, lambda batch, model: [tidy(x) for x in batch]),
            "run function '<lambda>' uses",
        ),
    ):
        with pytest.raises(errors.HandlerNotPicklable, match=words):
            kit.deploy(handler)


def test_a_class_that_refers_to_what_cannot_be_pickled() -> None:
    guard = threading.Lock()

    class Closes(Double):
        def load_model(self) -> Any:
            with guard:
                return np.array([2])

    with pytest.raises(
        errors.HandlerNotPicklable, match=r"The variable 'guard' \(a lock\) that Closes.load_model refers to"
    ):
        kit.deploy(Closes())


def test_an_update_to_a_handler_that_cannot_be_pickled_serves_on(double: Any) -> None:
    handler = Double()
    handler.guard = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(errors.HandlerNotPicklable, match="guard"):
        double.update_model(handler)
    assert serves(double)


def test_a_library_to_preload_that_is_missing_is_named() -> None:
    class Needs(Double):
        preload = ("no_such_library",)

    with pytest.raises(errors.PreloadFailed, match="no_such_library"):
        kit.deploy(Needs())


def test_a_library_that_ends_the_process_on_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends_at_once.py").write_text("raise SystemExit(4)\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    class Needs(Double):
        preload = ("ends_at_once",)

    with pytest.raises(errors.PreloadFailed, match="ends_at_once"):
        kit.deploy(Needs())


def test_a_model_that_cannot_be_pickled_cannot_be_shared() -> None:
    class Opaque(Double):
        def load_model(self) -> Any:
            return [threading.Lock(), 2]

        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            return [example * model[1] for example in batch]

    with pytest.raises(errors.SharedModeUnavailable, match=r"Opaque.*pickled.*Use mode 'large'"):
        kit.deploy(Opaque(), mode="shared")
    with kit.deploy(Opaque(), mode="large") as deployment:
        with pytest.raises(errors.SharedModeUnavailable):
            deployment.switch("shared")
        assert deployment.mode == "large"
        assert serves(deployment)


def test_a_handler_without_its_methods_says_which_to_write() -> None:
    with pytest.raises(errors.ModelLoadFailed, match=r"ModelHandler has no load_model\(self\)"):
        kit.deploy(ModelHandler())

    class Half(ModelHandler):
        def load_model(self) -> Any:
            return 1

    with pytest.raises(errors.InferenceFailed, match="Half has no run_inference"):
        [1] | RunInference(Half())


# ---- predictions ---------------------------------------------------------------------------------


class WrongCount(Double):
    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return list(batch)[1:] if batch[0] < 10 else [*batch, 0]


@pytest.fixture(scope="module", params=["here", "default", "large"])
def wrong_count(request: pytest.FixtureRequest) -> Any:
    handler = WrongCount(max_batch_size=8)
    if request.param == "here":
        yield handler
        return
    with kit.deploy(handler, mode=request.param) as deployment:
        yield deployment


def test_a_wrong_number_of_predictions_is_an_error_with_both_numbers(wrong_count: Any) -> None:
    with pytest.raises(errors.WrongPredictionCount, match=r"WrongCount.*returned 2 predictions for a batch of 3"):
        [1, 2, 3] | RunInference(wrong_count)
    with pytest.raises(errors.WrongPredictionCount, match="returned 4 predictions for a batch of 3"):
        [11, 12, 13] | RunInference(wrong_count)


def test_with_exception_handling_a_wrong_number_fails_its_batch(wrong_count: Any) -> None:
    results = [1, 2, 3] | RunInference(wrong_count).with_exception_handling()
    assert [type(failure.error) for failure in results.failures] == [errors.WrongPredictionCount] * 3


@pytest.mark.parametrize("serve", [RunInference, kit.deploy], ids=["here", "deployed"])
def test_methods_that_beam_could_not_call_are_refused_with_the_line_to_write(serve: Any) -> None:
    class TwoArguments(Double):
        def run_inference(self, batch: Any, model: Any) -> Any:  # type: ignore[override]
            return batch

    class LoadsWhat(Double):
        def load_model(self, path: str) -> Any:  # type: ignore[override]
            return path

    with pytest.raises(errors.InvalidSetting, match=r"TwoArguments.run_inference.*write .*inference_args=None\):`"):
        serve(TwoArguments())
    with pytest.raises(errors.InvalidSetting, match=r"LoadsWhat.load_model.*'path'.*write `def load_model\(self\):`"):
        serve(LoadsWhat())


class Returns(Double):
    """Returns what it is given as the result of a whole batch."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return self.returned


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (5, r"returned 5 \(int\)"),
        ("abc", r"returned 'abc' \(str\)"),
        ({"a": 1, "b": 2, "c": 3}, r"returned {'a': 1, .* \(dict\)"),
        (pd.DataFrame({"a": [1], "b": [2], "c": [3]}), r"\(DataFrame\)"),
    ],
    ids=["int", "str", "dict", "DataFrame"],
)
def test_what_is_no_list_of_predictions_is_refused_though_it_has_three_of_something(returned: Any, words: str) -> None:
    with pytest.raises(errors.InferenceFailed, match=rf"Returns.run_inference .*{words}.*return a list, an array"):
        [1, 2, 3] | RunInference(Returns(returned))
    with kit.deploy(Returns(returned)) as deployment, pytest.raises(errors.InferenceFailed, match=words):
        deployment.predict([1, 2, 3])


def test_a_generator_an_array_and_a_tuple_of_predictions_are_fine() -> None:
    class Generates(Double):
        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            yield from super().run_inference(batch, model)

    for handler in (Generates(), Returns(np.array([2, 4, 6])), Returns((2, 4, 6))):
        assert [prediction.inference for prediction in [1, 2, 3] | RunInference(handler)] == [2, 4, 6]


def test_predictions_that_are_none_are_an_error() -> None:
    class Forgets(Double):
        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            return None

    with pytest.raises(errors.InferenceFailed, match="Forgets"):
        [1] | RunInference(Forgets())


class LockForOdd(Double):
    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [threading.Lock() if example % 2 else example for example in batch]


@pytest.mark.parametrize("mode", ["default", "large"])
def test_predictions_that_cannot_be_pickled(mode: str) -> None:
    with kit.deploy(LockForOdd(), mode=mode, processes=1) as deployment:
        with pytest.raises(errors.InferenceFailed, match=r"pickle.*lock"):
            deployment.predict([1])
        results = [1, 2, 3, 4] | RunInference(deployment).with_exception_handling()
        assert [failure.example for failure in results.failures] == [1, 3]
        assert [p.inference for p in results.succeeded] == [2, 4]
        for _ in range(100):  # no slot of the transport may be lost on the way
            with pytest.raises(errors.InferenceFailed):
                deployment.predict([1])
        assert [p.inference for p in deployment.predict([2, 4])] == [2, 4]


def test_examples_that_cannot_be_pickled(double: Any) -> None:
    lock = threading.Lock()
    with pytest.raises(errors.InferenceFailed, match=r"can't be sent to a worker process.*lock"):
        double.predict([1, lock])
    results = [1, lock, 3] | RunInference(double).with_exception_handling()
    assert [p.inference for p in results.succeeded] == [2, 6]
    assert [failure.example for failure in results.failures] == [lock]
    assert serves(double)


def test_another_callers_bad_example_fails_only_his_request(double: Any) -> None:
    futures = []
    for number in range(40):
        futures.append(double.submit([threading.Lock()] if number % 4 == 0 else [number]))
    for number, future in enumerate(futures):
        if number % 4 == 0:
            with pytest.raises(errors.InferenceFailed):
                future.result(30)
        else:
            assert future.result(30)[0].inference == 2 * number


def test_an_iterator_is_sent_to_run_inference(double: Any) -> None:
    for ask in (double.predict, double.submit):
        with pytest.raises(errors.UnsupportedInput, match=r"RunInference\(deployment\)"):
            ask(iter([1]))
    with pytest.raises(errors.UnsupportedInput, match="one string"):
        double.predict("text")


def test_a_deadline_that_passes() -> None:
    class Sleepy(Double):
        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            threading.Event().wait(0.3)
            return super().run_inference(batch, model, inference_args)

    with kit.deploy(Sleepy(max_batch_size=1), processes=1) as deployment:
        with pytest.raises(errors.DeadlineExceeded, match=r"of 4 examples had no answer after 0\.\d+ s"):
            deployment.predict([1, 2, 3, 4], timeout=0.2)
        with pytest.raises(TimeoutError):
            deployment.submit([1, 2, 3, 4], deadline=0.1).result(30)
        assert serves(deployment)
        with pytest.raises(errors.InvalidSetting, match="deadline=0"):
            deployment.submit([1], deadline=0)
        with pytest.raises(errors.InvalidSetting, match="timeout=0: give seconds above 0"):
            deployment.predict([1], timeout=0)
        with pytest.raises(errors.InvalidSetting, match="timeout=-1: give seconds above 0"):
            asyncio.run(deployment.apredict([1], timeout=-1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"deadline": "1"}, "deadline='1'.*seconds above 0"),
        ({"batch_timeout": -1}, "batch_timeout=-1"),
        ({"on_progress": 3}, "on_progress=3: give a function"),
        ({"inference_args": 3}, "inference_args=3: give a dict"),
    ],
)
def test_arguments_of_a_request_that_cannot_work(double: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=words):
        double.submit([1], **arguments)
    assert serves(double)


def test_a_progress_callback_that_raises_fails_its_own_request_only(double: Any) -> None:
    def told(count: int) -> None:
        raise ValueError(f"no room for {count}")

    with pytest.raises(ValueError, match="no room for"):
        double.submit([1, 2], on_progress=told).result(30)
    assert serves(double)


def test_a_callback_at_the_end_that_raises_keeps_nothing_from_closing(capsys: pytest.CaptureFixture[str]) -> None:
    deployment, ended = kit.deploy(Double(), processes=1), []
    with pytest.raises(errors.InvalidSetting, match="callback=3"):
        deployment.at_close(3)
    deployment.at_close(lambda: 1 // 0)
    deployment.at_close(lambda: ended.append(True))
    deployment.close()
    assert ended == [True]
    assert "ZeroDivisionError" in capsys.readouterr().err


# ---- handlers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch_duration_secs": "1"}, "max_batch_duration_secs='1': give a number above 0"),
        ({"max_batch_weight": "a"}, "max_batch_weight='a'"),
        ({"element_size_fn": 3}, "element_size_fn=3: give a function"),
        ({"batch_length_fn": "len"}, "batch_length_fn='len': give a function"),
        ({"max_batch_tokens": 100}, "max_batch_tokens=100 needs batch_length_fn"),
        ({"batch_bucket_boundaries": 5, "batch_length_fn": len}, "batch_bucket_boundaries=5: give ascending"),
        ({"batch_bucket_boundaries": ["a"], "batch_length_fn": len}, "batch_bucket_boundaries=.*give ascending"),
        ({"model_copies": True}, "model_copies=True"),
        ({"large_model": "no"}, "large_model='no': give True or False"),
        ({"env_vars": "A=1"}, "env_vars='A=1': give a dict"),
    ],
)
def test_options_of_a_handler_that_cannot_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=words):
        ModelHandler(**options)


class Passes(Double):
    def __init__(self, path: str, **options: Any) -> None:
        options.pop("mine", None)
        super().__init__(**options)


def test_a_mistyped_option_is_told_the_closest_and_all_there_are() -> None:
    takes_all = r"It takes .*min_batch_size, .*env_vars\.$"
    for make, words in (
        (lambda: Double(max_bach_size=3), rf"Double has no option 'max_bach_size': did you mean 'max_b.*{takes_all}"),
        (lambda: Passes("a", pth=3), r"Passes has no option 'pth': did you mean 'path'\? It takes path, min_"),
        (
            lambda: ModelHandler.from_callable(int, abs, zzz=3),
            r"from_callable has no option 'zzz'\. It takes load, run, ",
        ),
        (lambda: Keeps(1, kep=True), r"Keeps has no option 'kep': did you mean 'keep'\? It takes given, keep\.$"),
        (lambda: kit.KeyedModelHandler([], memory=3), r"did you mean 'memory_budget'\? It takes unkeyed, max_models"),
        (lambda: HuggingFaceModelHandlerTensor("a", "b", divice=1), r"'device'\? It takes model_uri, .*large_model"),
    ):
        with pytest.raises(TypeError, match=words) as caught:
            make()
        assert isinstance(caught.value, errors.UnknownOption)
    assert "framework" not in str(caught.value), "its base class's only"
    assert Passes("a", mine=3, max_batch_size=2).batching_options() == {"max_batch_size": 2}


def test_what_is_no_function_is_refused_where_it_is_given() -> None:
    for refused in (
        lambda: Double().with_preprocess_fn(3),  # type: ignore[arg-type]
        lambda: Double().with_postprocess_fn(None),  # type: ignore[arg-type]
        lambda: ModelHandler.from_callable(dict, 3),  # type: ignore[arg-type]
    ):
        with pytest.raises(errors.InvalidSetting, match="give a function"):
            refused()
    with pytest.raises(errors.InvalidSetting, match="inference_args=3"):
        RunInference(Double(), 3)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidSetting, match="timeout='1'"):
        RunInference(Double()).with_exception_handling(timeout="1")  # type: ignore[arg-type]


def test_inference_arguments_reach_a_run_function_by_name_or_it_is_told_its_parameters() -> None:
    def run(batch: Any, model: Any, *, inference_args: Any = None) -> Any:
        return [example + (inference_args or {}).get("k", 0) for example in batch]

    handler = ModelHandler.from_callable(int, run)
    assert [found.inference for found in [1] | RunInference(handler)] == [1]
    assert [found.inference for found in [1] | RunInference(handler, inference_args={"k": 1})] == [2]
    plain = ModelHandler.from_callable(int, lambda batch, model, *, speed=1: batch)
    with pytest.raises(errors.InvalidSetting, match=r"takes \(batch, model, \*, speed=1\) only\. Give it a third"):
        RunInference(plain, inference_args={"k": 1})


def test_a_run_function_that_takes_no_model_is_told_its_parameters() -> None:
    with pytest.raises(errors.InvalidSetting, match=r"from_callable\(run=.*\(batch, model\)"):
        ModelHandler.from_callable(dict, lambda batch: batch)
    with pytest.raises(errors.InvalidSetting, match=r"from_callable\(load=.*no arguments"):
        ModelHandler.from_callable(lambda path: path, lambda batch, model: batch)
    any_number = ModelHandler.from_callable(dict, lambda *given: given[0])
    assert [p.inference for p in [2, 3] | RunInference(any_number)] == [2, 3]


# ---- the end -------------------------------------------------------------------------------------


def test_a_closed_deployment_says_so_everywhere() -> None:
    deployment = kit.deploy(Double())
    waiting = deployment.submit([1])
    waiting.result(30)
    deployment.close()
    deployment.close()
    assert deployment.closed
    uses = [
        lambda: deployment.predict([1]),
        lambda: deployment.submit([1]),
        lambda: [1] | RunInference(deployment),
        lambda: iter([1]) | RunInference(deployment),
        lambda: deployment.switch("large"),
        lambda: deployment.update_model(Double()),
    ]
    for use in uses:
        with pytest.raises(errors.DeploymentClosed, match="deploy"):
            use()
    assert "closed" in repr(deployment)
    assert "closed" in deployment._repr_mimebundle_()["text/html"]
    assert len(deployment.stats()) == 0


def test_closing_fails_what_waits_and_does_not_hang() -> None:
    class Sleepy(Double):
        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            threading.Event().wait(30)
            return batch

    deployment = kit.deploy(Sleepy(max_batch_size=1), processes=1)
    futures = [deployment.submit([number]) for number in range(5)]
    deployment.close()
    for future in futures:
        with pytest.raises(errors.DeploymentClosed):
            future.result(5)


def test_errors_survive_pickling_with_their_traceback() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(errors.InferenceFailed("it failed", "Traceback: here")))
    assert isinstance(error, errors.InferenceFailed)
    assert str(error) == "it failed\n  in the process that ran it:\n    Traceback: here"


def test_a_timeout_without_end_is_no_timeout() -> None:
    with kit.deploy(Double(), processes=1) as deployment:
        assert deployment.predict([4], timeout=float("inf"))[0].inference == 8

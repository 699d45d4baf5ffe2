"""``examples | RunInference(x)``: every kind of examples, in process and deployed, as lists and as streams."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

import kit
from kit import Failure, ModelHandler, PredictionResult, Predictions, RunInference, errors

PLACES = ("here", "default", "large")


class Double(ModelHandler):
    """Doubles its examples; counts loads in `loads`."""

    loads = 0

    def load_model(self) -> int:
        type(self).loads += 1
        return 2

    def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
        return [example * model + (inference_args or {}).get("plus", 0) for example in batch]

    def validate_inference_args(self, inference_args: Any) -> None:
        if inference_args and set(inference_args) != {"plus"}:
            raise errors.InvalidSetting(f"unknown inference_args {sorted(inference_args)}; known: plus")


class Picky(Double):
    """Fails on a batch with a negative example; counts batches."""

    def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
        for example in batch:
            if example < 0:
                raise ValueError(f"{example} is negative")
        return super().run_inference(batch, model, inference_args)


Serve = Callable[[ModelHandler], Any]


@pytest.fixture(params=PLACES)
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Gives what RunInference shall be called with for a handler: itself, or a deployment of it."""
    with_close = []

    def make(handler: ModelHandler) -> Any:
        if request.param == "here":
            return handler
        deployment = kit.deploy(handler, mode=request.param)
        with_close.append(deployment)
        return deployment

    yield make
    for deployment in with_close:
        deployment.close()


@pytest.fixture(scope="module", params=PLACES)
def double(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The handler Double, or a deployment of it that several tests share."""
    if request.param == "here":
        yield Double()
        return
    with kit.deploy(Double(), mode=request.param) as deployment:
        yield deployment


def inferences(results: Any) -> list[Any]:
    return [result.inference for result in results]


# ---- kinds of examples ---------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [[1, 2, 3], (1, 2, 3), range(1, 4), pd.Series([1, 2, 3]), np.array([1, 2, 3])])
def test_flat_examples(double: Any, examples: Any) -> None:
    predictions = examples | RunInference(double)
    assert isinstance(predictions, Predictions)
    assert inferences(predictions) == [2, 4, 6]
    assert [p.example for p in predictions] == [1, 2, 3]
    assert all(type(p) is PredictionResult for p in predictions)


def test_an_iterator_gives_a_lazy_iterator(double: Any) -> None:
    predictions = iter([1, 2, 3]) | RunInference(double)
    assert not isinstance(predictions, Predictions)
    assert inferences(predictions) == [2, 4, 6]
    assert list(predictions) == []


def test_numpy_rows(double: Any) -> None:
    block = np.arange(20.0, dtype=np.float32).reshape(5, 4)
    predictions = block | RunInference(double)
    assert len(predictions) == 5
    np.testing.assert_array_equal(np.stack(inferences(predictions)), block * 2)
    np.testing.assert_array_equal(np.stack([p.example for p in predictions]), block)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2)])
def test_tensor_rows(double: Any, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    block = torch.arange(float(np.prod(shape))).reshape(shape)
    predictions = block | RunInference(double)
    assert isinstance(predictions, Predictions)
    assert torch.equal(torch.stack(inferences(predictions)), block * 2)


def test_data_frame_rows(double: Any) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [3.0, 4.0]})
    predictions = frame | RunInference(double)
    assert len(predictions) == 2
    pd.testing.assert_frame_equal(pd.concat(inferences(predictions)), frame * 2)


@pytest.mark.parametrize(
    "examples", [[], (), range(0), np.empty((0, 3)), pd.Series([], dtype=float), pd.DataFrame({"a": []})]
)
def test_no_examples_give_no_predictions(double: Any, examples: Any) -> None:
    predictions = examples | RunInference(double)
    assert isinstance(predictions, Predictions)
    assert len(predictions) == 0


def test_an_empty_iterator(double: Any) -> None:
    assert list(iter([]) | RunInference(double)) == []


def test_the_call_is_the_same_as_the_bar(double: Any) -> None:
    assert RunInference(double)([1, 2]) == [1, 2] | RunInference(double) == Predictions([(1, 2, None), (2, 4, None)])
    assert [3] | RunInference(model_handler=double) == [(3, 6, None)]


def test_nothing_broadcasts_over_the_bar() -> None:
    torch = pytest.importorskip("torch")
    run = RunInference(Double())
    for examples in (
        np.ones(3),
        np.ones((3, 2)),
        np.array([1, 2], dtype=object),
        torch.ones(3),
        torch.ones(3, 2, dtype=torch.int64),
        pd.Series([1, 2]),
        pd.DataFrame({"a": [1, 2]}),
        pd.Index([1, 2]),
    ):
        assert type(examples | run) is Predictions
    for scalar in (np.float32(1), np.int64(1), np.array(1), torch.tensor(1)):
        with pytest.raises(errors.UnsupportedInput, match="single number"):
            scalar | run


@pytest.mark.parametrize("examples", ["text", b"bytes", {"a": 1}, {1, 2}, 7, None])
def test_what_is_no_list_of_examples_is_refused(double: Any, examples: Any) -> None:
    with pytest.raises(errors.UnsupportedInput):
        examples | RunInference(double)


def test_a_pcollection_is_refused_with_advice_either_way() -> None:
    beam = pytest.importorskip("apache_beam")
    pcollection = beam.Pipeline() | beam.Create([1])
    advice = r"kit\.beam\.RunInference"
    with pytest.raises(errors.UnsupportedInput, match=advice):
        RunInference(Double())(pcollection)
    with pytest.raises(TypeError, match=advice):
        pcollection | RunInference(Double())


# ---- order, identity, models ---------------------------------------------------------------------


def test_order_holds_for_many_examples(double: Any) -> None:
    predictions = list(range(20_000)) | RunInference(double)
    assert inferences(predictions) == [2 * n for n in range(20_000)]
    assert [p.example for p in predictions] == list(range(20_000))


def test_order_holds_when_batches_are_sorted_by_length(serve: Serve) -> None:
    texts = [chr(97 + n % 26) * (1 + n * 7919 % 50) for n in range(500)]
    target = serve(_Upper(batch_length_fn=len, max_batch_tokens=200))
    assert inferences(texts | RunInference(target)) == [text.upper() for text in texts]
    assert inferences(iter(texts) | RunInference(target)) == [text.upper() for text in texts]


class _Upper(ModelHandler):
    def load_model(self) -> Any:
        return str.upper

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return map(model, batch)


def test_examples_are_the_callers_own_objects(double: Any) -> None:
    class Number(int):
        pass

    examples = [1000 + n for n in range(5)]
    for predictions in (examples | RunInference(double), list(iter(examples) | RunInference(double))):
        assert all(p.example is example for p, example in zip(predictions, examples, strict=True))


def test_the_model_is_loaded_once_and_kept() -> None:
    class Counted(Double):
        loads = 0

    handler = Counted()
    for _ in range(3):
        assert inferences([1] | RunInference(handler)) == [2]
    list(iter([1, 2]) | RunInference(handler))
    assert inferences([1] | RunInference(handler.with_postprocess_fn(lambda p: PredictionResult(0, p)))) == [2]
    assert Counted.loads == 1, "variations of a handler share its model"
    assert inferences([1] | RunInference(Counted())) == [2]
    assert Counted.loads == 2, "another handler has a model of its own"


def test_two_threads_load_a_model_once() -> None:
    class Slow(Double):
        loads = 0

        def load_model(self) -> int:
            super().load_model()
            threading.Event().wait(0.05)
            return 2

    handler = Slow()
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append([1] | RunInference(handler))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Slow.loads == 1
    assert answers == [[(1, 2, None)]] * 4


def test_a_handler_that_is_not_thread_safe_is_called_by_one_thread_at_a_time() -> None:
    class Touchy(Double):
        thread_safe = False
        inside = 0
        most = 0

        def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
            cls = type(self)
            cls.inside += 1
            cls.most = max(cls.most, cls.inside)
            threading.Event().wait(0.005)
            cls.inside -= 1
            return batch

    handler = Touchy(max_batch_size=2)
    threads = [threading.Thread(target=lambda: list(range(10)) | RunInference(handler)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Touchy.most == 1


def test_a_handler_that_cannot_be_hashed_is_served() -> None:
    from dataclasses import dataclass

    @dataclass
    class Times(Double):
        factor: int = 3

        def load_model(self) -> int:
            return self.factor

    one, other = Times(), Times()
    assert inferences([1] | RunInference(one)) == [3]
    other.factor = 5
    assert inferences([1] | RunInference(other)) == [5]


class Versioned(Double):
    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    @property
    def model_id(self) -> str:
        return self.path

    def update_model_path(self, model_path: str | None = None) -> None:
        self.path = model_path or self.path

    def load_model(self) -> int:
        return int(self.path)


def test_predictions_carry_the_model_id(serve: Serve) -> None:
    predictions = [1, 2] | RunInference(serve(Versioned("3")))
    assert predictions == [(1, 3, "3"), (2, 6, "3")]


def test_a_new_model_path_is_loaded_on_the_next_call() -> None:
    handler = Versioned("3")
    assert [1] | RunInference(handler) == [(1, 3, "3")]
    handler.update_model_path("5")
    assert [1] | RunInference(handler) == [(1, 5, "5")]


def test_a_model_id_in_the_handlers_own_results_is_kept(serve: Serve) -> None:
    class Own(Double):
        def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
            return [PredictionResult(example, -example, "mine") for example in batch]

    assert [4] | RunInference(serve(Own())) == [(4, -4, "mine")]


def test_two_in_a_row(double: Any) -> None:
    chained = (p.inference for p in iter(range(1000)) | RunInference(double)) | RunInference(double)
    assert inferences(chained) == [4 * n for n in range(1000)]
    twice = [p.inference for p in range(10) | RunInference(double)] | RunInference(double)
    assert inferences(twice) == [4 * n for n in range(10)]


def test_two_deployments_in_a_row_and_at_once() -> None:
    with kit.deploy(Double()) as one, kit.deploy(Double().with_preprocess_fn(lambda x: x + 1), mode="large") as other:
        chained = (p.inference for p in iter(range(500)) | RunInference(one)) | RunInference(other)
        assert inferences(chained) == [2 * (2 * n + 1) for n in range(500)]
        futures = [target.submit(list(range(100))) for target in (one, other) * 5]
        for number, future in enumerate(futures):
            assert inferences(future.result()) == [2 * (n + number % 2) for n in range(100)]


# ---- inference_args ------------------------------------------------------------------------------


def test_inference_args_reach_the_handler(double: Any) -> None:
    assert inferences([1, 2] | RunInference(double, {"plus": 10})) == [12, 14]
    assert inferences(iter([1, 2]) | RunInference(double, inference_args={"plus": 5})) == [7, 9]
    assert inferences([1, 2] | RunInference(double)) == [2, 4]


def test_inference_args_are_validated_before_anything_runs(double: Any) -> None:
    with pytest.raises(errors.InvalidSetting, match="plus"):
        RunInference(double, {"minus": 1})


def test_a_function_that_takes_no_inference_args_refuses_them() -> None:
    handler = ModelHandler.from_callable(lambda: 2, lambda batch, model: [x * model for x in batch])
    assert inferences([1] | RunInference(handler)) == [2]
    with pytest.raises(errors.InvalidSetting, match="third parameter"):
        RunInference(handler, {"a": 1})
    three = ModelHandler.from_callable(lambda: 2, lambda batch, model, args: [x * model + args["a"] for x in batch])
    assert inferences([1] | RunInference(three, {"a": 1})) == [3]


# ---- pre- and post-processing, batches -----------------------------------------------------------


def test_the_preprocessing_added_last_runs_first(serve: Serve) -> None:
    handler = Double().with_preprocess_fn(lambda x: x + 1).with_preprocess_fn(int)
    predictions = ["1", "2"] | RunInference(serve(handler))
    assert predictions == [("1", 4, None), ("2", 6, None)], "the example is the caller's, not the pre-processed one"


def test_what_postprocessing_returns_is_handed_out(serve: Serve) -> None:
    handler = Double().with_postprocess_fn(lambda value: value + 1).with_postprocess_fn(lambda value: f"<{value}>")
    assert [1, 2] | RunInference(serve(handler)) == ["<3>", "<5>"]


def test_postprocessing_of_prediction_results_sees_the_callers_example(serve: Serve) -> None:
    class Results(Double):
        def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
            return [PredictionResult(example, example * model) for example in batch]

    handler = Results().with_preprocess_fn(len).with_postprocess_fn(lambda p: (p.example, p.inference))
    assert ["abc"] | RunInference(serve(handler)) == [("abc", 6)]


def test_without_batching_each_example_is_a_batch(serve: Serve) -> None:
    handler = Double().with_no_batching()
    predictions = [[1, 2, 3], [4]] | RunInference(serve(handler))
    assert predictions == [([1, 2, 3], [2, 4, 6], None), ([4], [8], None)]


@pytest.mark.parametrize("stream", [False, True])
def test_max_batch_size_holds(serve: Serve, stream: bool) -> None:
    class Sizes(Double):
        def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
            return [len(batch)] * len(batch)

    examples: Any = range(200)
    found = inferences((iter(examples) if stream else examples) | RunInference(serve(Sizes(max_batch_size=16))))
    assert len(found) == 200
    assert max(found) == 16
    assert found.count(16) >= 96, "batches are filled where there are examples enough"


def test_environment_variables_are_set_where_the_model_is_loaded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_TEST_GREETING", "no")

    class Reads(Double):
        def load_model(self) -> Any:
            import os

            return os.environ["KIT_TEST_GREETING"]

        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            return [model for _ in batch]

    assert inferences([1] | RunInference(serve(Reads(env_vars={"KIT_TEST_GREETING": "yes"})))) == ["yes"]


# ---- streams -------------------------------------------------------------------------------------


class Source:
    """Counts how many examples were pulled."""

    def __init__(self, count: int | None = None, gap_s: float = 0.0) -> None:
        self.pulled = 0
        self._numbers = itertools.count() if count is None else iter(range(count))
        self._gap = gap_s

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> int:
        number = next(self._numbers)
        if self._gap and number:
            time.sleep(self._gap)
        self.pulled += 1
        return number


def test_nothing_is_pulled_before_it_is_asked_for(double: Any) -> None:
    source = Source()
    stream = source | RunInference(double)
    assert source.pulled == 0
    assert next(stream).inference == 0
    assert 1 <= source.pulled <= 64
    stream.close()


def test_the_look_ahead_is_bounded_on_an_endless_source(double: Any) -> None:
    source = Source()
    stream = source | RunInference(double)
    ahead = []
    for taken in range(1, 60_000):
        assert next(stream).inference == 2 * (taken - 1)
        ahead.append(source.pulled - taken)
    assert max(ahead) < 25_000
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_a_closed_or_dropped_stream_pulls_no_more_and_cancels(serve: Serve) -> None:
    target = serve(Double())
    for end in ("close", "drop"):
        source = Source()
        stream = source | RunInference(target)
        for _ in range(100):
            next(stream)
        if end == "close":
            stream.close()
        del stream
        gc.collect()
        pulled = source.pulled
        assert inferences([1] | RunInference(target)) == [2]
        assert source.pulled == pulled


def test_cancelled_windows_are_not_computed() -> None:
    class Slow(Double):
        def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
            time.sleep(0.01)
            return super().run_inference(batch, model, inference_args)

    with kit.deploy(Slow(max_batch_size=4)) as deployment:
        stream = Source() | RunInference(deployment)
        for _ in range(20):
            next(stream)
        stream.close()
        counts = deployment.counters
        assert counts["cancelled"] > 0
        assert counts["accepted"] - counts["answered"] - counts["cancelled"] - counts["failed"] == 0


def test_a_slow_source_gets_each_answer_before_it_is_asked_again(double: Any) -> None:
    [0] | RunInference(double)
    source = Source(4, gap_s=0.4)
    for number, prediction in enumerate(source | RunInference(double)):
        assert prediction == (number, 2 * number, None)
        assert source.pulled == number + 1


def test_answers_come_before_a_slow_model_has_computed_everything(serve: Serve) -> None:
    class Slow(Double):
        def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
            time.sleep(0.02 * len(batch))
            return super().run_inference(batch, model, inference_args)

    source = Source(5000)
    stream = source | RunInference(serve(Slow()))
    for _ in range(30):
        next(stream)
    assert source.pulled < 1000, "5000 would take 50 seconds and more"
    stream.close()


def test_large_examples_are_read_ahead_by_bytes() -> None:
    pulled = 0

    def source() -> Iterator[Any]:
        nonlocal pulled
        while True:
            pulled += 1
            yield np.zeros(1 << 20, dtype=np.uint8)

    stream = source() | RunInference(Double())
    for _ in range(200):
        next(stream)
    assert pulled - 200 <= 16, "a window holds 16 MiB at most"
    stream.close()


def test_an_error_of_the_source_comes_after_the_predictions_before_it(double: Any) -> None:
    def source() -> Iterator[int]:
        yield from range(100)
        raise KeyError("the file ends here")

    found = []
    with pytest.raises(KeyError, match="the file ends here"):
        for prediction in source() | RunInference(double):
            found.append(prediction.inference)
    assert found == [2 * n for n in range(100)]


def test_an_error_of_the_model_ends_the_stream(serve: Serve) -> None:
    stream = iter([1, 2, -3, 4]) | RunInference(serve(Picky()))
    with pytest.raises(errors.InferenceFailed, match="-3 is negative"):
        list(stream)
    assert list(stream) == []


# ---- failures ------------------------------------------------------------------------------------


def test_a_failing_example_ends_the_call_with_its_traceback(serve: Serve) -> None:
    with pytest.raises(errors.InferenceFailed, match="-1 is negative") as caught:
        [1, -1, 2] | RunInference(serve(Picky()))
    assert "ValueError" in caught.value.remote_traceback
    assert "run_inference" in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_with_exception_handling_a_bad_example_fails_alone(serve: Serve, stream: bool) -> None:
    examples: Any = [5, -1, 6, -2, 7]
    run = RunInference(serve(Picky(max_batch_size=8))).with_exception_handling()
    results = list((iter(examples) if stream else examples) | run)
    assert inferences(results[::2]) == [10, 12, 14]
    for place, example in ((1, -1), (3, -2)):
        failure = results[place]
        assert isinstance(failure, Failure)
        assert failure.example == example
        assert f"{example} is negative" in str(failure.error)
        assert isinstance(failure.error, errors.InferenceFailed)


def test_with_exception_handling_pre_and_postprocessing_fail_alone(serve: Serve) -> None:
    handler = Double().with_preprocess_fn(int).with_postprocess_fn(lambda value: 12 // value)
    results = ["1", "x", "0", "3"] | RunInference(serve(handler)).with_exception_handling()
    assert [results[0], results[3]] == [6, 2]
    assert [failure.example for failure in results.failures] == ["x", "0"]
    assert "pre-processing" in str(results.failures[0].error)
    assert "post-processing" in str(results.failures[1].error)


def test_results_and_failures_as_a_table(serve: Serve) -> None:
    frame = ([1, -1] | RunInference(serve(Picky())).with_exception_handling()).to_frame()
    assert frame["inference"].tolist() == [2, None]
    assert "negative" in frame["error"][1]


class Sleepy(Double):
    """Takes as many seconds as its examples say together."""

    def run_inference(self, batch: Any, model: int, inference_args: Any = None) -> Any:
        time.sleep(sum(batch))
        return super().run_inference(batch, model, inference_args)


def test_with_a_timeout_a_slow_example_fails_alone_and_soon(serve: Serve) -> None:
    target = serve(Sleepy())
    [0] | RunInference(target)
    began = time.monotonic()
    results = [0, 0, 5.0, 0] | RunInference(target).with_exception_handling(timeout=0.3)
    assert time.monotonic() - began < 4.5
    assert [type(result) for result in results] == [PredictionResult, PredictionResult, Failure, PredictionResult]
    assert isinstance(results[2].error, errors.DeadlineExceeded)
    assert "0.3 s" in str(results[2].error)
    assert inferences([0, 0] | RunInference(target)) == [0, 0], "served on"


def test_a_timeout_must_be_above_zero() -> None:
    with pytest.raises(errors.InvalidSetting, match="timeout=0"):
        RunInference(Double()).with_exception_handling(timeout=0)


def test_exception_handling_is_a_copy() -> None:
    run = RunInference(Picky())
    run.with_exception_handling()
    with pytest.raises(errors.InferenceFailed):
        [-1] | run


# ---- handlers that ask for sharing ---------------------------------------------------------------


def _own(handler: Any) -> Any:
    from kit import transform

    return transform._deployments.get(handler)


@pytest.mark.parametrize(("options", "mode"), [({"large_model": True}, "large"), ({"model_copies": 2}, "medium")])
def test_a_handler_that_asks_for_sharing_gets_a_deployment_of_its_own(options: Any, mode: str) -> None:
    handler = Double(**options)
    assert inferences([1, 2] | RunInference(handler)) == [2, 4]
    deployment = _own(handler)
    assert deployment.mode == mode
    assert inferences(iter([1, 2]) | RunInference(handler)) == [2, 4]
    assert _own(handler) is deployment, "the second call finds it"
    engine = deployment._engine
    del deployment, handler
    gc.collect()
    assert not engine.alive, "dropping the handler closes it"


def test_a_deployment_of_its_own_is_started_again_after_it_was_closed_and_follows_the_handler() -> None:
    handler = Versioned("3", large_model=True)
    assert [1] | RunInference(handler) == [(1, 3, "3")]
    _own(handler).close()
    assert [1] | RunInference(handler) == [(1, 3, "3")]
    handler.update_model_path("5")
    assert [1] | RunInference(handler) == [(1, 5, "5")]
    _own(handler).close()


# ---- progress ------------------------------------------------------------------------------------


class Bars:
    """Stands in for `kit.progress.progress` and notes what is asked of it."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def __call__(self, total: int | None, desc: str) -> Any:
        record: dict[str, Any] = {"total": total, "n": 0, "failed": None}
        self.made.append(record)

        class Bar:
            def update(self, n: int = 1) -> None:
                record["n"] += n

            def __enter__(self) -> Any:
                return self

            def __exit__(self, kind: Any, *_: object) -> None:
                record["failed"] = kind is not None

        return Bar()


def test_progress_counts_every_example_and_shows_failure(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = Bars()
    monkeypatch.setattr("kit.transform.progress", bars)
    target = serve(Picky())
    list(range(500)) | RunInference(target)
    list(iter(range(300)) | RunInference(target))
    with pytest.raises(errors.InferenceFailed):
        [-1] | RunInference(target)
    assert bars.made[0] == {"total": 500, "n": 500, "failed": False}
    assert bars.made[1] == {"total": None, "n": 300, "failed": False}
    assert bars.made[2]["failed"] is True


def test_a_bar_appears_on_long_work_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("kit.progress.somebody_watches", lambda: True)
    list(range(100)) | RunInference(Double())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("kit.progress.DELAY_S", 0.1)
    monkeypatch.setattr("kit.progress.progress.__init__.__kwdefaults__", {"enabled": None, "delay_s": 0.1})
    [0.03] * 20 | RunInference(Sleepy(max_batch_size=1))
    assert "RunInference" in capsys.readouterr().err


# ---- the object ----------------------------------------------------------------------------------


def test_what_is_no_handler_is_refused() -> None:
    with pytest.raises(errors.InvalidSetting, match="Double is a class"):
        RunInference(Double)
    with pytest.raises(errors.InvalidSetting, match="no load_model"):
        RunInference(lambda batch: batch)


def test_html_of_predictions(double: Any) -> None:
    assert "<table>" in (range(3) | RunInference(double))._repr_html_()
    assert (range(3) | RunInference(double)).to_frame()["inference"].tolist() == [0, 2, 4]

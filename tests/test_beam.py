"""`kit.beam.RunInference` in the in-memory runner does what Beam's own does; see `beam_behaviours.md`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kit
from kit import errors

beam = pytest.importorskip("apache_beam")

from apache_beam.metrics import MetricsFilter  # noqa: E402
from apache_beam.ml.inference import base  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402
from apache_beam.testing.util import assert_that, equal_to  # noqa: E402
from apache_beam.transforms import window  # noqa: E402

import kit.beam  # noqa: E402
from tests import beam_handlers as theirs  # noqa: E402
from tests import beam_models as models  # noqa: E402
from tests.models import Doubling  # noqa: E402

EXAMPLES = [1, 5, 3, 10]
SIDE = beam.PCollection(beam.Pipeline())


def pipeline() -> Any:
    return beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([]))


def ours(handler: Any, **options: Any) -> Any:
    """Our transform, with one process, which is enough for what these tests look at."""
    return kit.beam.RunInference(handler, **{"processes": 1, **options})


def check(examples: Sequence[Any], transform: Any, expected: Sequence[Any]) -> Any:
    """Run a pipeline, compare its results; the finished run."""
    running = pipeline()
    assert_that(running | beam.Create(examples) | transform, equal_to(list(expected)))
    done = running.run()
    done.wait_until_finish()
    return done


_kept: dict[str, list[Any]] = {}


def _keep(name: str, element: Any) -> None:
    _kept[name].append(element)


def keep(name: str, collection: Any) -> None:
    """Have the elements of a collection be found in ``_kept[name]``; it runs in this process."""
    _kept[name] = []
    _ = collection | f"keep {name}" >> beam.Map(partial(_keep, name))


def mult_two(example: Any) -> Any:
    return int(example) * 2


def refuse_five(example: Any) -> Any:
    if int(example) == 5:
        raise ValueError("five")
    return example


# ---- results -------------------------------------------------------------------------------------


def test_every_element_comes_back_as_beams_own_gives_it() -> None:
    check(range(1001), ours(models.AddsOne()), range(1, 1002))
    assert sorted(EXAMPLES | base.RunInference(models.AddsOne())) == sorted(EXAMPLES | ours(models.AddsOne()))


def test_rows_of_arrays_tensors_and_tables_are_examples() -> None:
    """Those on the left of the bar, where their own libraries would go over the elements one by one."""
    import numpy as np
    import pandas as pd
    import torch

    step = ours(models.AddsOne())
    assert sorted(np.arange(3) | step) == [1, 2, 3]
    assert sorted(pd.Series([1, 2]) | step) == [2, 3]
    assert sorted(row.tolist() for row in np.zeros((2, 3)) | step) == [[1, 1, 1]] * 2
    assert sorted(row.tolist() for row in torch.tensor([[1.0, 2.0], [3.0, 4.0]]) | step) == [[2, 3], [4, 5]]
    assert [table["a"].tolist() for table in pd.DataFrame({"a": [1]}) | step] == [[2]]


@pytest.mark.parametrize("mode", ["default", "medium", "large", "shared"])
def test_every_mode_and_uneven_counts(mode: str) -> None:
    handler = models.AddsOne(max_batch_size=7)
    check(range(643), ours(handler, mode=mode, processes=2), range(1, 644))


def test_prediction_results_are_of_beams_class() -> None:
    for handler, model_id in ((models.GivesResults(), "default"), (theirs.GivesResults(), "theirs")):
        expected = [base.PredictionResult(example, example + 1, model_id) for example in EXAMPLES]
        found = EXAMPLES | ours(handler)
        assert sorted(found) == sorted(expected)
        assert {type(result) for result in found} == {base.PredictionResult}


def test_ready_made_handler_gives_beams_class(tmp_path: Path) -> None:
    import torch

    from kit.handlers import PytorchModelHandlerTensor

    torch.save({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}, tmp_path / "m.pt")
    sizes = {"in_features": 1, "out_features": 1}
    handler = PytorchModelHandlerTensor(str(tmp_path / "m.pt"), torch.nn.Linear, sizes, device="cpu")
    found = [torch.tensor([float(number)]) for number in range(11)] | ours(handler)
    assert {type(result) for result in found} == {base.PredictionResult}
    assert sorted(result.inference.item() for result in found) == [2.0 * number + 1 for number in range(11)]
    assert {result.model_id for result in found} == {str(tmp_path / "m.pt")}


def test_functions_before_and_after() -> None:
    handler = models.AddsOne().with_preprocess_fn(mult_two).with_preprocess_fn(int)
    check(["1", "5"], ours(handler), [3, 11])
    handler = models.AddsOne().with_postprocess_fn(mult_two).with_postprocess_fn(str)
    check([1, 5], ours(handler), ["4", "12"])
    handler = Doubling().with_preprocess_fn(int).with_postprocess_fn(str)
    check(["1", "5"], ours(handler), ["2", "10"])


def test_examples_that_are_batches() -> None:
    check([[1, 5], [3, 10, 4]], ours(models.AddsOne().with_no_batching()), [2, 6, 4, 11, 5])
    found = [[1, 5], [3]] | ours(models.GivesResults().with_no_batching())
    assert sorted(found) == [base.PredictionResult(n, n + 1, "default") for n in (1, 3, 5)]


def test_inference_args() -> None:
    check(EXAMPLES, ours(models.WantsArgs(), inference_args={"add": 5}), [6, 10, 8, 15])
    with pytest.raises(ValueError, match="inference_args were provided"):
        check(EXAMPLES, ours(models.RefusesArgs(), inference_args={"add": 5}), [])


def test_batches_by_the_handlers_options() -> None:
    check(["a", "cccccc", "bb", "ddddddd"], ours(models.Padded()), ["a:2", "bb:2", "cccccc:7", "ddddddd:7"])


def test_keyed_handlers_as_beams_own_gives_them() -> None:
    """The kit's with a model a key, Beam's with one for all and with a model a key, whose bare values stay bare."""
    mappings = [
        kit.KeyModelMapping(["a"], models.GivesResults("A")),
        kit.KeyModelMapping(["b", "c"], models.GivesResults("B")),
    ]
    examples = [("abc"[number % 3], number) for number in range(31)]
    for handler in (kit.KeyedModelHandler(mappings), base.KeyedModelHandler(models.AddsOne())):
        assert sorted(examples | ours(handler)) == sorted(examples | base.RunInference(handler))
    # Beam's own run of this one leaves a server in this process.
    handler = base.KeyedModelHandler(
        [base.KeyModelMapping(["a"], theirs.AddsOne()), base.KeyModelMapping(["b", "c"], theirs.GivesResults())]
    )
    expected = [(key, n + 1 if key == "a" else base.PredictionResult(n, n + 1, "theirs")) for key, n in examples]
    assert sorted(examples | ours(handler), key=repr) == sorted(expected, key=repr)


def test_models_change_places_in_a_pipeline() -> None:
    """Where one may be loaded at once, the metrics say how often they were loaded: both, and not for each example."""
    mappings = [
        base.KeyModelMapping(list(range(0, 20, 2)), theirs.AddsOne()),
        base.KeyModelMapping(list(range(1, 20, 2)), theirs.AddsOne()),
    ]
    handler = base.KeyedModelHandler(mappings, max_models_per_worker_hint=1)
    examples = [(number % 20, number) for number in range(1101)]
    done = check(examples, ours(handler), [(key, number + 1) for key, number in examples])
    (loads,) = metrics_of(done, "load_model_latency_milli_secs", "BeamML_KeyedModels")
    assert 2 <= loads.committed.count < 12


def twice(pair: Any) -> Any:
    return (pair[0], pair[1] * 2) if isinstance(pair, tuple) else pair * 2


@pytest.mark.parametrize("handler", [base.MaybeKeyedModelHandler, base.KeyedModelHandler])
def test_one_handler_for_all_keys(handler: Any) -> None:
    """Keys are carried along, where there are any and there may be none; functions see them."""
    keyed = list(enumerate(EXAMPLES))
    made = handler(theirs.AddsOne())
    check(keyed, ours(made), [(key, number + 1) for key, number in keyed])
    made = made.with_preprocess_fn(twice).with_postprocess_fn(twice)
    check(keyed, ours(made), [(key, (number * 2 + 1) * 2) for key, number in keyed])
    if handler is base.MaybeKeyedModelHandler:
        check(EXAMPLES, ours(made), [(number * 2 + 1) * 2 for number in EXAMPLES])
    else:
        with pytest.raises(Exception, match="has no key: a keyed handler takes pairs"):
            check(EXAMPLES, ours(made.with_preprocess_fn(lambda pair: pair // 2)), [])


def test_an_example_without_a_key_is_named() -> None:
    mappings = [base.KeyModelMapping([0], theirs.AddsOne())]
    with pytest.raises(Exception, match=r"example 0, 1 \(int\), has no key"):
        check([1, 3], ours(base.KeyedModelHandler(mappings)), [])


def test_environment_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIT_TEST_FOO", raising=False)
    handler = kit.ModelHandler.from_callable(
        object, lambda batch, model: [__import__("os").environ["KIT_TEST_FOO"] for _ in batch],
        env_vars={"KIT_TEST_FOO": "bar"},
    )  # fmt: skip
    check([1, 2], ours(handler), ["bar", "bar"])


def test_remote_handlers_and_their_retries() -> None:
    check(EXAMPLES, ours(theirs.Remote()), [2, 6, 4, 11])
    check(EXAMPLES, ours(theirs.Remote(failures=1)), [2, 6, 4, 11])
    with pytest.raises(Exception, match="the endpoint is busy"):
        check(EXAMPLES, ours(theirs.Remote(failures=99, retries=0)), [])


class Stamp(beam.DoFn):
    def process(self, value: Any, stamp: Any = beam.DoFn.TimestampParam, where: Any = beam.DoFn.WindowParam) -> Any:
        yield value, int(stamp), str(where)


def test_windows_and_timestamps_are_kept() -> None:
    """Sliding windows too, where each element is in two."""
    with pipeline() as running:
        numbers = running | beam.Create(range(23)) | beam.Map(lambda number: window.TimestampedValue(number, number))
        for windows in (window.FixedWindows(10), window.SlidingWindows(10, 5), window.GlobalWindows()):
            kind = type(windows).__name__
            placed = numbers | f"into {kind}" >> beam.WindowInto(windows)
            keep(
                f"expected {kind}",
                placed | f"add {kind}" >> beam.Map(lambda n: n + 1) | f"a {kind}" >> beam.ParDo(Stamp()),
            )
            keep(f"found {kind}", placed | f"run {kind}" >> ours(models.AddsOne()) | f"b {kind}" >> beam.ParDo(Stamp()))
    for kind in ("FixedWindows", "SlidingWindows", "GlobalWindows"):
        assert sorted(_kept[f"found {kind}"]) == sorted(_kept[f"expected {kind}"])
        assert len(_kept[f"found {kind}"]) == (46 if kind == "SlidingWindows" else 23)


def test_two_steps_share_a_model_unless_they_are_told_apart() -> None:
    with pipeline() as running:
        found = running | beam.Create([0] * 3) | "a" >> ours(models.Counting()) | "b" >> ours(models.Counting())
        assert_that(found, equal_to([4, 5, 6]))
    with pipeline() as running:
        first = ours(models.Counting(), model_identifier="a")
        found = running | beam.Create([0] * 3) | "a" >> first | "b" >> ours(models.Counting(), model_identifier="b")
        assert_that(found, equal_to([1, 2, 3]))


# ---- failures ------------------------------------------------------------------------------------


def letters(handler: Any, examples: Sequence[Any], **options: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Results, and what failed in pre-processing, inference and post-processing, each with its error."""
    with pipeline() as running:
        results, dlq = running | beam.Create(examples) | ours(handler).with_exception_handling(**options)
        keep("good", results)
        keep("inference", dlq.failed_inferences)
        for name, collections in (("pre", dlq.failed_preprocessing), ("post", dlq.failed_postprocessing)):
            _kept[name] = []
            for number, collection in enumerate(collections):
                keep(f"{name} {number}", collection)
    failed = {
        name: [one for key in _kept if key.startswith(f"{name} ") for one in _kept[key]] for name in ("pre", "post")
    }
    found = _kept["good"], failed["pre"], _kept["inference"], failed["post"]
    _kept.clear()
    return found


def test_a_failing_example_is_a_dead_letter_and_its_batch_goes_on() -> None:
    good, pre, bad, post = letters(models.AddsOne(), [1, "TEST", 3, 10, "TEST2"])
    assert sorted(good) == [2, 4, 11]
    assert pre == post == []
    assert sorted(batch for batch, _ in bad) == [["TEST"], ["TEST2"]]
    for _, (cls, words, trace) in bad:
        assert cls is TypeError
        assert words.startswith("TypeError(")
        assert "in run_inference" in "".join(trace)


def test_dead_letters_as_beams_own_for_single_examples() -> None:
    single = models.AddsOne(min_batch_size=1, max_batch_size=1)
    examples = [1, "TEST", 3]
    with pipeline() as running:
        _, dlq = running | beam.Create(examples) | base.RunInference(single).with_exception_handling()
        keep("theirs", dlq.failed_inferences)
    expected = [(batch, info[:2]) for batch, info in _kept["theirs"]]
    _, _, bad, _ = letters(single, examples)
    assert [(batch, info[:2]) for batch, info in bad] == expected


def test_dead_letters_of_functions() -> None:
    handler = models.AddsOne().with_preprocess_fn(refuse_five).with_preprocess_fn(int)
    handler = handler.with_postprocess_fn(lambda value: refuse_five(value - 6) and value)
    good, pre, bad, post = letters(handler, ["1", "5", "3", "10"])
    assert sorted(good) == [2, 4]
    assert [element for element, _ in pre] == [5]
    assert [element for element, _ in post] == [11]
    assert bad == []


def test_only_the_classes_asked_for_are_dead_letters() -> None:
    good, _, bad, _ = letters(models.AddsOne(), [1, "x"], exc_class=TypeError)
    assert (good, [batch for batch, _ in bad]) == ([2], [["x"]])
    with pytest.raises(Exception, match="TypeError"):
        letters(models.AddsOne(), [1, "x"], exc_class=(OSError, KeyError))


def test_threshold() -> None:
    good, _, bad, _ = letters(models.AddsOne(), [1, 2, 3, "x"], threshold=0.25)
    assert (len(good), len(bad)) == (3, 1)
    with pytest.raises(Exception, match=r"2 of 4 examples failed, more than the threshold of 0.25"):
        letters(models.AddsOne(), [1, 2, "y", "x"], threshold=0.25)


def test_timeout_of_a_load() -> None:
    good, _, bad, _ = letters(models.Slow(load_s=2), [0, 0], timeout=0.5)
    assert good == []
    assert [(batch, info[0]) for batch, info in bad] == [([0], TimeoutError)] * 2


def test_timeout_of_a_batch_and_the_rest_goes_on() -> None:
    good, _, bad, _ = letters(models.Slow(), [60, *([0] * 15)], timeout=4)
    assert good == [0] * 15
    assert [batch for batch, _ in bad] == [[60]]
    assert issubclass(bad[0][1][0], TimeoutError)


def test_timeout_not_hit() -> None:
    good, _, bad, _ = letters(models.Slow(load_s=0.5), [0, 0], timeout=100)
    assert (good, bad) == ([0, 0], [])


def test_errors_fail_the_pipeline_and_say_what_happened() -> None:
    with pytest.raises(
        Exception, match=r"AddsOne failed on a batch of 3 examples: TypeError: can only concatenate str"
    ):
        check([1, "x", 3], ours(models.AddsOne()), [])
    with pytest.raises(Exception, match="OSError: no such model"):
        check([1], ours(models.FailsToLoad()), [])
    with pytest.raises(Exception, match="no such model"):
        letters(models.FailsToLoad(), [1])


class Refused(Exception):
    """Of a class that the pipeline's process has."""


class Refuses(kit.ModelHandler):
    def load_model(self) -> object:
        return object()

    def run_inference(self, batch: Any, model: object, inference_args: Any = None) -> Any:
        raise (Refused if batch[0] else ValueError)("unlucky")


def test_errors_are_of_the_class_that_the_handler_raised() -> None:
    with pytest.raises(ValueError, match="ValueError: unlucky"):
        check([0], ours(Refuses()), [])
    with pytest.raises(Refused, match="unlucky") as caught:
        check([1], ours(Refuses()), [])
    assert caught.type is Refused
    with pytest.raises(TypeError, match="can only concatenate tuple"):
        check([("a", 1)], ours(models.AddsOne()), [])  # pairs for a handler without keys


class OfTwo(Exception):
    def __init__(self, code: int, words: str) -> None:
        super().__init__(code, words)


RAISED = [
    (KeyError("key"), KeyError, "KeyError('key')"),
    (RuntimeError(), RuntimeError, "RuntimeError()"),
    (OfTwo(5, "t"), OfTwo, "OfTwo(5, 't')"),
    (ValueError("two\n\nlines: of it"), ValueError, "ValueError('two\\n\\nlines: of it')"),
    (
        ValueError("Traceback (most recent call last):\nZeroDivisionError: quoted"),
        ValueError,
        "ValueError('Traceback (most recent call last):\\nZeroDivisionError: quoted')",
    ),
    (ExceptionGroup("all", [OSError("one")]), ExceptionGroup, "ExceptionGroup('all (1 sub-exception)')"),
    (StopIteration("too early"), StopIteration, "StopIteration('too early')"),
]


class RaisesOneOfThem(kit.ModelHandler):
    def load_model(self) -> object:
        return object()

    def run_inference(self, batch: Any, model: object, inference_args: Any = None) -> Any:
        raise RAISED[batch[0]][0]


def test_dead_letters_have_the_class_and_the_repr_of_the_error_that_was_raised() -> None:
    _, _, bad, _ = letters(RaisesOneOfThem(max_batch_size=1), range(len(RAISED)))
    assert [info[:2] for _, info in sorted(bad)] == [(cls, text) for _, cls, text in RAISED]
    with pytest.raises(errors.InferenceFailed, match="StopIteration: too early"):
        check([len(RAISED) - 1], ours(RaisesOneOfThem(max_batch_size=1)), [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_alive": "x"}, "keep_alive='x': give seconds"),
        ({"inference_args": 3}, "inference_args=3: give a dict"),
        ({"metrics_namespace": 4}, "metrics_namespace=4: give a name as text"),
        ({"metrics_namespace": ""}, "metrics_namespace='': give a name as text"),
        ({"model_identifier": 4}, "model_identifier=4: give a name as text"),
        ({"watch_model_pattern": 4}, "watch_model_pattern=4: give a pattern of files"),
        ({"watch_model_pattern": "*.pt", "model_metadata_pcoll": SIDE}, "both name the model"),
        ({"model_metadata_pcoll": "*.pt"}, "model_metadata_pcoll='*.pt': give a PCollection of ModelMetadata"),
        ({"watch_model_pattern": "*.pt", "interval": "a"}, "interval='a': give seconds above 0"),
        ({"watch_model_pattern": "*.pt", "interval": 0}, "interval=0: give seconds above 0"),
        ({"watch_model_pattern": "*.pt", "stop_timestamp": "never"}, "stop_timestamp='never': give a Timestamp"),
        ({"interval": 5}, "interval=5 says how files are watched: give watch_model_pattern, too"),
        ({"monitoring_transform": print}, "give a PTransform, such as beam.Map(function)"),
        ({"memory_budget": "much"}, "memory_budget='much'"),
        ({"threads": 1.5}, "threads=1.5"),
        ({"model_copies": 0, "mode": "medium"}, "model_copies=0"),
    ],
)
def test_wrong_settings_are_refused_when_the_step_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=re.escape(words)):
        ours(models.AddsOne(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exc_class": 3}, "exc_class=3: give a class"),
        ({"exc_class": ()}, "exc_class=(): give a class"),
        ({"threshold": 7}, "threshold=7: give the largest share"),
        ({"threshold": "all"}, "threshold='all': give the largest share"),
        ({"timeout": "5s"}, "timeout='5s': give seconds above 0"),
        ({"timeout": float("inf")}, "timeout=inf: give seconds above 0"),
        ({"use_subprocess": 2}, "use_subprocess=2: give True or False"),
    ],
)
def test_wrong_settings_of_dead_letters_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=re.escape(words)):
        ours(models.AddsOne()).with_exception_handling(**options)
    with pytest.raises(errors.InvalidSetting, match="model_handler_provider=3: give a function"):
        kit.beam.RunInference.from_callable(3)  # type: ignore[arg-type]


def test_a_dying_process_costs_nothing(tmp_path: Path) -> None:
    handler = models.KillsItself(str(tmp_path / "died"))
    check(range(101), ours(handler, mode="large", processes=2), range(1, 102))
    assert (tmp_path / "died").exists()


# ---- metrics -------------------------------------------------------------------------------------


def metrics_of(done: Any, name: str, namespace: str) -> list[Any]:
    found = done.metrics().query(MetricsFilter().with_name(name).with_namespace(namespace))
    return [*found["counters"], *found["distributions"]]


NAMES = {
    "num_inferences", "inference_request_batch_size", "inference_request_batch_byte_size", "model_byte_size",
    "inference_batch_latency_micro_secs", "load_model_latency_milli_secs",
}  # fmt: skip


@pytest.mark.parametrize("namespace", [None, "my_namespace"])
def test_metrics_have_beams_names(namespace: str | None) -> None:
    handler = models.AddsOne(max_batch_size=3)
    done = check(EXAMPLES, ours(handler, metrics_namespace=namespace), [2, 6, 4, 11])
    where = namespace or "AddsOne"
    beams = pipeline()
    _ = beams | beam.Create(EXAMPLES) | base.RunInference(handler, metrics_namespace=namespace)
    run = beams.run()
    run.wait_until_finish()
    for name in NAMES:
        assert len(metrics_of(done, name, where)) == len(metrics_of(run, name, where)) == 1, name
    assert metrics_of(done, "num_inferences", where)[0].committed == 4
    assert metrics_of(done, "failed_batches_counter", where) == []
    assert metrics_of(done, "num_inferences", "another") == []
    sizes = metrics_of(done, "inference_request_batch_size", where)[0].result
    assert (sizes.sum, sizes.max) == (4, 3)
    assert metrics_of(done, "inference_request_batch_byte_size", where)[0].result.sum == 4 * 8
    assert metrics_of(done, "load_model_latency_milli_secs", where)[0].result.count == 1


def test_failed_batches_are_counted() -> None:
    running = pipeline()
    _ = running | beam.Create([1, "x", 2, "y"]) | ours(models.AddsOne()).with_exception_handling()
    done = running.run()
    done.wait_until_finish()
    assert metrics_of(done, "failed_batches_counter", "AddsOne")[0].committed == 2
    assert metrics_of(done, "num_inferences", "AddsOne")[0].committed == 2


@pytest.mark.parametrize("whose", ["ours", "Beam's"])
def test_models_by_key_have_metrics_of_their_own(whose: str) -> None:
    """Under the names that Beam's keyed handler gives them: of the first key of those that share a model."""
    handler: Any = kit.KeyedModelHandler(
        [kit.KeyModelMapping([0], models.AddsOne()), kit.KeyModelMapping([1, 2, 3], models.AddsOne())]
    )
    namespace = "KeyedModels"
    if whose == "Beam's":
        handler = base.KeyedModelHandler(
            [base.KeyModelMapping([0], theirs.AddsOne()), base.KeyModelMapping([1, 2, 3], theirs.AddsOne())]
        )
        namespace = "BeamML_KeyedModels"
    running = pipeline()
    _ = running | beam.Create([*enumerate(EXAMPLES), (2, "x")]) | ours(handler).with_exception_handling()
    done = running.run()
    done.wait_until_finish()
    found = done.metrics().query(MetricsFilter().with_namespace(namespace))
    counters = {one.key.metric.name: one.committed for one in found["counters"]}
    assert counters == {
        "num_inferences": 4, "0-_num_inferences": 1, "1-_num_inferences": 3,
        "failed_batches_counter": 1, "1-_failed_batches_counter": 1,
    }  # fmt: skip
    distributions = {one.key.metric.name: one.committed for one in found["distributions"]}
    others = NAMES - {"num_inferences"}
    assert set(distributions) == {f"{start}{name}" for start in ("", "0-_", "1-_") for name in others}
    loads = [distributions[f"{start}load_model_latency_milli_secs"].count for start in ("", "0-_", "1-_")]
    assert loads == [2, 1, 1]
    assert distributions["1-_inference_request_batch_size"].sum == 3
    assert distributions["1-_inference_request_batch_byte_size"].sum == 3 * 8


def test_monitoring_sees_results_before_post_processing() -> None:
    class Monitor(beam.PTransform):
        def expand(self, results: Any) -> Any:
            keep("seen", results)
            return results

    handler = models.AddsOne().with_postprocess_fn(str)
    check([1, 2], ours(handler, monitoring_transform=Monitor()), ["2", "3"])
    assert sorted(_kept["seen"]) == [2, 3]


# ---- side inputs ---------------------------------------------------------------------------------


def test_an_empty_side_input_means_the_handlers_own_model() -> None:
    with pipeline() as running:
        side = running | "side" >> beam.Create([])
        found = running | beam.Create([1, 2]) | ours(models.GivesResults(), model_metadata_pcoll=side)
        assert_that(found, equal_to([base.PredictionResult(n, n + 1, "default") for n in (1, 2)]))


def test_each_window_is_answered_by_the_model_that_its_side_input_names() -> None:
    """Model ids and metrics' names too."""
    versions = [(0, ""), (10, "v1"), (20, "v2")]
    running = pipeline()
    side = (
        running
        | "side" >> beam.Create(versions)
        | "stamp" >> beam.Map(lambda v: window.TimestampedValue(base.ModelMetadata(v[1], v[1]), v[0]))
        | "windows" >> beam.WindowInto(window.FixedWindows(10))
    )
    found = (
        running
        | beam.Create([0, 1, 12, 13, 19, 25])
        | beam.Map(lambda number: window.TimestampedValue(number, number))
        | beam.WindowInto(window.FixedWindows(10))
        | ours(models.GivesResults(), model_metadata_pcoll=side)
    )
    keep("answers", found)
    done = running.run()
    done.wait_until_finish()
    ids = {0: "default", 1: "default", 12: "v1", 13: "v1", 19: "v1", 25: "v2"}
    assert sorted(map(tuple, _kept["answers"])) == sorted((n, n + 1, ids[n]) for n in ids)
    counted = {result.key.metric.name: result.committed for result in done.metrics().query()["counters"]}
    assert counted == {"num_inferences": 2, "v1_num_inferences": 3, "v2_num_inferences": 1}


def test_a_side_input_names_other_models_for_some_keys() -> None:
    """Those of other keys stay, also when keys that shared a model part."""
    mappings = [
        kit.KeyModelMapping(["a", "b"], models.GivesResults("ab")),
        kit.KeyModelMapping(["c"], models.GivesResults("c")),
    ]
    updates = [
        (10, [base.KeyModelPathMapping(["a"], "v1", "one")]),
        (20, [kit.KeyModelPathMapping(["c"], "v2", "two")]),
    ]
    running = pipeline()
    side = (
        running
        | "side" >> beam.Create(updates)
        | "stamp" >> beam.Map(lambda update: window.TimestampedValue(update[1], update[0]))
        | "windows" >> beam.WindowInto(window.FixedWindows(10))
    )
    found = (
        running
        | beam.Create([(key, number) for number in (1, 12, 25) for key in "abc"])
        | beam.Map(lambda pair: window.TimestampedValue(pair, pair[1]))
        | beam.WindowInto(window.FixedWindows(10))
        | ours(kit.KeyedModelHandler(mappings), model_metadata_pcoll=side)
    )
    keep("by key", found)
    done = running.run()
    done.wait_until_finish()
    ids = {1: {"a": "ab", "b": "ab", "c": "c"}, 12: {"a": "v1", "b": "ab", "c": "c"}}
    ids[25] = {**ids[12], "c": "v2"}
    expected = {(key, number, number + 1, ids[number][key]) for number in ids for key in "abc"}
    assert {(key, *result) for key, result in _kept["by key"]} == expected
    assert len(_kept["by key"]) == 9
    counted = {result.key.metric.name: result.committed for result in done.metrics().query()["counters"]}
    assert counted.pop("num_inferences") == 9
    groups = {"a-": 2, "c-": 2, "a-one-": 2, "b-": 2, "c-two-": 1}
    assert counted == {f"{group}_num_inferences": count for group, count in groups.items()}


def test_several_models_in_a_side_input_are_refused() -> None:
    running = pipeline()
    side = running | "side" >> beam.Create([base.ModelMetadata("1", "1"), base.ModelMetadata("2", "2")])
    _ = running | beam.Create([1, 2]) | ours(models.AddsOne(), model_metadata_pcoll=side)
    with pytest.raises(Exception, match=r"more than one element accessed as a singleton"):
        running.run().wait_until_finish()


def test_a_pattern_of_files_is_a_side_input() -> None:
    found = pipeline() | beam.Create([1]) | ours(models.AddsOne(), watch_model_pattern="no/such/*")
    assert "WatchFilePattern" in str(found.producer.side_inputs[0])


@pytest.mark.parametrize(("took_s", "sizes"), [(0.1, [1024, 2048, 2048]), (2.0, [512] * 3), (9.0, [256, 128, 64])])
def test_more_is_sent_at_once_to_a_fast_model_and_less_to_a_slow_one(took_s: float, sizes: list[int]) -> None:
    from kit.beam.window import AT_ONCE, Window

    found, at_once = [], AT_ONCE
    for _ in sizes:
        sent = Window(most=50, at_once=at_once)
        while not sent.add(1, None):  # type: ignore[arg-type]  # its place isn't looked at
            pass
        assert len(sent.examples) == at_once // 50 * 50, "a whole number of the handler's batches"
        sent.asked(answer := Future(), time.monotonic() - took_s)
        answer.set_result([])
        at_once = sent.next_size(at_once, waited=True)
        found.append(at_once)
    assert found == sizes
    assert sent.next_size(AT_ONCE, waited=False) <= AT_ONCE


# ---- deployments ---------------------------------------------------------------------------------


def test_a_live_deployment_serves_the_pipeline_itself(tmp_path: Path) -> None:
    import torch

    from kit.handlers import PytorchModelHandlerTensor

    torch.save({"weight": torch.tensor([[3.0]]), "bias": torch.tensor([0.0])}, tmp_path / "m.pt")
    sizes = {"in_features": 1, "out_features": 1}
    handler = PytorchModelHandlerTensor(str(tmp_path / "m.pt"), torch.nn.Linear, sizes, device="cpu")
    examples = [torch.tensor([float(number)]) for number in range(13)]
    with kit.deploy(handler, mode="large", processes=1) as deployment:
        before = deployment.counters["answered"]
        found = examples | deployment.to_beam()
        assert deployment.counters["answered"] - before == len(examples)
        expected = [result.inference.item() for result in deployment.predict(examples)]
        assert sorted(result.inference.item() for result in found) == expected
        assert not deployment.closed


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("handler", [models.AddsOne(), models.GivesResults()], ids=["bare values", "results"])
def test_a_live_deployment_of_ones_own_handler_serves_it_too(handler: Any, keyed: bool, mode: str) -> None:
    served = kit.KeyedModelHandler([kit.KeyModelMapping(["a"], handler)]) if keyed else handler
    examples = [("a", number) for number in range(13)] if keyed else list(range(13))
    with kit.deploy(served, mode=mode, processes=1) as deployment:
        found = examples | deployment.to_beam()
        assert deployment.counters["answered"] == len(examples), "no second deployment has loaded the model"
    assert found == examples | ours(served, processes=1), "the same as from a deployment of the pipeline's own"


def test_settings_go_along_and_can_be_changed() -> None:
    with kit.deploy(Doubling(), mode="medium", model_copies=3, processes=2, memory_budget="1GiB") as deployment:
        step = deployment.to_beam(inference_args=None, processes=4)
        kept = step._source.settings
        assert (kept["mode"], kept["model_copies"], kept["processes"]) == ("medium", 3, 4)
        assert kept["memory_budget"] == 2**30
        assert sorted([1, 2, 3] | deployment.to_beam()) == [2, 4, 6]
    with pytest.raises(errors.DeploymentClosed):
        deployment.to_beam()


def test_a_step_shows_how_it_is_served_and_by_which_deployment() -> None:
    step = ours(models.AddsOne(), mode="medium", model_copies=3, processes=1, threads=2)
    words = "AddsOne: mode 'medium', 1 process × 2 threads, 3 copies of the model; deployment"
    assert str(step) == repr(step) == f"<kit.beam.RunInference of {words} {step.deployment_name!r}>"
    assert step.deployment_name.startswith("beam-")
    assert step.deployment_name != ours(models.AddsOne(), mode="large").deployment_name
    by_key = ours(kit.KeyedModelHandler([kit.KeyModelMapping(["a"], models.AddsOne())]), processes=2)
    assert "KeyedModelHandler: mode 'default', 2 processes × 1 thread, models by key;" in repr(by_key)


def test_the_best_of_a_comparison_goes_into_a_pipeline() -> None:
    compared = kit.compare(Doubling(), list(range(64)), modes=["default"], processes=1, repeats=1, seconds=0.1)
    step = compared.best().to_beam()
    assert step._source.settings["mode"] == "default"
    assert sorted([1, 2, 3] | step) == [2, 4, 6]
    with pytest.raises(errors.InvalidSetting, match="no mode to take into a pipeline"):
        compared.best(memory_budget=1).to_beam()


def test_nothing_of_a_pipeline_is_left_over() -> None:
    check(range(5), ours(models.AddsOne()), range(1, 6))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kit-")]


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        (3, {}, "isn't a model handler"),
        (models.AddsOne, {}, "is a class"),
        (models.AddsOne(), {"mode": "huge"}, "mode='huge'"),
        (models.AddsOne(), {"proceses": 2}, "no option 'proceses': did you mean 'processes'"),
        (models.AddsOne(), {"processes": 0}, "processes=0"),
    ],
)
def test_bad_input(target: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=words):
        kit.beam.RunInference(target, **options)
    with pytest.raises(errors.InvalidSetting, match="timeout=0"):
        kit.beam.RunInference(models.AddsOne()).with_exception_handling(timeout=0)

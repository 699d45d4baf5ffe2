"""Beam's own RunInference accepts the kit's handlers, and the kit's handlers do what Beam's do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kit.assets
from kit.handlers import (
    HuggingFaceModelHandlerKeyedTensor,
    HuggingFacePipelineModelHandler,
    PytorchModelHandlerKeyedTensor,
    PytorchModelHandlerTensor,
    SentenceTransformerModelHandler,
    SklearnModelHandlerNumpy,
    SklearnModelHandlerPandas,
)

base = pytest.importorskip("apache_beam.ml.inference.base")

import apache_beam as beam  # noqa: E402
from apache_beam.metrics import MetricsFilter  # noqa: E402
from apache_beam.testing.util import assert_that, equal_to  # noqa: E402


class LinearRegression(torch.nn.Module):
    def __init__(self, input_dim: int = 1, output_dim: int = 1) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(input_dim, output_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def run(handler: Any, examples: list[Any], **settings: Any) -> list[Any]:
    """Predictions of Beam's RunInference on its DirectRunner, in the order of the examples."""
    keyed = base.KeyedModelHandler(handler)
    found = sorted(list(enumerate(examples)) | base.RunInference(keyed, **settings), key=lambda item: item[0])
    assert [key for key, _ in found] == list(range(len(examples)))
    return [value for _, value in found]


@pytest.fixture
def weights(tmp_path: Path) -> tuple[torch.nn.Module, str]:
    model = LinearRegression().eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return model, str(tmp_path / "model.pt")


def test_tensors_as_with_beams_own_handler(weights: tuple[torch.nn.Module, str]) -> None:
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor as Theirs

    model, path = weights
    examples = [torch.tensor([float(number)]) for number in (10, 40, 60, 90)]
    settings = {
        "model_class": LinearRegression, "model_params": {"input_dim": 1, "output_dim": 1}, "state_dict_path": path,
        "min_batch_size": 2, "max_batch_size": 3,
    }  # fmt: skip
    ours = run(PytorchModelHandlerTensor(**settings), examples)
    theirs = run(Theirs(**settings), examples)
    for a, b, example in zip(ours, theirs, examples, strict=True):
        assert torch.equal(a.inference, b.inference)
        assert torch.equal(a.inference, model(example))
        assert a.model_id == b.model_id == path


def test_unkeyed_pipeline_with_functions_before_and_after(weights: tuple[torch.nn.Module, str]) -> None:
    model, path = weights
    handler = (
        PytorchModelHandlerTensor(path, LinearRegression)
        .with_preprocess_fn(lambda number: torch.tensor([float(number)]))
        .with_postprocess_fn(lambda result: (result.example.item(), result.inference.item()))
    )
    assert dict([1, 2, 3] | base.RunInference(handler)) == {
        x: pytest.approx(model(torch.tensor([x])).item()) for x in (1.0, 2.0, 3.0)
    }


def test_large_model_in_beams_shared_process(weights: tuple[torch.nn.Module, str], tmp_path: Path) -> None:
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor as Theirs

    handler = PytorchModelHandlerTensor(weights[1], LinearRegression, large_model=True, model_copies=2)
    theirs = Theirs(weights[1], LinearRegression, large_model=True, model_copies=2)
    assert handler.share_model_across_processes() == theirs.share_model_across_processes() is True
    assert handler.model_copies() == theirs.model_copies() == 2
    # Beam's shared process leaves sockets open, so a process of its own has this.
    code = """
        import sys
        import torch
        from apache_beam.ml.inference.base import RunInference
        from kit.handlers import PytorchModelHandlerTensor
        if __name__ == "__main__":
            state = {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}
            torch.save(state, sys.argv[1])
            handler = PytorchModelHandlerTensor(
                sys.argv[1], torch.nn.Linear, {"in_features": 1, "out_features": 1}, large_model=True
            )
            found = [torch.tensor([1.0]), torch.tensor([5.0])] | RunInference(handler)
            print(sorted(result.inference.item() for result in found))
    """
    assert printed(code, tmp_path / "linear.pt") == "[3.0, 11.0]"


def printed(code: str, *arguments: object) -> str:
    """What a script prints, in a process of its own."""
    script = Path(str(arguments[0])).with_suffix(".py")
    script.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1], check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_models_of_libraries_in_beams_shared_process(tmp_path: Path) -> None:
    """Beam gives handlers a stand-in for the model there: its methods, none of its attributes."""
    code = """
        import sys
        import numpy as np
        import kit
        from apache_beam.ml.inference.base import RunInference
        from kit.handlers import HuggingFacePipelineModelHandler
        def first(numbers):  # of a text that is padded in a batch, what padding leaves
            return np.ravel(np.asarray(numbers))[:384]
        if __name__ == "__main__":
            texts = kit.assets.texts("tickets")[:9]
            minilm = str(kit.assets.path("minilm"))
            for make in (
                lambda **o: kit.assets.handler("minilm", device="cpu", **o),
                lambda **o: HuggingFacePipelineModelHandler("feature-extraction", minilm, device="cpu", **o),
            ):
                right = {one.example: one.inference for one in texts | kit.RunInference(make())}
                found = texts | RunInference(make(large_model=True))
                same = [np.allclose(first(one.inference), first(right[one.example]), atol=1e-4) for one in found]
                print(len(same), all(same))
    """
    assert printed(code, tmp_path / "shared") == "9 True\n9 True"


def test_keyed_tensors(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "adder.pt")
    handler = PytorchModelHandlerKeyedTensor(str(tmp_path / "adder.pt"), Adder)
    examples = [{"a": torch.tensor([1.0]), "b": torch.tensor([float(i)])} for i in range(4)]
    assert [r.inference["sum"].item() for r in run(handler, examples)] == [1.0, 2.0, 3.0, 4.0]


class Adder(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": a + b}


def test_sklearn(tmp_path: Path) -> None:
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(0).random((30, 3))
    model = LogisticRegression().fit(x, x[:, 0] > 0.5)
    path = str(tmp_path / "model.pkl")
    Path(path).write_bytes(pickle.dumps(model))
    assert [r.inference for r in run(SklearnModelHandlerNumpy(path), list(x))] == list(model.predict(x))
    frame = pd.DataFrame(x)
    found = run(SklearnModelHandlerPandas(path), [frame.iloc[[i]] for i in range(30)])
    assert [r.inference for r in found] == list(model.predict(x))


def test_pipeline_and_sentence_transformer() -> None:
    from sentence_transformers import SentenceTransformer

    minilm = str(kit.assets.path("minilm"))
    texts = kit.assets.texts("tickets")[:12]
    expected = SentenceTransformer(minilm, device="cpu").encode(texts)
    found = run(SentenceTransformerModelHandler(minilm, device="cpu"), texts)
    assert np.abs(np.stack([r.inference for r in found]) - expected).max() < 1e-6
    pipe = HuggingFacePipelineModelHandler("feature-extraction", minilm, device="cpu")
    loaded = pipe.load_model()
    answers = run(pipe, texts, inference_args={"return_tensors": True})
    for text, result, vector in zip(texts, answers, expected, strict=True):
        assert result.example == text
        # MiniLM's embedding is the mean of its tokens' vectors, scaled; padding isn't part of it.
        alone = pipe.infer_batch([text], loaded, {"return_tensors": True})[0]
        mean = alone[0].mean(0).numpy()
        assert np.abs(mean / np.linalg.norm(mean) - vector).max() < 1e-5
        assert torch.allclose(result.inference[0, : alone.shape[1]], alone[0], atol=1e-4)


def test_failing_examples_come_out_apart(weights: tuple[torch.nn.Module, str]) -> None:
    model, path = weights
    handler = PytorchModelHandlerTensor(path, LinearRegression, max_batch_size=1)
    handler = handler.with_preprocess_fn(lambda text: torch.tensor([float(text)]))
    handler = handler.with_postprocess_fn(lambda result: round(result.inference.item(), 4))
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        texts = pipeline | beam.Create(["1", "two", "3"])
        good, failed = texts | base.RunInference(handler).with_exception_handling()
        expected = [round(model(torch.tensor([x])).item(), 4) for x in (1.0, 3.0)]
        assert_that(good, equal_to(expected))
        assert_that(failed.failed_preprocessing[0] | beam.Map(lambda letter: letter[0]), equal_to(["two"]), label="bad")
        assert_that(failed.failed_inferences, equal_to([]), label="none")


def test_a_side_input_names_the_weights(tmp_path: Path) -> None:
    """Beam calls ``update_model_path`` and loads again; the model's id is the path."""
    for factor in (2.0, 5.0):
        torch.save({"weight": torch.tensor([[factor]]), "bias": torch.zeros(1)}, tmp_path / f"{factor:g}.pt")
    sizes = {"in_features": 1, "out_features": 1}
    handler = PytorchModelHandlerTensor(str(tmp_path / "2.pt"), torch.nn.Linear, sizes, device="cpu")
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        side = pipeline | "side" >> beam.Create([base.ModelMetadata(str(tmp_path / "5.pt"), "five")])
        numbers = pipeline | beam.Create([1.0, 3.0]) | beam.Map(lambda number: torch.tensor([number]))
        results = numbers | base.RunInference(handler, model_metadata_pcoll=side)
        found = results | beam.Map(lambda result: (result.inference.item(), Path(result.model_id).name))
        assert_that(found, equal_to([(5.0, "5.pt"), (15.0, "5.pt")]))


def test_metrics_have_the_handlers_namespace(weights: tuple[torch.nn.Module, str]) -> None:
    handler = PytorchModelHandlerTensor(weights[1], LinearRegression)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    numbers = pipeline | beam.Create([1.0, 2.0, 3.0]) | beam.Map(lambda number: torch.tensor([number]))
    _ = numbers | base.RunInference(handler)
    done = pipeline.run()
    done.wait_until_finish()
    found = done.metrics().query(MetricsFilter().with_namespace(handler.get_metrics_namespace()))
    assert {one.key.metric.name: one.committed for one in found["counters"]} == {"num_inferences": 3}
    sizes = {one.key.metric.name: one.committed.sum for one in found["distributions"]}
    assert sizes["inference_request_batch_byte_size"] == 3 * 4
    assert sizes["inference_request_batch_size"] == 3
    assert "load_model_latency_milli_secs" in sizes


def test_hugging_face_models_and_prebatched_examples(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    minilm = str(kit.assets.path("minilm"))
    tokens = AutoTokenizer.from_pretrained(minilm)(kit.assets.texts("tickets")[:3], padding=True, return_tensors="pt")
    examples = [{name: tokens[name][at] for name in ("input_ids", "attention_mask")} for at in range(3)]
    handler = HuggingFaceModelHandlerKeyedTensor(minilm, AutoModel, framework="pt", device="cpu")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(minilm).eval()(**tokens).last_hidden_state
    for result, wanted in zip(run(handler, examples), expected, strict=True):
        assert torch.allclose(result.inference["last_hidden_state"], wanted, atol=1e-4)
    batch = [torch.ones(1), torch.zeros(1)]
    torch.save({}, tmp_path / "identity.pt")
    identity = PytorchModelHandlerTensor(str(tmp_path / "identity.pt"), torch.nn.Identity, device="cpu")
    found = [batch] | base.RunInference(identity.with_no_batching())
    assert [result.inference.item() for result in found] == [1.0, 0.0]


def test_several_copies_of_a_model(tmp_path: Path) -> None:
    """``model_copies``: Beam's workers ask them in turn."""
    code = """
        import os, sys
        import torch
        from apache_beam.ml.inference.base import RunInference
        from kit.handlers import PytorchModelHandlerTensor
        if __name__ == "__main__":
            torch.save({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}, sys.argv[1])
            sizes = {"in_features": 1, "out_features": 1}
            handler = PytorchModelHandlerTensor(sys.argv[1], torch.nn.Linear, sizes, model_copies=2, max_batch_size=3)
            found = [torch.tensor([float(number)]) for number in range(11)] | RunInference(handler)
            print(sorted(int(result.inference.item()) for result in found) == list(range(1, 23, 2)))
            sys.stdout.flush()
            os._exit(0)  # Beam's servers of the copies don't end by themselves
    """
    script = tmp_path / "copies.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, script, tmp_path / "linear.pt"], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[1], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr


def test_options_have_beams_names() -> None:
    """The same constructor arguments give the same ``batch_elements_kwargs``, sharing and copies as Beam's class."""
    options: list[dict[str, Any]] = [
        {},
        {"min_batch_size": 10},
        {"max_batch_size": 50},
        {"max_batch_duration_secs": 60},
        {"min_batch_size": 5, "max_batch_size": 20, "max_batch_duration_secs": 30, "max_batch_weight": 100},
        {"max_batch_size": 20, "max_batch_weight": 100, "element_size_fn": len},
        {"batch_length_fn": len},
        {"batch_length_fn": len, "batch_bucket_boundaries": [16, 32, 64]},
        {"large_model": True},
        {"model_copies": 2},
    ]
    for given in options:
        ours, theirs = kit.ModelHandler(**given), base.ModelHandler(**given)
        assert dict(ours.batch_elements_kwargs()) == dict(theirs.batch_elements_kwargs()), given
        assert ours.share_model_across_processes() == theirs.share_model_across_processes()
        assert ours.model_copies() == theirs.model_copies()


@pytest.mark.parametrize(("weight", "sizes"), [(0, {8, 4}), (50, {2}), (1_000_000, {1})])
def test_elements_may_weigh_nothing_or_more_than_a_batch_may(weight: int, sizes: set[int]) -> None:
    """The function of the user is taken as it is; batches are bounded by their number, or are of one element."""

    class Sizes(kit.ModelHandler):
        def load_model(self) -> object:
            return object()

        def run_inference(self, batch: Any, model: object, inference_args: Any = None) -> Any:
            return [len(batch)] * len(batch)

    handler = Sizes(max_batch_size=8, max_batch_weight=100, element_size_fn=lambda element: weight)
    assert handler.batch_elements_kwargs()["element_size_fn"](999) == weight
    examples = list(range(20))
    assert {prediction.inference for prediction in examples | kit.RunInference(handler)} == sizes
    with kit.deploy(handler, processes=1) as deployment:
        assert {prediction.inference for prediction in deployment.predict(examples)} == sizes


def test_the_table_of_behaviours_names_tests_that_there_are() -> None:
    """Every test of Beam's is in the table, and every test that the table names exists."""
    import re

    folder = Path(__file__).parent
    table = (folder / "beam_behaviours.md").read_text()
    source = Path(base.__file__).with_name("base_test.py").read_text()
    assert re.findall(r"^\| `(test_\w+)` \|", table, re.MULTILINE) == re.findall(
        r"^  def (test_\w+)\(", source, re.MULTILINE
    )
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)", table):
        assert f"def {name}(" in (folder / file).read_text(), (file, name)

"""Apache Beam's own handlers, unmodified, in every serving mode of the kit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kit
from kit import RunInference, errors
from kit.settings import MODES

base = pytest.importorskip("apache_beam.ml.inference.base")

from tests import beam_handlers  # noqa: E402
from tests.beam_models import Model  # noqa: E402


class Affine(torch.nn.Module):
    """2 x + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def in_modes(handler: Any, examples: list[Any], modes: Any = MODES) -> dict[str, list[Any]]:
    """Predictions in each mode, of one deployment that is switched from one to the next."""
    found: dict[str, list[Any]] = {}
    first, *others = modes
    with kit.deploy(handler, mode=first, processes=2, sample=examples[:2]) as deployment:
        found[first] = deployment.predict(examples)
        for mode in others:
            deployment.switch(mode)
            assert deployment.mode == mode
            found[mode] = list(examples | RunInference(deployment))
    assert all(len(predictions) == len(examples) for predictions in found.values())
    return found


def test_pytorch(tmp_path: Path) -> None:
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

    state = {"linear.weight": torch.tensor([[2.0]]), "linear.bias": torch.tensor([1.0])}
    torch.save(state, tmp_path / "m.pt")
    handler = PytorchModelHandlerTensor(str(tmp_path / "m.pt"), Affine, {}, max_batch_size=4)
    examples = [torch.tensor([float(number)]) for number in range(11)]
    for predictions in in_modes(handler, examples).values():
        assert [p.inference.item() for p in predictions] == [2.0 * number + 1 for number in range(11)]
        assert {p.model_id for p in predictions} == {str(tmp_path / "m.pt")}
        assert all(p.example is example for p, example in zip(predictions, examples, strict=True))


def test_pytorch_with_functions_and_a_hot_update(tmp_path: Path) -> None:
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

    for number in (1, 2):
        state = {"linear.weight": torch.tensor([[float(number)]]), "linear.bias": torch.zeros(1)}
        torch.save(state, tmp_path / f"{number}.pt")
    handler = PytorchModelHandlerTensor(str(tmp_path / "1.pt"), Affine, {})
    handler = handler.with_preprocess_fn(lambda text: torch.tensor([float(text)]))
    handler = handler.with_postprocess_fn(lambda result: result.inference.item())
    with kit.deploy(handler, mode="large", processes=1) as deployment:
        assert deployment.predict(["3", "4"]) == [3.0, 4.0]
        deployment.update_model(tmp_path / "2.pt")
        assert deployment.predict(["3", "4"]) == [6.0, 8.0]


def test_sklearn(tmp_path: Path) -> None:
    import pandas as pd
    from apache_beam.ml.inference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(0).random((13, 3))
    model = LogisticRegression().fit(x, x[:, 0] > 0.5)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model))
    expected = model.predict(x).tolist()
    for predictions in in_modes(SklearnModelHandlerNumpy(str(tmp_path / "m.pkl")), list(x)).values():
        assert [bool(p.inference) for p in predictions] == expected
    frame = pd.DataFrame(x)
    frames = [frame.iloc[[at]] for at in range(len(frame))]
    for predictions in in_modes(SklearnModelHandlerPandas(str(tmp_path / "m.pkl")), frames, ("shared",)).values():
        assert [bool(p.inference) for p in predictions] == expected


def test_a_model_a_key() -> None:
    """The kit's manager has the models: bytes, loads and a limit on how many; an unknown key fails alone."""
    mappings = [
        base.KeyModelMapping(["a"], beam_handlers.AddsOne()),
        base.KeyModelMapping(["b", "c"], beam_handlers.GivesResults()),
    ]
    handler = base.KeyedModelHandler(mappings, max_models_per_worker_hint=1)
    handler = handler.with_preprocess_fn(lambda pair: (pair[0], int(pair[1])))
    examples = [("abc"[number % 3], str(number)) for number in range(31)]
    for predictions in in_modes(handler, examples).values():
        assert [(key, p.inference) for key, p in predictions] == [(key, int(text) + 1) for key, text in examples]
        assert [p.model_id for key, p in predictions] == [None if key == "a" else "theirs" for key, _ in examples]
    with kit.deploy(handler, processes=1) as deployment:
        deployment.predict(examples)
        models = deployment.models()
        assert sorted(models["keys"]) == [["a"], ["b", "c"]]
        assert (models["state"] == "resident").sum() == 1
        found = [*examples, ("unknown", "1")] | RunInference(deployment).with_exception_handling()
        assert [type(one).__name__ for one in found] == ["tuple"] * 31 + ["Failure"]
    assert [key for key, _ in examples | RunInference(handler)] == [key for key, _ in examples]


@pytest.mark.parametrize("inner", [beam_handlers.AddsOne(), beam_handlers.GivesResults()])
def test_one_handler_for_all_keys(inner: Any) -> None:
    pairs = [("ab"[number % 2], number) for number in range(31)]
    handler = base.KeyedModelHandler(inner).with_preprocess_fn(lambda pair: (pair[0], pair[1] + 1))
    for predictions in in_modes(handler, pairs, ("shared",)).values():
        assert [(key, p.inference) for key, p in predictions] == [(key, number + 2) for key, number in pairs]
    mixed = [1, ("a", 2), 3]
    with kit.deploy(base.MaybeKeyedModelHandler(inner), processes=1) as deployment:
        assert [p.inference for p in deployment.predict([1, 3])] == [2, 4]
        assert [(key, p.inference) for key, p in deployment.predict(pairs)] == [(key, n + 1) for key, n in pairs]
        with pytest.raises(kit.errors.UnsupportedInput, match=r"example 0, 1 \(int\), has no key"):
            deployment.predict(mixed)


#: Beam 2.77's module imports TensorFlow, and a class that transformers 5 no longer has; its pipelines need neither.
TENSORFLOW = """
import transformers

class Tensor:
    pass

type(transformers).TFAutoModel = object  # of the class: the module is made anew by some of its imports
"""


def test_hugging_face_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW)
    monkeypatch.syspath_prepend(tmp_path)
    from apache_beam.ml.inference.huggingface_inference import HuggingFacePipelineModelHandler

    minilm = str(kit.assets.path("minilm"))
    handler = HuggingFacePipelineModelHandler(task="feature-extraction", model=minilm, device="CPU")
    texts = kit.assets.texts("tickets")[:5]
    pipe = handler.load_model()
    expected = [np.array(pipe(text))[0] for text in texts]
    for mode, predictions in in_modes(handler, texts, ("large", "shared")).items():
        for text, prediction, vectors in zip(texts, predictions, expected, strict=True):
            assert prediction.example == text
            assert np.abs(np.array(prediction.inference)[0] - vectors).max() < 1e-4, mode


def test_onnx_and_the_error_of_a_model_that_cant_be_pickled(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", kind, [None, 3])],
        [helper.make_tensor_value_info("y", kind, [None, 3])],
        [helper.make_tensor("w", kind, [1], [2.0]), helper.make_tensor("b", kind, [1], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "m.onnx"))
    handler = OnnxModelHandlerNumpy(str(tmp_path / "m.onnx"))
    examples = list(np.random.default_rng(0).random((9, 3), dtype=np.float32))
    for predictions in in_modes(handler, examples, ("default", "medium", "large")).values():
        for prediction, example in zip(predictions, examples, strict=True):
            assert np.allclose(np.asarray(prediction.inference).reshape(3), 2 * example + 1)
    with pytest.raises(errors.SharedModeUnavailable, match=r"InferenceSession.*'large'"):
        kit.deploy(handler, mode="shared", processes=1)
    with kit.deploy(handler, mode="large", processes=1) as deployment:
        with pytest.raises(errors.SharedModeUnavailable, match="InferenceSession"):
            deployment.switch("shared")
        assert deployment.mode == "large"
        assert len(deployment.predict(examples)) == 9


def test_any_subclass_and_generators() -> None:
    """Bare values and PredictionResults, both one by one."""
    expected = [number + 1 for number in range(23)]
    for handler in (beam_handlers.AddsOne(max_batch_size=5), beam_handlers.GivesResults()):
        for predictions in in_modes(handler, list(range(23))).values():
            assert [p.inference for p in predictions] == expected
    assert {p.model_id for p in predictions} == {"theirs"}


def test_large_model_and_copies_choose_the_mode() -> None:
    with kit.deploy(beam_handlers.AddsOne(large_model=True), processes=1) as deployment:
        assert deployment.mode == "large"
        assert [p.inference for p in deployment.predict([1, 2])] == [2, 3]
    with kit.deploy(beam_handlers.AddsOne(model_copies=2), processes=1) as deployment:
        assert (deployment.mode, deployment.settings.model_copies) == ("medium", 2)


def test_prebatched() -> None:
    with kit.deploy(beam_handlers.AddsOne().with_no_batching(), processes=1) as deployment:
        assert [p.inference for p in deployment.predict([[1, 5], [3]])] == [[2, 6], [4]]


def test_remote_handlers() -> None:
    with kit.deploy(beam_handlers.Remote(failures=1), processes=1) as deployment:
        assert [p.inference for p in deployment.predict([1, 5])] == [2, 6]
    with kit.deploy(beam_handlers.Remote(failures=99, retries=0), processes=1) as deployment:
        with pytest.raises(errors.InferenceFailed, match="ConnectionError: the endpoint is busy"):
            deployment.predict([1])
    limited = beam_handlers.Limited()
    assert limited.load_model().step == Model().step
    with kit.deploy(limited, processes=1) as deployment:
        with pytest.raises(errors.InferenceFailed, match="RateLimitExceeded"):
            deployment.predict([1])


def test_a_class_of_a_notebook_cell() -> None:
    """Handlers that no module has travel by value, Beam's too."""
    from tests import beam_models

    class Local(base.ModelHandler[int, int, Model]):
        def load_model(self) -> Model:
            return beam_models.Model(5)

        def run_inference(self, batch: Any, model: Model, inference_args: Any = None) -> Any:
            return (model.predict(example) for example in batch)

    with kit.deploy(Local(), processes=1) as deployment:
        assert [p.inference for p in deployment.predict([1, 2])] == [6, 7]

"""Every code slide of the talk, run with the kit in Beam's place."""

from __future__ import annotations

import numpy
import pytest
import torch

import kit
from kit import KeyedModelHandler, KeyModelMapping, RunInference
from kit.handlers import PytorchModelHandlerTensor


class LinearRegression(torch.nn.Module):
    def __init__(self, input_dim=1, output_dim=1):
        super().__init__()
        self.linear = torch.nn.Linear(input_dim, output_dim)

    def forward(self, x):
        return self.linear(x)


@pytest.fixture
def state_dict_path(tmp_path):
    return saved(tmp_path / "model.pt", 5.0, 0.5)


def saved(path, weight, bias):
    model = LinearRegression()
    with torch.no_grad():
        model.linear.weight.fill_(weight)
        model.linear.bias.fill_(bias)
    torch.save(model.state_dict(), path)
    return str(path)


DATA = numpy.array([10, 40, 60, 90], dtype=numpy.float32).reshape(-1, 1)
EXPECTED = [50.5, 200.5, 300.5, 450.5]


def assert_right(predictions):
    assert [float(p.inference[0]) for p in predictions] == pytest.approx(EXPECTED)


def mode_of(transform):
    deployment = transform._deployment()
    return None if deployment is None else deployment.mode


def test_run_inference(state_dict_path):
    data = numpy.array([10, 40, 60, 90], dtype=numpy.float32).reshape(-1, 1)
    model_handler = PytorchModelHandlerTensor(
        model_class=LinearRegression,
        model_params={"input_dim": 1, "output_dim": 1},
        state_dict_path=state_dict_path,
    )
    predictions = list(map(torch.Tensor, data) | RunInference(model_handler=model_handler))
    assert_right(predictions)
    assert [float(p.example[0]) for p in predictions] == [10, 40, 60, 90]
    assert predictions[0].model_id == state_dict_path


def test_built_in_model_handler_using_default_configuration(state_dict_path):
    model_handler = PytorchModelHandlerTensor(
        model_class=LinearRegression, model_params={"input_dim": 1, "output_dim": 1}, state_dict_path=state_dict_path
    )
    assert_right(torch.from_numpy(DATA) | RunInference(model_handler=model_handler))
    with kit.deploy(model_handler) as deployment:
        assert deployment.mode == "default"
        assert_right(torch.from_numpy(DATA) | RunInference(deployment))


def test_built_in_model_handler_using_large_model_configuration(state_dict_path):
    model_handler = PytorchModelHandlerTensor(
        model_class=LinearRegression,
        large_model=True,
        model_params={"input_dim": 1, "output_dim": 1},
        state_dict_path=state_dict_path,
    )
    transform = RunInference(model_handler=model_handler)
    try:
        assert_right(torch.from_numpy(DATA) | transform)
        assert mode_of(transform) == "large"
    finally:
        kit.close_all()


class Regression:
    def predict(self, batch):
        return [5.0 * float(x[0]) + 0.5 for x in batch]


class CustomHandler(kit.ModelHandler):
    """The slides' `run_inference(model, batch, ...)` is short for Beam's (batch, model, inference_args)."""

    def load_model(self):
        return Regression()

    def run_inference(self, batch, model, inference_args=None):
        return model.predict(batch)


class LargeCustomHandler(CustomHandler):
    def share_model_across_processes(self) -> bool:
        return True


class MediumCustomHandler(CustomHandler):
    def share_model_across_processes(self) -> bool:
        return True

    def model_copies(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("handler", "mode", "copies"),
    [(CustomHandler(), "default", 2), (LargeCustomHandler(), "large", 1), (MediumCustomHandler(), "medium", 4)],
)
def test_custom_model_handler_configurations(handler, mode, copies):
    with kit.deploy(handler) as deployment:
        assert deployment.mode == mode
        assert deployment.settings.copies == copies
        hosts = (deployment.stats().role == "host").sum()
        assert hosts == (0 if mode == "default" else copies)
        assert [p.inference for p in DATA | RunInference(deployment)] == EXPECTED


@pytest.fixture
def mh1(state_dict_path):
    return PytorchModelHandlerTensor(
        model_class=LinearRegression, model_params={"input_dim": 1, "output_dim": 1}, state_dict_path=state_dict_path
    )


def test_one_model_is_just_a_configuration(mh1):
    assert_right(torch.from_numpy(DATA) | RunInference(mh1))


@pytest.mark.parametrize("mode", [None, "default", "large"])
def test_a_model_a_key_is_just_a_configuration_too(mh1, tmp_path, mode):
    mh2 = PytorchModelHandlerTensor(
        model_class=LinearRegression,
        model_params={"input_dim": 1, "output_dim": 1},
        state_dict_path=saved(tmp_path / "model2.pt", -1.0, 0.0),
    )
    per_key_mhs = [KeyModelMapping(["key1", "key2", "key3"], mh1), KeyModelMapping(["foo", "bar", "baz"], mh2)]
    mh = KeyedModelHandler(per_key_mhs)
    pcoll = [(key, torch.tensor([10.0])) for key in ("key1", "foo", "key3", "baz", "bar", "key2")]

    def check(predictions):
        assert [key for key, _ in predictions] == [key for key, _ in pcoll]
        assert [float(p.inference[0]) for _, p in predictions] == pytest.approx([50.5, -10, 50.5, -10, -10, 50.5])
        assert [p.model_id for _, p in predictions][:2] == [mh1.model_id, mh2.model_id]

    if mode is None:
        transform = RunInference(mh)
        check(pcoll | transform)
        assert sorted(map(len, transform.models()["keys"])) == [3, 3]
        assert list(transform.models()["loads"]) == [1, 1]  # a model for three keys, loaded once
        return
    with kit.deploy(mh, mode=mode, processes=2) as deployment:
        check(pcoll | RunInference(deployment))

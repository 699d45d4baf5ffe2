"""PyTorch handlers: loading (state dict, safetensors, TorchScript), batches, and every way a file can be wrong."""

from __future__ import annotations

import os
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from kit import ModelHandler, RunInference, errors
from kit.handlers import (
    PytorchModelHandlerKeyedTensor,
    PytorchModelHandlerTensor,
    make_keyed_tensor_model_fn,
    make_tensor_model_fn,
    state_dicts,
)


class Net(torch.nn.Module):
    def __init__(self, width: int = 4, out: int = 3) -> None:
        super().__init__()
        self.first = torch.nn.Linear(width, 8)
        self.last = torch.nn.Linear(8, out)
        self.drop = torch.nn.Dropout(0.5)
        self.register_buffer("table", torch.arange(out) / out, persistent=False)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * self.last(self.drop(torch.relu(self.first(x)))) + self.table

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self(x)


class Pair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
        return {"sum": self.net(a + b), "layers": (a, b), "name": ["x"] * len(a), "cache": object()}

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * b


@pytest.fixture
def net(tmp_path: Path) -> tuple[Net, Path]:
    model = Net().eval()
    path = tmp_path / "net.pt"
    torch.save(model.state_dict(), path)
    return model, path


def rows(count: int = 5) -> list[torch.Tensor]:
    return list(torch.randn(count, 4))


def inferences(handler: Any, batch: Any, model: Any = None, **args: Any) -> torch.Tensor:
    results = list(handler.run_inference(batch, model or handler.load_model(), args or None))
    assert len(results) == len(batch)
    assert all(result.example is example for result, example in zip(results, batch, strict=True))
    assert {result.model_id for result in results} == {handler.model_id}
    return torch.stack([result.inference for result in results])


def test_state_dict(net: tuple[Net, Path]) -> None:
    model, path = net
    handler = PytorchModelHandlerTensor(path, Net)
    loaded = handler.load_model()
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    batch = rows()
    assert torch.equal(inferences(handler, batch, loaded), model(torch.stack(batch)))
    assert torch.equal(inferences(handler, batch, loaded, scale=3.0), model(torch.stack(batch), scale=3.0))
    assert handler.get_num_bytes(batch) == 5 * 4 * 4


def test_safetensors_torchscript_and_urls(net: tuple[Net, Path], tmp_path: Path) -> None:
    import fsspec

    model, _ = net
    batch = rows()
    expected = model(torch.stack(batch))
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(model).save(str(tmp_path / "net.ts"))
        scripted = PytorchModelHandlerTensor(torch_script_model_path=f"file://{tmp_path}/net.ts")
        assert torch.equal(inferences(scripted, batch), expected)
    for name in ("net.pt", "net.safetensors"):
        with fsspec.open(f"memory://weights/{name}", "wb") as file:
            file.write((tmp_path / name).read_bytes())
        for place in (tmp_path / name, f"memory://weights/{name}"):
            assert torch.equal(inferences(PytorchModelHandlerTensor(place, Net), batch), expected)


def test_weights_are_not_tied_to_the_file(net: tuple[Net, Path], tmp_path: Path) -> None:
    model, path = net
    file = tmp_path / "net.safetensors"
    save_file(model.state_dict(), file)
    for place in (path, file):
        loaded = PytorchModelHandlerTensor(place, Net).load_model()
        place.write_bytes(b"")  # as a training run that saves again does
        assert torch.equal(loaded.last.weight, model.last.weight)


def test_numpy_rows_numbers_and_stacked_input(net: tuple[Net, Path]) -> None:
    model, path = net
    handler = PytorchModelHandlerTensor(path, Net)
    loaded = handler.load_model()
    array = np.random.default_rng(0).random((6, 4), dtype=np.float32)
    expected = model(torch.from_numpy(array.copy()))
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(inferences(handler, list(array), loaded), expected)
        assert handler.can_infer_stacked
        assert torch.equal(handler.infer_stacked(array, loaded), expected)
        backwards = handler.infer_stacked(array[::-1], loaded)
        assert torch.allclose(backwards, expected.flip(0), atol=1e-6)
    assert torch.equal(handler.infer_stacked(torch.from_numpy(array.copy()), loaded), expected)
    numbers = [row.tolist() for row in array]
    assert torch.allclose(inferences(handler, numbers, loaded), expected, atol=1e-6)


def test_predictions_can_be_trained_on_and_changed(net: tuple[Net, Path]) -> None:
    handler = PytorchModelHandlerTensor(net[1], Net)
    found = [result.inference for result in handler.run_inference(rows(), handler.load_model())]
    found[0] += 1
    head = torch.nn.Linear(3, 1)
    head(torch.stack(found)).sum().backward()
    assert head.weight.grad is not None


def test_keyed_tensors_and_dict_outputs(tmp_path: Path) -> None:
    model = Pair().eval()
    torch.save(model.state_dict(), tmp_path / "pair.pt")
    handler = PytorchModelHandlerKeyedTensor(tmp_path / "pair.pt", Pair)
    assert not handler.can_infer_stacked
    batch = [{"a": a, "b": b} for a, b in zip(rows(), rows(), strict=True)]
    results = list(handler.run_inference(batch, handler.load_model()))
    for example, result in zip(batch, results, strict=True):
        assert result.inference.keys() == {"sum", "layers", "name"}
        assert torch.allclose(result.inference["sum"], model.net(example["a"] + example["b"]), atol=1e-6)
        assert torch.equal(result.inference["layers"][1], example["b"])
    product = PytorchModelHandlerKeyedTensor(
        tmp_path / "pair.pt", Pair, inference_fn=make_keyed_tensor_model_fn("product")
    )
    assert torch.equal(inferences(product, batch), torch.stack([e["a"] * e["b"] for e in batch]))
    with pytest.raises(errors.InvalidSetting, match=r"\{'b': 1\}"):
        handler.run_inference([batch[0], {"a": batch[1]["a"]}], handler.load_model())


def test_examples_of_another_kind_are_told_which_handler_or_form_to_use(net: tuple[Net, Path], tmp_path: Path) -> None:
    tensors = PytorchModelHandlerTensor(net[1], Net)
    torch.save(Pair().state_dict(), tmp_path / "pair.pt")
    keyed = PytorchModelHandlerKeyedTensor(tmp_path / "pair.pt", Pair)
    frame = pd.DataFrame(np.ones((3, 4), dtype=np.float32), columns=list("abcd"))
    for handler, examples, words in (
        (tensors, frame, r"DataFrames of one row\. Give frame\.to_numpy\(\)"),
        (tensors, [{"x": torch.ones(4)}], r"holds \{'x': tensor.* \(dict\).*KeyedTensor"),
        (tensors, ["a text"], r"holds a text \(str\)\.$"),
        (keyed, torch.ones(2, 4), r"dicts of tensors .* holds a Tensor of shape \[4\]\. .*ModelHandlerTensor"),
        (keyed, frame, r"DataFrames of one row\. Give frame\.to_dict\('records'\)"),
    ):
        with pytest.raises(errors.KitError, match=words):
            examples | RunInference(handler)
    assert len(frame.to_numpy() | RunInference(tensors)) == 3


def test_methods_and_own_inference_fn(net: tuple[Net, Path]) -> None:
    model, path = net
    batch = rows()
    twice = PytorchModelHandlerTensor(path, Net, inference_fn=make_tensor_model_fn("twice"))
    assert twice.can_infer_stacked
    assert torch.equal(inferences(twice, batch), 2 * model(torch.stack(batch)))

    def own(batch: Any, model: Any, device: Any, inference_args: Any, model_id: Any) -> Any:
        assert device == torch.device("cpu")
        Result = namedtuple("Result", "example inference model_id")
        return (Result(x, x.sum() + inference_args.get("plus", 0), model_id) for x in batch)

    custom = PytorchModelHandlerTensor(path, Net, inference_fn=own)
    assert not custom.can_infer_stacked
    assert torch.allclose(inferences(custom, batch, plus=1), torch.stack([x.sum() + 1 for x in batch]))
    assert torch.allclose(torch.stack(custom.infer_batch(batch, None)), torch.stack([x.sum() for x in batch]))


def test_wrong_counts_are_refused(net: tuple[Net, Path]) -> None:
    handler = PytorchModelHandlerTensor(net[1], Net)
    for output in (torch.zeros(3), torch.zeros(9, 2), torch.tensor(1.0), [1, 2], {"a": torch.zeros(3, 1)}):
        with pytest.raises(errors.WrongPredictionCount, match="5 examples"):
            handler.run_inference(rows(), lambda x, output=output: output)


def test_infer_stacked_gives_way_when_the_output_is_not_one_tensor(net: tuple[Net, Path]) -> None:
    handler = PytorchModelHandlerTensor(net[1], Net)
    calls = []

    def model(x: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(x))
        return {"y": x}

    assert handler.infer_stacked(torch.zeros(4, 2), model) is None
    assert handler.infer_stacked(torch.zeros(4, 2), model) is None
    assert len(calls) == 1
    assert len(handler.infer_batch(list(torch.zeros(4, 2)), model)) == 4


def test_update_model_path_and_pickling(net: tuple[Net, Path], tmp_path: Path) -> None:
    other = Net().eval()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    handler = PytorchModelHandlerTensor(net[1], Net, max_batch_size=7)
    handler.load_model()
    handler.update_model_path(None)
    assert handler.model_id == str(net[1])
    handler.update_model_path(str(tmp_path / "other.pt"))
    travelled = cloudpickle.loads(cloudpickle.dumps(handler))
    assert travelled.batching_options() == {"max_batch_size": 7}
    batch = rows()
    assert torch.equal(inferences(travelled, batch), other(torch.stack(batch)))
    assert travelled.model_id == str(tmp_path / "other.pt")


def test_the_repr_is_the_call_that_made_it_short_and_up_to_date(net: tuple[Net, Path]) -> None:
    handler = PytorchModelHandlerTensor("net.pt", Net, {"width": 4, "path": "x"}, device="cpu", max_batch_size=3)
    made = (
        "PytorchModelHandlerTensor(state_dict_path='net.pt', model_class=Net, model_params={'width': 4, 'path': ...}, "
    )
    assert repr(handler) == f"{made}device='cpu', max_batch_size=3)"
    assert (
        repr(handler.with_batching(max_batch_size=None, min_batch_size=2)) == f"{made}device='cpu', min_batch_size=2)"
    )
    handler.update_model_path("next.pt")
    assert repr(handler) == f"{made}device='cpu', max_batch_size=3, model_id='next.pt')"
    elsewhere = cloudpickle.loads(cloudpickle.dumps(handler))
    assert repr(elsewhere) == "PytorchModelHandlerTensor(max_batch_size=3, model_id='next.pt')"
    assert repr(ModelHandler.from_callable(int, inferences)) == "ModelHandler.from_callable(load=int, run=inferences)"


def test_the_repr_leaves_out_what_is_large_or_secret() -> None:
    class Own(ModelHandler):
        def __init__(self, table: Any, hub_token: str, **options: Any) -> None:
            super().__init__(**options)

    array = np.zeros((1000, 20))
    shown = repr(Own(array, "hf_abc", env_vars={"HF_TOKEN": "hf_abc"}))
    assert shown == "Own(table=<ndarray of shape [1000, 20]>, hub_token='...', env_vars={'HF_TOKEN': ...})"
    assert len(repr(Own(["x" * 1000] * 1000, "", env_vars=dict.fromkeys(map(str, range(1000)), "")))) < 250
    assert "Own(table=" in repr(RunInference(Own(1, "")))


# ---- wrong settings and wrong files ----------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "needed together"),
        ({"state_dict_path": "a.pt"}, "model_class=None"),
        ({"model_class": Net}, "state_dict_path=None"),
        ({"state_dict_path": "a.pt", "model_class": "Net"}, "give the class"),
        ({"state_dict_path": "a.pt", "model_class": Net, "torch_script_model_path": "b.ts"}, "not both"),
        ({"state_dict_path": "a.pt", "model_class": Net, "load_model_args": {"weights_only": False}}, "never"),
        (
            {"state_dict_path": "a.pt", "model_class": Net, "load_model_args": {"zz": True}},
            "'zz' is no option of torch.l",
        ),
        (
            {"torch_script_model_path": "a.ts", "load_model_args": {"zz": True}},
            r"torch\.jit\.load, which takes map_loca",
        ),
        ({"state_dict_path": "a.pt", "model_class": Net, "device": "tpu"}, "device='tpu'"),
        ({"state_dict_path": "a.pt", "model_class": Net, "inference_fn": 3}, "inference_fn=3"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=words):
        PytorchModelHandlerTensor(**settings)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of a weights file was run')",))


def test_files_that_cannot_be_read(net: tuple[Net, Path], tmp_path: Path) -> None:
    whole = net[1].read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pt").write_bytes(b"\x00\x01noise" * 50)
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.pt").touch()
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "noise.ts").write_bytes(b"no zip")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    torch.save(Net(), tmp_path / "module.pt")
    for name, words in {
        "gone.pt": "doesn't exist",
        "gone.safetensors": "doesn't exist",
        "cut.pt": "corrupt",
        "noise.pt": "corrupt",
        "empty.pt": "is empty, it has 0 bytes",
        "folder": r"is a folder, which holds a\.pt: give the path of a file",
        "noise.safetensors": "corrupt",
        "list.pt": "holds a list",
        "evil.pt": "never loaded",
        "module.pt": "never loaded",
    }.items():
        with pytest.raises(errors.WeightsFileError, match=words) as caught:
            PytorchModelHandlerTensor(tmp_path / name, Net).load_model()
        assert name in str(caught.value)
        assert "weights_only" not in str(caught.value.__cause__), "torch advises to switch it off"
    with pytest.raises(errors.WeightsFileError, match=r"noise\.ts"):
        PytorchModelHandlerTensor(torch_script_model_path=tmp_path / "noise.ts").load_model()
    with pytest.raises(
        errors.WeightsFileError, match=rf"'nowhere\.pt' doesn't exist \(looked for {os.getcwd()}/nowhere"
    ):
        PytorchModelHandlerTensor("nowhere.pt", Net).load_model()
    with pytest.raises(errors.WeightsFileError, match=r"known to the process alone that wrote it"):
        PytorchModelHandlerTensor("memory://nowhere/net.pt", Net).load_model()


def test_a_path_in_the_home_folder(net: tuple[Net, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(net[1].parent))
    handler = PytorchModelHandlerTensor("~/net.pt", Net)
    assert torch.equal(inferences(handler, batch := rows()), net[0](torch.stack(batch)))
    assert handler.estimate_model_bytes() == net[1].stat().st_size
    with pytest.raises(errors.WeightsFileError, match=rf"'~/gone\.pt' doesn't exist \(looked for {net[1].parent}/gone"):
        PytorchModelHandlerTensor("~/gone.pt", Net).load_model()


def test_a_file_given_under_the_name_of_the_other_kind(net: tuple[Net, Path], tmp_path: Path) -> None:
    script = tmp_path / "net.ts"
    torch.jit.script(net[0]).save(script)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(errors.WeightsFileError, match=r"give torch_script_model_path='.*net\.ts'") as caught:
            PytorchModelHandlerTensor(script, Net).load_model()
    assert [str(one.message) for one in warned] == []
    assert "weights_only" not in str(caught.value)
    with pytest.raises(errors.WeightsFileError, match=r"give state_dict_path='.*net\.pt' and model_class"):
        PytorchModelHandlerTensor(torch_script_model_path=net[1]).load_model()


def test_state_dicts_that_do_not_fit(net: tuple[Net, Path], tmp_path: Path) -> None:
    model, path = net
    with pytest.raises(errors.WeightsFileError, match=r"last.weight is \[3, 8\] in the file and \[5, 8\]") as caught:
        PytorchModelHandlerTensor(path, Net, {"out": 5}).load_model()
    assert "Net(out=5)" in str(caught.value)
    state = model.state_dict()
    state["extra"] = torch.zeros(1)
    del state["first.bias"]
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(errors.WeightsFileError, match=r"missing in the file: first.bias; not in the model: extra"):
        PytorchModelHandlerTensor(tmp_path / "odd.pt", Net).load_model()
    torch.save({"epoch": 3, "model": model.state_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(errors.WeightsFileError, match="'model' is a dict itself"):
        PytorchModelHandlerTensor(tmp_path / "checkpoint.pt", Net).load_model()
    with pytest.raises(errors.InvalidSetting, match=r"Net\(depth=3\) can't be made"):
        PytorchModelHandlerTensor(path, Net, {"depth": 3}).load_model()
    with pytest.raises(errors.InvalidSetting, match="made a dict"):
        PytorchModelHandlerTensor(path, dict).load_model()


# ---- large modules are built without memory for their weights, when that is right ---------------


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


class Table(Net):
    """Has a tensor that isn't in the state dict and that nothing registers."""

    def __init__(self) -> None:
        super().__init__()
        del self.table
        self.table = [torch.ones(3)][0]
        self.hidden = {"offset": torch.full((3,), 7.0)}

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return super().forward(x, scale) + self.hidden["offset"]


class Alias(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = None
        self.views = [self.first.weight.data]

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x @ self.views[0].T


class Made(Net):
    """Keeps what an operation made of a weight, in a closure."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.linalg.vector_norm(torch.ones(4)) * torch.arange(3)
        self.more = lambda: norm

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return super().forward(x, scale) * self.more()


class Reads(Net):
    def __init__(self) -> None:
        super().__init__()
        self.size = float(self.first.weight.detach().abs().max())


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every module counts as large; lists what the cheap way made."""
    made: list[Any] = []
    real = state_dicts._build_empty
    monkeypatch.setattr(state_dicts, "LARGE_BYTES", 0)
    monkeypatch.setattr(state_dicts, "_build_empty", lambda *args: made.append(real(*args)) or made[-1])
    return made


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(4, 6, batch_first=True)
        self.norm = torch.nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.rnn(x[:, None])[0][:, 0])


def test_large_modules_take_the_tensors_of_the_file(large: list[Any], tmp_path: Path) -> None:
    model = Plain().eval()
    model.norm.running_mean += 3
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    handler = PytorchModelHandlerTensor(tmp_path / "plain.pt", Plain)
    batch = rows()
    assert torch.equal(inferences(handler, batch), model(torch.stack(batch)))
    assert large[0] is not None


@pytest.mark.parametrize("kind", [Net, Table, Alias, Made, Reads])
def test_large_modules_with_state_of_their_own_are_built_in_full(
    large: list[Any], kind: type[Net], tmp_path: Path
) -> None:
    model = kind().eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    handler = PytorchModelHandlerTensor(tmp_path / "w.pt", kind)
    batch = rows()
    assert torch.equal(inferences(handler, batch), model(torch.stack(batch)))
    assert large == [None]


def test_ties_and_dtypes_survive(large: list[Any], tmp_path: Path) -> None:
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "both.pt")
    save_file({"embed.weight": model.embed.weight.detach().bfloat16()}, tmp_path / "one.safetensors")
    for name in ("both.pt", "one.safetensors"):
        loaded = PytorchModelHandlerTensor(tmp_path / name, Tied).load_model()
        assert large.pop() is loaded
        assert loaded.head.weight is loaded.embed.weight
        assert loaded.head.weight.dtype is torch.float32
        assert torch.allclose(loaded.head.weight, model.head.weight, atol=0.02)
    state_dicts.LARGE_BYTES = 1 << 60
    loaded = PytorchModelHandlerTensor(tmp_path / "one.safetensors", Tied).load_model()
    assert torch.allclose(loaded.head.weight, model.head.weight, atol=0.02)


def test_large_misfits_are_reported_alike(large: list[Any], net: tuple[Net, Path]) -> None:
    with pytest.raises(errors.WeightsFileError, match=r"\[3, 8\] in the file and \[5, 8\]"):
        PytorchModelHandlerTensor(net[1], Net, {"out": 5}).load_model()
    with pytest.raises(errors.WeightsFileError, match="missing in the file"):
        PytorchModelHandlerTensor(net[1], Plain).load_model()


# ---- devices that need one ------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_on_a_gpu(net: tuple[Net, Path]) -> None:
    model, path = net
    batch = rows()
    for device in ("GPU", "cuda", "cuda:0", "auto"):
        handler = PytorchModelHandlerTensor(path, Net, device=device)
        loaded = handler.load_model()
        assert next(loaded.parameters()).is_cuda
        found = inferences(handler, batch, loaded)
        assert found.device.type == "cpu"
        assert torch.allclose(found, model(torch.stack(batch)), atol=1e-4)


def flip_a_byte(path: Path, inside: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(inside) + len(inside) // 2] ^= 1
    path.write_bytes(data)


def test_a_state_dict_with_one_changed_byte_is_refused(net: tuple[Net, Path]) -> None:
    model, path = net
    handler = PytorchModelHandlerTensor(state_dict_path=path, model_class=Net)
    handler.load_model()
    flip_a_byte(path, model.first.weight.detach().numpy().tobytes())
    torch.load(path, weights_only=True)  # torch itself doesn't notice
    with pytest.raises(errors.WeightsFileError, match=r"net\.pt' is corrupt: Bad CRC-32"):
        handler.load_model()


def test_torch_script_with_one_changed_byte_is_refused(tmp_path: Path) -> None:
    model, path = Net().eval(), tmp_path / "script.pt"
    torch.jit.script(model).save(str(path))
    handler = PytorchModelHandlerTensor(torch_script_model_path=path)
    handler.load_model()
    flip_a_byte(path, model.first.weight.detach().numpy().tobytes())
    with pytest.raises(errors.WeightsFileError, match=r"script\.pt' is corrupt: Bad CRC-32"):
        handler.load_model()


@pytest.mark.parametrize("kind", ["without sums", "before zip"])
def test_files_saved_without_sums_are_loaded_unchecked(tmp_path: Path, kind: str) -> None:
    model, path = Net().eval(), tmp_path / "net.pt"
    with_sums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(kind != "without sums")
    try:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind != "before zip")
    finally:
        torch.serialization.set_crc32_options(with_sums)
    loaded = PytorchModelHandlerTensor(state_dict_path=path, model_class=Net).load_model()
    assert torch.equal(loaded.first.weight, model.first.weight)

"""Tensors pass through a named deployment's process as bytes: it needn't import torch."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kit
from kit import RunInference
from kit.engine.codec import Rows, concatenate
from kit.engine.tensor_bytes import TensorBytes

# No torch up here: the deployment's process imports this module for the handlers.

TYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64")


class Same(kit.ModelHandler):
    """Gives back tensors, and nothing else; -1 fails."""

    preload = ("torch",)

    def load_model(self) -> Any:
        import torch

        return torch.zeros(3)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        for row in batch:
            if "torch" not in type(row).__module__ or (row.numel() == 1 and row.item() == -1):
                raise ValueError(f"{type(row)}")
        return list(batch)


def length(row: Any) -> int:
    """A function of a handler's that needs a tensor."""
    return int(row.sum().item())


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def pid_of(name: str) -> int:
    return int(kit.deployments().set_index("name").loc[name, "pid"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_tensors_of_all_types_pass_and_torch_is_not_imported(runtime: Path) -> None:
    import torch

    with kit.deploy(Same(max_batch_size=7), name="same", mode="large", processes=2) as deployment:
        for name in TYPES:
            kind = getattr(torch, name)
            rows = [(torch.arange(6).reshape(2, 3) + number).to(kind) for number in range(50)]
            found = [prediction.inference for prediction in deployment.predict(rows)]
            assert all(one.dtype == kind and torch.equal(one, row) for one, row in zip(found, rows, strict=True)), name
        block = torch.randn(3000, 4)
        found = [prediction.inference for prediction in deployment.predict(block)]
        assert torch.equal(torch.stack(found), block)
        latest = deployment.snapshot().latest
        assert torch.equal(latest["result"].inference, latest["example"])
        deployment.switch("shared")  # which is proved on examples that are kept
        assert deployment.predict([torch.tensor(2.0)])[0].inference.item() == 2.0
        assert not has_torch(pid_of("same"))
        answers = [torch.tensor(float(number)) for number in (1, -1, 3)] | (
            RunInference(deployment).with_exception_handling()
        )
        assert [type(answer).__name__ for answer in answers] == ["PredictionResult", "Failure", "PredictionResult"]
        assert answers[2].inference.item() == 3


def test_functions_of_a_handler_are_given_tensors(runtime: Path) -> None:
    import torch

    rows = [torch.full((2,), number * 7 % 20) for number in range(40)]
    handler = Same(batch_length_fn=length, max_batch_size=4)
    with kit.deploy(handler, name="sorted", mode="large", processes=1) as deployment:
        found = deployment.predict(rows)
    assert all(torch.equal(one.inference, row) for one, row in zip(found, rows, strict=True))


def test_bytes_are_cut_joined_and_become_tensors_where_they_are_unpickled() -> None:
    import torch

    numbers = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = Rows(TensorBytes.of("float32", (4, 3), numbers.tobytes()))
    joined = concatenate([rows[:1], rows.take([3, 2])])
    assert type(joined.stacked) is TensorBytes
    assert joined.stacked.nbytes == 36
    assert torch.equal(pickle.loads(pickle.dumps(joined.stacked)), torch.from_numpy(numbers[[0, 3, 2]]))
    assert torch.equal(pickle.loads(pickle.dumps(rows[1])), torch.from_numpy(numbers[1]))
    assert [row.shape for row in rows.tolist()] == [(3,)] * 4
    empty = TensorBytes.of("bfloat16", (2, 0), b"")
    assert pickle.loads(pickle.dumps(empty)).shape == (2, 0)
    mixed = concatenate([rows[:1], Rows(torch.ones(1, 3))])
    assert [type(one).__name__ for one in mixed] == ["TensorBytes", "Tensor"]

"""Handlers and models that the benchmarks serve, and the bare loops that they are compared with."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kit

MLP_FEATURES = 384
MLP_BATCH = 64


class Identity(kit.ModelHandler):
    """Gives back what it gets."""

    def load_model(self) -> object:
        return object()

    def run_inference(
        self, batch: Sequence[Any], model: object, inference_args: Mapping[str, Any] | None = None
    ) -> Sequence[Any]:
        return batch


class IdentityBlock(Identity):
    """Gives back a stacked block [n, ...] as one, as handlers of tensors do."""

    can_infer_stacked = True
    model_id = "identity"

    def infer_stacked(self, stacked: Any, model: object, inference_args: Mapping[str, Any] | None = None) -> Any:
        return stacked


class Nothing:
    """A model; Beam needs one that can be referred to weakly."""


class SharedIdentity(Identity):
    """One that asks to be shared by all processes."""

    def load_model(self) -> Nothing:
        return Nothing()

    def share_model_across_processes(self) -> bool:
        return True


def mlp() -> Any:
    """The network 384-1024-1024-10, its weights as torch makes them."""
    import torch

    return torch.nn.Sequential(
        torch.nn.Linear(MLP_FEATURES, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 10),
    )


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kit-bench-")


@functools.cache
def mlp_path() -> str:
    """File of the MLP's weights; gone with this process."""
    import torch

    torch.manual_seed(0)
    path = Path(_folder().name) / "mlp.pt"
    torch.save(mlp().state_dict(), path)
    return str(path)


def mlp_handler() -> kit.ModelHandler:
    """The MLP served by the kit, in batches of 64."""
    from kit.handlers import PytorchModelHandlerTensor

    handler: kit.ModelHandler = PytorchModelHandlerTensor(
        mlp_path(), mlp, min_batch_size=MLP_BATCH, max_batch_size=MLP_BATCH
    )
    return handler


def mlp_rows(batches: int) -> list[Any]:
    """float32 tensors [384], `batches` times 64 of them, each with memory of its own."""
    import torch

    # Views of one block would be pickled by Beam with the whole block, every one of them.
    return [torch.randn(MLP_FEATURES) for _ in range(batches * MLP_BATCH)]


def mlp_loop(path: str) -> Any:
    """The bare loop: a function that does the whole job on a list of rows, in one thread."""
    import torch

    torch.set_num_threads(1)
    model = mlp()
    model.load_state_dict(torch.load(path))
    model.eval()

    def loop(rows: list[Any]) -> list[kit.PredictionResult]:
        results = []
        with torch.no_grad():
            for start in range(0, len(rows), MLP_BATCH):
                batch = rows[start : start + MLP_BATCH]
                output = model(torch.stack(batch))
                results += [
                    kit.PredictionResult(row, value, path) for row, value in zip(batch, output.unbind(0), strict=True)
                ]
        return results

    return loop


class Wide(kit.ModelHandler):
    """A model of `layers` times 1600 × 1600 float32, 10.24 MB each: 40 layers are 410 MB."""

    WIDTH = 1600

    def __init__(self, layers: int, **options: Any) -> None:
        super().__init__(**options)
        self.layers = layers
        self.preload = ("torch",)

    def load_model(self) -> Any:
        import torch

        model = torch.nn.Sequential(*(torch.nn.Linear(self.WIDTH, self.WIDTH, bias=False) for _ in range(self.layers)))
        with torch.no_grad():
            for number, layer in enumerate(model):
                layer.weight.fill_(1 / self.WIDTH)
                layer.weight[:, number].add_(1)
        return model.requires_grad_(False).eval()

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> list[float]:
        import numpy as np
        import torch

        rows = list(batch)
        block = torch.stack(rows) if isinstance(rows[0], torch.Tensor) else torch.from_numpy(np.stack(rows))
        with torch.no_grad():
            output = model(block)
        values: list[float] = output[:, 0].tolist()
        return values

    def rows(self, count: int) -> list[Any]:
        """float32 tensors [1600]."""
        import torch

        return list(torch.rand(count, self.WIDTH).unbind(0))


#: Layers of the model of about 400 MB, and of one that weighs next to nothing beside it.
LARGE_LAYERS, NO_LAYERS = 40, 0

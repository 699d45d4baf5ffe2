"""Batches of tensors through a torch model: what the PyTorch and Hugging Face tensor handlers share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit.checks import check_function
from kit.errors import InvalidSetting, UnsupportedInput
from kit.handler import PredictionResult
from kit.handlers import devices, paths, results
from kit.shorten import shorten

if TYPE_CHECKING:
    import torch

#: ``fn(batch, model, device, inference_args, model_id) -> predictions``
InferenceFn = Callable[..., Iterable[Any]]


def stack(batch: Any, device: Any) -> torch.Tensor:
    """Tensors, numpy arrays or numbers of one shape, as one tensor [n, ...] on `device`.

    A tensor or an array is taken as already stacked.
    """
    import torch

    if isinstance(batch, torch.Tensor):
        stacked = batch
    elif hasattr(batch, "__array__") and hasattr(batch, "shape"):
        stacked = _from_array(batch)
    else:
        rows = batch if isinstance(batch, (list, tuple)) else list(batch)
        stacked = torch.stack(rows) if isinstance(rows[0], torch.Tensor) else _from_array(_array(rows))
    return stacked if stacked.device == device else stacked.to(device)


def _array(rows: Sequence[Any]) -> Any:
    import numpy as np

    if hasattr(rows[0], "dtype"):
        return np.stack(rows)
    if hasattr(rows[0], "columns"):
        raise UnsupportedInput(
            "A handler of tensors takes tensors, numpy arrays or numbers; the batch holds DataFrames of one row. Give "
            "frame.to_numpy(), whose rows are the examples."
        )
    # Python numbers become what torch makes of them: float32 and int64.
    array = np.asarray(rows)
    if array.dtype.kind not in "biufc":
        keyed = " For dicts of tensors there is the handler ...KeyedTensor." if hasattr(rows[0], "items") else ""
        raise UnsupportedInput(
            "A handler of tensors takes tensors, numpy arrays or numbers; the batch holds "
            f"{shorten(rows[0])} ({type(rows[0]).__name__}).{keyed}"
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _from_array(array: Any) -> torch.Tensor:
    import numpy as np
    import torch

    array = np.asarray(array)
    # A tensor can't be read-only, and a model may work in place.
    return torch.from_numpy(array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy())


def stack_keyed(batch: Any, device: Any) -> dict[str, torch.Tensor]:
    """Dicts of tensors as one dict of tensors [n, ...] on `device`; a dict is taken as already stacked."""
    if isinstance(batch, Mapping):
        return {name: stack(value, device) for name, value in batch.items()}
    rows: dict[str, list[Any]] = {}
    for example in batch:
        if not hasattr(example, "items") or hasattr(example, "columns"):
            raise UnsupportedInput(_not_keyed(example))
        for name, value in example.items():
            rows.setdefault(name, []).append(value)
    short = {name: len(values) for name, values in rows.items() if len(values) != len(batch)}
    if short:
        raise InvalidSetting(
            f"Examples of one batch need the same keys; of {len(batch)} examples these keys are in fewer: {short}."
        )
    return {name: stack(values, device) for name, values in rows.items()}


def _not_keyed(example: Any) -> str:
    if hasattr(example, "columns"):
        what, advice = "DataFrames of one row", "Give frame.to_dict('records')."
    else:
        shape = f" of shape {list(example.shape)}" if hasattr(example, "shape") else ""
        what, advice = f"a {type(example).__name__}{shape}", "For tensors there is the handler ...ModelHandlerTensor."
    return (
        "A handler of keyed tensors takes dicts of tensors by the names of the model's arguments, such as "
        f"{{'x': tensor}}; the batch holds {what}. {advice}"
    )


class ModelFn:
    """An `inference_fn` of the kit: stacks a batch and calls the model, or one of its methods."""

    def __init__(self, method: str | None = None, keyed: bool = False) -> None:
        self.method = method
        self.keyed = keyed

    def forward(self, batch: Any, model: Any, device: Any, inference_args: Mapping[str, Any] | None) -> Any:
        """Inferences on the CPU: a tensor [n, ...], or a list of n where the model returns something else."""
        import torch

        call = model if self.method is None else getattr(model, self.method)
        args = inference_args or {}
        # no_grad and not inference_mode: predictions may be trained on or changed in place later.
        with torch.no_grad():
            if self.keyed:
                stacked = stack_keyed(batch, device)
                count = len(batch) if not isinstance(batch, Mapping) else len(next(iter(stacked.values())))
                output = call(**stacked, **args)
            else:
                count = len(batch)
                output = call(stack(batch, device), **args)
        return results.per_example(output, count)

    def forward_batches(
        self, examples: Any, size: int, model: Any, device: Any, inference_args: Mapping[str, Any] | None
    ) -> Any:
        """`forward` of examples (a list, or one tensor or array) in batches of `size`, as one tensor [n, ...].

        None when an output isn't a tensor with one row an example.
        """
        import torch

        call = model if self.method is None else getattr(model, self.method)
        args = inference_args or {}
        outputs = []
        with torch.no_grad():
            for start in range(0, len(examples), size):
                batch = examples[start : start + size]
                output = call(stack(batch, device), **args)
                if type(output) is not torch.Tensor or output.ndim == 0 or len(output) != len(batch):
                    return None
                outputs.append(output)
            together = torch.cat(outputs)
        return together if together.device.type == "cpu" else together.cpu()

    def __call__(
        self,
        batch: Sequence[Any],
        model: Any,
        device: Any,
        inference_args: Mapping[str, Any] | None = None,
        model_id: str | None = None,
    ) -> Iterable[PredictionResult]:
        return results.wrap(batch, self.forward(batch, model, device, inference_args), model_id)


default_tensor_inference_fn = ModelFn()
default_keyed_tensor_inference_fn = ModelFn(keyed=True)


def make_tensor_model_fn(model_fn: str) -> InferenceFn:
    """An `inference_fn` for tensors that calls the model's method `model_fn` in place of ``forward``."""
    return ModelFn(model_fn)


def make_keyed_tensor_model_fn(model_fn: str) -> InferenceFn:
    """An `inference_fn` for dicts of tensors that calls the model's method `model_fn`."""
    return ModelFn(model_fn, keyed=True)


class TorchHandler(paths.WithModelPath):
    """What handlers of torch models with tensors as examples have in common."""

    _keyed = False
    _inference_fn: InferenceFn = default_tensor_inference_fn
    _device_name = "cpu"
    _resolved: Any = None
    _no_single_tensor = False

    def _set_inference(self, inference_fn: InferenceFn | None, device: Any) -> None:
        check_function("inference_fn", inference_fn)
        self._inference_fn = inference_fn or ModelFn(keyed=self._keyed)
        self._device_name = devices.check(device)

    def update_model_path(self, model_path: str | os.PathLike[str] | None = None) -> None:
        """Load from `model_path` next time; None leaves the path as it is."""
        super().update_model_path(model_path)
        if model_path:
            self._no_single_tensor = False

    @property
    def device(self) -> torch.device:
        """The device in this process; looked for at first use, never when the handler is made."""
        if self._resolved is None:
            self._resolved = devices.resolve(self._device_name)
        return self._resolved

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_resolved"}

    @property
    def can_infer_stacked(self) -> bool:
        """True when examples may come as one tensor or array [n, ...]."""
        return isinstance(self._inference_fn, ModelFn) and not self._inference_fn.keyed

    def infer_stacked(self, stacked: Any, model: Any, inference_args: Mapping[str, Any] | None = None) -> Any:
        """Inferences as one tensor [n, ...] on the CPU for examples in one tensor or array [n, ...].

        None when the model's output isn't one tensor; then use `infer_batch`.
        """
        if self._no_single_tensor:
            return None
        output = self.infer_batch(stacked, model, inference_args)
        if isinstance(output, list):
            self._no_single_tensor = True
            return None
        return output

    def infer_batches(
        self, examples: Any, size: int, model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Any:
        """Inferences as one tensor [n, ...] on the CPU, computed in batches of `size`.

        Args:
            examples: a list, or a tensor or array [n, ...].

        None when the model's output isn't one tensor; then use `infer_batch`.
        """
        if self._no_single_tensor or not self.can_infer_stacked:
            return None
        return self._inference_fn.forward_batches(examples, size, model, self.device, inference_args)  # type: ignore[attr-defined]

    def infer_batch(self, batch: Any, model: Any, inference_args: Mapping[str, Any] | None = None) -> Any:
        """Inferences on the CPU: a tensor [n, ...], or a list of n where the model returns something else."""
        args = inference_args or {}
        if isinstance(self._inference_fn, ModelFn):
            return self._inference_fn.forward(batch, model, self.device, args)
        return results.bare(self._inference_fn(batch, model, self.device, args, self.model_id))

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        """A PredictionResult for each example, with the inference on the CPU.

        Args:
            batch: tensors (or numpy arrays, or numbers) of one shape; dicts of them for keyed handlers.
            model: what ``load_model`` returned.
            inference_args: keyword arguments of the model's call, the same for the whole batch.

        Raises:
            WrongPredictionCount: the output's first dimension isn't the number of examples.
        """
        return self._inference_fn(batch, model, self.device, inference_args or {}, self.model_id)

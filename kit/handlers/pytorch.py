"""Handlers for PyTorch modules: a state dict and its class, safetensors, or TorchScript."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from kit.checks import check_mapping
from kit.errors import InvalidSetting, KitError, WeightsFileError
from kit.handlers import archives, paths, state_dicts
from kit.handlers.torch_inference import (
    InferenceFn,
    TorchHandler,
    default_keyed_tensor_inference_fn,
    default_tensor_inference_fn,
    make_keyed_tensor_model_fn,
    make_tensor_model_fn,
)
from kit.shorten import shorten

__all__ = [
    "PytorchModelHandlerKeyedTensor",
    "PytorchModelHandlerTensor",
    "default_keyed_tensor_inference_fn",
    "default_tensor_inference_fn",
    "make_keyed_tensor_model_fn",
    "make_tensor_model_fn",
]

#: What reads a file, and its options; torch.load takes more only where it may run code from the file.
_LOADERS = {
    "state dict": ("torch.load", ("map_location", "mmap", "encoding")),
    "script": ("torch.jit.load", ("map_location", "_extra_files", "_restore_shapes")),
}


class PytorchModelHandlerTensor(TorchHandler):
    """A torch module whose examples are tensors [...] of one shape, stacked to [n, ...].

    Args:
        state_dict_path: file of ``torch.save(model.state_dict(), path)`` or a .safetensors file; a local
            path or any fsspec URL. Only weights are read from it, never Python objects.
        model_class: the module's class, or a function that returns the module.
        model_params: keyword arguments for `model_class`.
        device: "CPU" (default), "auto", "cuda", "cuda:1", "mps" or "GPU"; looked for in ``load_model``.
        inference_fn: ``fn(batch, model, device, inference_args, model_id)`` that returns predictions;
            `make_tensor_model_fn` makes one for another method than ``forward``.
        torch_script_model_path: file of ``torch.jit.save``, in place of state_dict_path and model_class.
        load_model_args: keyword arguments for ``torch.load`` or ``torch.jit.load``.
        options: those of `kit.ModelHandler`.

    Raises:
        InvalidSetting: both or neither of the paths, a path without its class, a class without its
            path, ``weights_only`` other than True.
    """

    def __init__(
        self,
        state_dict_path: str | os.PathLike[str] | None = None,
        model_class: Callable[..., Any] | None = None,
        model_params: Mapping[str, Any] | None = None,
        device: Any = "CPU",
        *,
        inference_fn: InferenceFn | None = None,
        torch_script_model_path: str | os.PathLike[str] | None = None,
        load_model_args: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_mapping("model_params", model_params)
        check_mapping("load_model_args", load_model_args)
        self._state_dict_path = paths.checked("state_dict_path", state_dict_path) if state_dict_path else None
        self._model_class = model_class
        self._model_params = dict(model_params or {})
        self._torch_script_model_path = (
            paths.checked("torch_script_model_path", torch_script_model_path) if torch_script_model_path else None
        )
        self._load_model_args = dict(load_model_args or {})
        self._check()
        self._set_inference(inference_fn, device)
        self.preload = (*paths.modules("torch", ("torch.utils.serialization.config",)), *self._safetensors())

    def _check(self) -> None:
        name = type(self).__name__
        if self._torch_script_model_path and (self._state_dict_path or self._model_class):
            raise InvalidSetting(
                f"{name}: give either torch_script_model_path={self._torch_script_model_path!r}, or state_dict_path "
                "and model_class, not both."
            )
        if not self._torch_script_model_path:
            if not self._state_dict_path or self._model_class is None:
                raise InvalidSetting(
                    f"{name}: state_dict_path={self._state_dict_path!r} and model_class={self._model_class!r} are "
                    "needed together, or torch_script_model_path alone."
                )
            if not callable(self._model_class):
                raise InvalidSetting(f"{name}: model_class={self._model_class!r}: give the class of the module.")
        if self._load_model_args.get("weights_only", True) is not True:
            raise InvalidSetting(
                f"{name}: load_model_args has weights_only={self._load_model_args['weights_only']!r}: the kit never "
                "runs code from a weights file. Save model.state_dict() and leave weights_only out."
            )
        loader, takes = _LOADERS["script" if self._torch_script_model_path else "state dict"]
        for option in self._load_model_args:
            if option not in (*takes, "weights_only"):
                raise InvalidSetting(
                    f"{name}: load_model_args={shorten(self._load_model_args)}: {option!r} is no option of {loader}, "
                    f"which takes {', '.join(takes)}."
                )

    def _safetensors(self) -> tuple[str, ...]:
        if self.model_id.endswith(".safetensors"):
            return paths.modules("safetensors", ("safetensors.torch",))
        return ()

    @property
    def _model_path(self) -> str:
        return self._torch_script_model_path or self._state_dict_path or ""

    @_model_path.setter
    def _model_path(self, path: str) -> None:
        if self._torch_script_model_path:
            self._torch_script_model_path = path
        else:
            self._state_dict_path = path

    def load_model(self) -> Any:
        """The module in eval mode on its device, without gradients.

        Raises:
            WeightsFileError: the file is missing, corrupt or doesn't fit the class.
            InvalidSetting: the class can't be made with `model_params`.
            DeviceUnavailable: a GPU asked for and missing.
            MissingExtra: torch, safetensors or the URL's package isn't installed.
        """
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise paths.needs("torch") from error
        if self._torch_script_model_path:
            model = self._load_script(self._torch_script_model_path)
        else:
            model = self._load_module()
        for parameter in model.parameters():  # a ScriptModule has no requires_grad_
            parameter.requires_grad_(False)
        return model.to(self.device).eval()

    def _load_module(self) -> Any:
        assert self._state_dict_path is not None
        assert self._model_class is not None
        model_class, params = self._model_class, self._model_params
        state = state_dicts.read(self._state_dict_path, self.device, self._load_model_args)
        arguments = ", ".join(f"{name}={value!r}" for name, value in params.items())
        title = f"{getattr(model_class, '__name__', model_class)}({arguments})"
        return state_dicts.build(lambda: model_class(**params), state, self._state_dict_path, title)

    def _load_script(self, path: str) -> Any:
        import torch

        arguments = {name: value for name, value in self._load_model_args.items() if name != "weights_only"}
        with paths.local_file(path, "TorchScript file") as local:
            archives.check(path, local, "TorchScript file")
            if zipfile.is_zipfile(local) and not archives.is_torch_script(local):
                raise WeightsFileError(
                    f"The file {path!r} was given as torch_script_model_path and is no TorchScript model: if it's one "
                    f"of torch.save(model.state_dict(), path), give state_dict_path={path!r} and model_class."
                )
            try:
                return torch.jit.load(local, **{"map_location": self.device, **arguments})
            except (KitError, MemoryError):
                raise
            except Exception as error:
                first = str(error).strip().partition("\n")[0]
                raise WeightsFileError(
                    f"The TorchScript file {path!r} can't be read, it may be corrupt or not TorchScript: {first}"
                ) from error


class PytorchModelHandlerKeyedTensor(PytorchModelHandlerTensor):
    """A torch module whose examples are dicts of tensors, stacked key by key and passed by keyword.

    Arguments and errors are those of `PytorchModelHandlerTensor`; `make_keyed_tensor_model_fn` makes
    an `inference_fn` for another method than ``forward``.
    """

    _keyed = True

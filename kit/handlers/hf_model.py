"""Handlers for Hugging Face models with tensors as examples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from kit.checks import check_mapping
from kit.errors import InvalidSetting
from kit.handlers import hf_common, paths
from kit.handlers.torch_inference import InferenceFn, TorchHandler


class _HuggingFaceModelHandler(TorchHandler):
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_class: Any,
        framework: str,
        device: Any,
        inference_fn: InferenceFn | None,
        load_model_args: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(**options)
        name = type(self).__name__
        if not model_uri or not model_class:
            raise InvalidSetting(
                f"{name}: model_uri={model_uri!r} and model_class={model_class!r} are needed together, "
                'such as "bert-base-uncased" and AutoModel.'
            )
        if framework != "pt":
            raise InvalidSetting(f'{name}: framework={framework!r}: transformers has "pt" only.')
        self._model_path = paths.checked("model_uri", model_uri)
        check_mapping("load_model_args", load_model_args)
        self._model_class = model_class
        self._load_model_args = dict(load_model_args or {})
        self._set_inference(inference_fn, device)
        self.preload = hf_common.preload(self._model_path)

    def load_model(self) -> Any:
        """The model in eval mode on its device, without gradients.

        Raises:
            WeightsFileError: it's neither a local folder nor on the hub, or it can't be loaded.
            InvalidSetting: a model_class that transformers doesn't have.
            DeviceUnavailable: a GPU asked for and missing.
            MissingExtra: transformers isn't installed.
        """
        transformers = hf_common.need_transformers()
        model_class = self._model_class
        if isinstance(model_class, str):
            found = getattr(transformers, model_class, None)
            if found is None:
                raise InvalidSetting(f"model_class={model_class!r}: transformers has no class of this name.")
            model_class = found
        device = self.device
        with hf_common.opened(self._model_path) as uri:
            model = model_class.from_pretrained(uri, **self._load_model_args)
        if "device_map" not in self._load_model_args:
            model = model.to(device)
        return model.requires_grad_(False).eval()


class HuggingFaceModelHandlerTensor(_HuggingFaceModelHandler):
    """A transformers model whose examples are tensors of one shape (such as input_ids), stacked to [n, ...].

    An output with fields, as transformers' models return, becomes a dict of tensors for each example.

    Args:
        model_uri: local folder, name on the hub, or the fsspec URL of a folder.
        model_class: class with ``from_pretrained``, or its name in transformers ("AutoModel").
        device: "CPU" (default), "auto", "cuda", "cuda:1", "mps" or "GPU"; looked for in ``load_model``.
        inference_fn: ``fn(batch, model, device, inference_args, model_id)`` that returns predictions.
        load_model_args: keyword arguments for ``from_pretrained``.
        options: those of `kit.ModelHandler`.

    Raises:
        InvalidSetting: no model_uri or no model_class.
    """

    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_class: Any,
        device: Any = "CPU",
        *,
        inference_fn: InferenceFn | None = None,
        load_model_args: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model_uri, model_class, "pt", device, inference_fn, load_model_args, options)


class HuggingFaceModelHandlerKeyedTensor(_HuggingFaceModelHandler):
    """A transformers model whose examples are dicts of tensors (input_ids, attention_mask), stacked key by key.

    Args and errors are those of `HuggingFaceModelHandlerTensor`; in addition:
        framework: "pt", the only one that transformers still has.
    """

    _keyed = True

    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        model_class: Any,
        framework: str = "pt",
        device: Any = "CPU",
        *,
        inference_fn: InferenceFn | None = None,
        load_model_args: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model_uri, model_class, framework, device, inference_fn, load_model_args, options)

"""Model handlers for PyTorch, Hugging Face, sentence-transformers and scikit-learn.

Importing this package imports none of those libraries; neither does making a handler. They are
imported by ``load_model`` in the process that serves the model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.handlers.huggingface import (
        HuggingFaceModelHandlerKeyedTensor,
        HuggingFaceModelHandlerTensor,
        HuggingFacePipelineModelHandler,
        PipelineTask,
    )
    from kit.handlers.pytorch import (
        PytorchModelHandlerKeyedTensor,
        PytorchModelHandlerTensor,
        default_keyed_tensor_inference_fn,
        default_tensor_inference_fn,
        make_keyed_tensor_model_fn,
        make_tensor_model_fn,
    )
    from kit.handlers.sentence_transformers import SentenceTransformerModelHandler
    from kit.handlers.sklearn import ModelFileType, SklearnModelHandlerNumpy, SklearnModelHandlerPandas

__all__ = [
    "HuggingFaceModelHandlerKeyedTensor",
    "HuggingFaceModelHandlerTensor",
    "HuggingFacePipelineModelHandler",
    "ModelFileType",
    "PipelineTask",
    "PytorchModelHandlerKeyedTensor",
    "PytorchModelHandlerTensor",
    "SentenceTransformerModelHandler",
    "SklearnModelHandlerNumpy",
    "SklearnModelHandlerPandas",
    "default_keyed_tensor_inference_fn",
    "default_tensor_inference_fn",
    "make_keyed_tensor_model_fn",
    "make_tensor_model_fn",
]

_HOMES = {
    "HuggingFaceModelHandlerKeyedTensor": "huggingface",
    "HuggingFaceModelHandlerTensor": "huggingface",
    "HuggingFacePipelineModelHandler": "huggingface",
    "PipelineTask": "huggingface",
    "PytorchModelHandlerKeyedTensor": "pytorch",
    "PytorchModelHandlerTensor": "pytorch",
    "default_keyed_tensor_inference_fn": "pytorch",
    "default_tensor_inference_fn": "pytorch",
    "make_keyed_tensor_model_fn": "pytorch",
    "make_tensor_model_fn": "pytorch",
    "SentenceTransformerModelHandler": "sentence_transformers",
    "ModelFileType": "sklearn",
    "SklearnModelHandlerNumpy": "sklearn",
    "SklearnModelHandlerPandas": "sklearn",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kit.handlers' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kit.handlers.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Handlers for Hugging Face transformers: pipelines, and models with tensors as examples."""

from __future__ import annotations

from kit.handlers.hf_model import HuggingFaceModelHandlerKeyedTensor, HuggingFaceModelHandlerTensor
from kit.handlers.hf_pipeline import HuggingFacePipelineModelHandler, PipelineTask

__all__ = [
    "HuggingFaceModelHandlerKeyedTensor",
    "HuggingFaceModelHandlerTensor",
    "HuggingFacePipelineModelHandler",
    "PipelineTask",
]

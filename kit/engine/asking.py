"""What the engine asks a handler before anything is started: modules to import, kinds of examples to expect."""

from __future__ import annotations

from typing import Any

from kit import batching


def preload_of(handler: Any) -> list[str]:
    """Modules that the fork server imports for a handler, ours or Beam's."""
    own = list(getattr(handler, "preload", ()))
    while handler is not None:
        modules = [cls.__module__ for cls in type(handler).__mro__]
        beams = [module for module in modules if module.startswith("apache_beam.")]
        own += ["kit.beams_base", *beams] if beams else []
        handler = getattr(handler, "_base", None)  # of Beam's wrappers
    return list(dict.fromkeys(["numpy", "kit.engine.worker", "kit.engine.host", "kit.engine.loader", *own]))


def works_on_tensors(handler: Any) -> bool:
    """True when it can be told beforehand that the examples or answers of a handler are torch tensors."""
    while handler is not None:
        if any(cls.__module__ in _OF_TENSORS for cls in type(handler).__mro__):
            return True
        if any(map(works_on_tensors, getattr(handler, "handlers", ()))):
            return True
        handler = getattr(handler, "_base", None)  # of Beam's wrappers
    return False


def looks_into(handler: Any) -> bool:
    """True when the owner looks into examples or predictions: for keys, or by functions of the handler's."""
    return bool(getattr(handler, "keyed", False)) or any(map(callable, batching.options_of(handler).values()))


_OF_TENSORS = ("kit.handlers.torch_inference", "apache_beam.ml.inference.pytorch_inference")

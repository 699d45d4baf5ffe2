"""Beam's KeyedModelHandler in the kit's form, so that the kit's model manager has its models."""

from __future__ import annotations

import copy
from typing import Any

import kit


def _in_our_form(handler: Any) -> Any:
    """`kit.KeyedModelHandler` for Beam's one with mappings, functions added to it included; others as they are.

    Beam's own keeps its models in a manager of Beam's, which finds them by a server that no other process of the
    kit's could use, and counts them instead of their bytes.
    """
    inner = handler
    while hasattr(inner, "_base") and hasattr(inner, "load_model"):
        inner = inner._base
    if not _has_mappings(inner):
        return handler
    keys: dict[Any, list[Any]] = {}
    for key, name in inner._key_to_id_map.items():
        keys.setdefault(name, []).append(key)
    mappings = [kit.KeyModelMapping(keys[name], copy.copy(inner._id_to_mh_map[name])) for name in keys]
    found: Any = kit.KeyedModelHandler(mappings, inner._max_models_per_worker_hint)
    for function in reversed(list(handler.get_preprocess_fns())):
        found = found.with_preprocess_fn(function)
    for function in handler.get_postprocess_fns():
        found = found.with_postprocess_fn(function)
    return found


def _has_mappings(handler: Any) -> bool:
    return any(
        cls.__name__ == "KeyedModelHandler" and cls.__module__ == "apache_beam.ml.inference.base"
        for cls in type(handler).__mro__
    ) and not getattr(handler, "_single_model", True)

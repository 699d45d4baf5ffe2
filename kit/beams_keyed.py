"""Beam's handlers of examples with keys in our form: results carry the keys, our model manager has the models."""

from __future__ import annotations

import copy
from typing import Any

import kit


def _in_our_form(handler: Any) -> Any:
    """Our handler of the same name for Beam's keyed ones, functions added to it included; others as they are.

    Beam's own with mappings keeps its models in a manager of Beam's, which finds them by a server that no other process
    of the kit's could use, and counts them instead of their bytes.
    """
    inner = handler
    while hasattr(inner, "_base") and hasattr(inner, "load_model"):
        inner = inner._base
    if _is_beams(inner, "KeyedModelHandler"):
        found = _keyed(inner)
    elif _is_beams(inner, "MaybeKeyedModelHandler"):
        found = kit.MaybeKeyedModelHandler(copy.copy(inner._unkeyed))
    else:
        return handler
    for function in reversed(list(handler.get_preprocess_fns())):
        found = found.with_preprocess_fn(function)
    for function in handler.get_postprocess_fns():
        found = found.with_postprocess_fn(function)
    return found


def _keyed(inner: Any) -> Any:
    if inner._single_model:
        return kit.KeyedModelHandler(copy.copy(inner._unkeyed))
    keys: dict[Any, list[Any]] = {}
    for key, name in inner._key_to_id_map.items():
        keys.setdefault(name, []).append(key)
    mappings = [kit.KeyModelMapping(keys[name], copy.copy(inner._id_to_mh_map[name])) for name in keys]
    return kit.KeyedModelHandler(mappings, inner._max_models_per_worker_hint)


def _is_beams(handler: Any, name: str) -> bool:
    return any(
        cls.__name__ == name and cls.__module__ == "apache_beam.ml.inference.base" for cls in type(handler).__mro__
    )

"""The model that a side input names: one for all examples, or other ones for some keys."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import apache_beam as beam

from kit.key_mappings import KeyModelPathMapping

#: A path of the one model, paths of models by key, or None for the handler's own.
Version = str | dict[Hashable, str] | None


def version_of(side_input: Any, before: Version) -> Version:
    """What to serve under a side input, after what was served `before`.

    A list of `KeyModelPathMapping`, ours or Beam's, changes the models of its keys and leaves the others as they are
    by then, as Beam's own step does; so does an empty side input with models by key. Else the latter means the
    handler's own model.
    """
    if not side_input or isinstance(side_input, beam.pvalue.EmptySideInput):
        return before if isinstance(before, dict) else None
    if isinstance(side_input, (list, tuple)) and hasattr(side_input[0], "keys"):
        named = {key: mapping.update_path for mapping in side_input for key in mapping.keys}
        return {**before, **named} if isinstance(before, dict) else named
    return str(side_input.model_id) or None


def mappings(paths: Mapping[Hashable, str]) -> list[KeyModelPathMapping]:
    """The same as `update_model_paths` takes it: keys with one path share a model."""
    keys: dict[str, list[Hashable]] = {}
    for key, path in paths.items():
        keys.setdefault(path, []).append(key)
    return [KeyModelPathMapping(keys[path], path) for path in keys]

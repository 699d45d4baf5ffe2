"""What the deployment of a pipeline serves: the handler without its functions, which are steps of the pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from kit import batching
from kit.example_bytes import num_bytes


def core_of(handler: Any) -> Any:
    """A copy of a handler without pre- and post-processing, whose bare values come out as they are.

    Beam's RunInference hands out whatever ``run_inference`` gives, and so shall ours.
    """
    core = copy.copy(handler)
    # `list` makes an empty list, and can be pickled.
    core.get_preprocess_fns = list
    core.get_postprocess_fns = list
    core.as_given = True
    return core


def counts_bytes(handler: Any) -> bool:
    """True when a handler, or one of those of a keyed handler, has a ``get_num_bytes`` of the user's own.

    Beam's own ones pickle the batch or look at every number of a tensor, which may take longer than the model.
    """
    module = getattr(getattr(type(handler), "get_num_bytes", None), "__module__", None)
    own = module is not None and module.partition(".")[0] not in ("kit", "apache_beam")
    return own or any(map(counts_bytes, getattr(handler, "handlers", ())))


def unkeyed_bytes(handler: Any) -> Callable[[Sequence[Any]], int]:
    """A function that gives the bytes of pairs of one model without their keys, as its handler counts them."""

    def count(pairs: Sequence[Any]) -> int:
        return int(handler.routes.of(pairs[0][0]).handler.get_num_bytes([example for _, example in pairs]))

    return count


def size_unkeyed(pairs: Sequence[Any]) -> int:
    """The same of the arrays and texts themselves."""
    return sum(num_bytes(example) for _, example in pairs)


def size_of(batch: Sequence[Any]) -> int:
    """Bytes of the arrays and texts of a batch."""
    return sum(map(num_bytes, batch))


def groups_of(handler: Any) -> dict[Hashable, Hashable] | None:
    """Of models by key, the key that stands for each key: the first of its mapping; None where keys aren't listed."""
    routes = getattr(handler, "routes", None)
    return routes.first_keys() if routes is not None and routes.listed else None


def largest_batch(handler: Any) -> int | None:
    """``max_batch_size`` of a handler; None where it has none."""
    found = batching.options_of(handler).get("max_batch_size")
    return None if found is None else max(1, int(found))

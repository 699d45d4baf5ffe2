"""How a step of a pipeline treats its examples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Options:
    """How a step treats its examples.

    Attributes:
        inference_args: for ``run_inference``.
        namespace: of the metrics, None when the handler reports its own.
        exc_class: failures of these classes are dead letters; None fails the pipeline on any.
        timeout_s: longest that loading, and one batch, may take.
        keyed: examples come with keys, and the results with them.
        prebatched: each example is a batch; its results are emitted one by one.
        batch_size: the handler's ``max_batch_size``.
        side_input: a side input names the model, so nothing is loaded before the first example.
        own_bytes: the handler's own ``get_num_bytes`` counts the bytes of a batch.
        groups: of models by key: the key that stands for each key, the first of those that share its model.
    """

    inference_args: Mapping[str, Any] | None = None
    namespace: str | None = None
    exc_class: type[BaseException] | tuple[type[BaseException], ...] | None = None
    timeout_s: float | None = None
    keyed: bool = False
    prebatched: bool = False
    batch_size: int | None = None
    side_input: bool = False
    own_bytes: bool = False
    groups: Mapping[Hashable, Hashable] | None = None

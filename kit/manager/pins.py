"""What keeps models from being pinned."""

from __future__ import annotations

from collections.abc import Hashable

from kit import errors
from kit.shorten import counted


def not_pinned(name: Hashable) -> errors.ModelLoadFailed:
    """The error of a call that pins a model whose pin was taken back meanwhile."""
    return errors.ModelLoadFailed(
        f"the model of {name!r} isn't pinned: it was unloaded or unpinned while models to be pinned were loaded."
    )


def check_pins(pinned: int, most: int | None) -> None:
    """Raise BudgetExceeded when there are more pinned models than are to be loaded at once."""
    if most is not None and pinned > most:
        raise errors.BudgetExceeded(
            f"{pinned} models are pinned, and max_models_per_worker_hint would allow {counted(most, 'model')} at once "
            "in all: unpin some first, or raise max_models_per_worker_hint."
        )

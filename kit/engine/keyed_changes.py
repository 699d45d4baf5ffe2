"""Changes to models by key that need no other processes: the budget, and the paths of some keys."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from kit.engine.packing import pack
from kit.settings import budget_in_words
from kit.shorten import counted

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.settings import Settings


def resize(engine: Engine, settings: Settings) -> None:
    """Change the memory budget, live.

    Raises:
        BudgetExceeded: pinned models alone take more.
    """
    with engine.switch_lock:
        assert engine.places is not None
        engine.places.resize(engine.handler, settings)
        before, engine.settings = engine.settings, settings
        engine.topology.settings = settings
    budgets = budget_in_words(before.memory_budget), budget_in_words(settings.memory_budget)
    engine.event("resize", f"memory budget {' → '.join(budgets)}")


def update_models(engine: Engine, mappings: Any) -> None:
    """Serve some keys by other paths; requests under way are answered by the models that they have.

    Raises:
        InvalidSetting, UnknownKey: nothing is changed then.
    """
    with engine.switch_lock:
        assert engine.places is not None
        handler = copy.copy(engine.handler)
        handler.routes = handler.routes.copied()
        gone = handler.routes.update(mappings)
        handler_bytes = pack(handler)
        engine.handler = engine.topology.handler = handler
        engine.topology.handler_bytes = handler_bytes  # for processes to come; the others are told the path
        engine.dispatcher.use(handler)
        pinned = engine.places.carry_pins(handler)
        engine.places.forget(gone)
        engine.places.pins.load_again(pinned)
    engine.dispatcher.pump()
    engine.event("update", f"{counted(len(gone), 'model') if gone else 'no model'} by key replaced")

"""Beam's module of RunInference, without the libraries that only its model manager needs: to be imported before it."""

from __future__ import annotations

import importlib
import resource
import sys
from typing import Any

BASE = "apache_beam.ml.inference.base"
MANAGER = "apache_beam.ml.inference.model_manager"


def _import_base() -> None:
    """Import Beam's ``base`` without torch and scipy, which take 165 MB of every process, and seconds.

    Beam 2.77 imports its model manager, and with it both libraries, where they are installed; where they aren't it
    goes on without, and imports the manager when a pipeline asks for it. Here it is told that they aren't: the kit
    keeps models in its own way. What else imports torch, such as elements that are tensors, still can.
    """
    if BASE in sys.modules or MANAGER in sys.modules:
        return
    sys.modules[MANAGER] = None  # type: ignore[assignment]  # Python's own way to say that a module can't be imported
    try:
        base: Any = importlib.import_module(BASE)
    finally:
        del sys.modules[MANAGER]
    # Left out together with the manager; Beam measures the memory that a model takes with it.
    base.resource = resource


_import_base()

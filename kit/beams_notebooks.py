"""Pipelines in a notebook, with a pandas that Beam's own notebook support doesn't know.

To put the number of the cell into the names of steps, Beam 2.77 imports its interactive module at every step, and that
fails with pandas 3, which has no ``DataFrame.first``. So no step could be built, those before the kit's included:
what is done about it has to be done as soon as Beam's pipelines are there, without importing Beam for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from typing import Any

_MODULE = "apache_beam.pipeline"


def let_pipelines_be_built() -> None:
    """In IPython, keep the names of steps as they are given where Beam can't number them; idempotent."""
    ipython = sys.modules.get("IPython")
    if ipython is None or getattr(ipython, "get_ipython", lambda: None)() is None:
        return
    loaded = sys.modules.get(_MODULE)
    if loaded is not None:
        _mend(loaded)
    elif not any(isinstance(finder, _OnceLoaded) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OnceLoaded())


class _OnceLoaded:
    """Finds nothing, but has Beam's module mended once it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        with contextlib.suppress(ValueError):  # another thread was here, too
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _mend(module)

            loader.exec_module = exec_module
        return spec


def _mend(module: Any) -> None:
    """Have the module's function that numbers the names of steps give up where it can't."""
    number = getattr(module, "alter_label_if_ipython", None)
    if number is None or getattr(number, "__module__", None) == __name__:
        return

    def number_or_leave(transform: Any, pvalueish: Any) -> None:
        try:
            number(transform, pvalueish)
        except (AttributeError, ImportError):
            module.alter_label_if_ipython = _leave  # it would fail at each step, after trying for milliseconds

    module.alter_label_if_ipython = number_or_leave


def _leave(transform: Any, pvalueish: Any) -> None:
    """Leave the name of a step as it is."""

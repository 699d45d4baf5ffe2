"""Pipelines in a notebook, with a pandas that Beam's own notebook support doesn't know."""

from __future__ import annotations

import sys
from typing import Any


def let_pipelines_be_built() -> None:
    """In IPython, have Beam build pipelines even where its interactive module can't be imported.

    To put the number of the cell into the names of steps, Beam 2.77 imports that module at every step, and that
    fails with pandas 3, which has no ``DataFrame.first``. Then names stay as they are given.
    """
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return
    try:
        import apache_beam.runners.interactive.interactive_environment  # noqa: F401
    except (AttributeError, ImportError):
        from apache_beam import pipeline

        pipeline.alter_label_if_ipython = _leave


def _leave(transform: Any, pvalueish: Any) -> None:
    """Leave the name of a step as it is."""

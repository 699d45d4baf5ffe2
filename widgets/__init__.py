"""A panel for deployments, in a notebook: `ServingPanel(deployment)`. Needs ipywidgets (the extra `demo`)."""

from __future__ import annotations

try:
    import ipywidgets as _ipywidgets  # noqa: F401
except ImportError as error:
    from kit.errors import MissingExtra

    raise MissingExtra("the panel needs ipywidgets: pip install 'serving-kit[demo]'.") from error

from widgets.panel import ServingPanel

__all__ = ["ServingPanel"]

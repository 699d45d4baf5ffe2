"""A picture on the page, with words for those who don't see it."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets


def image(name: str, words: str) -> Any:
    """A widget for PNGs, of the class `name` on the page; its tooltip is what a screen reader says of it."""
    widget = widgets.Image(format="png", layout={"max_width": "100%"}, tooltip=words)
    widget.add_class(name)
    return widget

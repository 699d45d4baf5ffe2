"""A picture on the page."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets


def image(name: str) -> Any:
    """A widget for PNGs, of the class `name` on the page.

    It has no place for words for those who don't see it, and with a tooltip it fails on the page; so these stand in
    the table of numbers beside it (`html.facts`).
    """
    widget = widgets.Image(format="png", layout={"max_width": "100%"})
    widget.add_class(name)
    return widget

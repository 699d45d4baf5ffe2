"""The static twin of a panel: text and a picture in an output of their own, which survive in a saved notebook.

A widget's view is gone once its kernel is. The twin stays; while the panel is alive, a style inside the panel
(`Twin.hide`) keeps its twin out of sight, so that nothing is shown twice.
"""

from __future__ import annotations

import base64
import io
import uuid
from html import escape
from typing import Any


def stitched(pngs: list[bytes]) -> bytes:
    """Pictures one below the other, small: with a palette of 64 colours where none is half transparent."""
    from PIL import Image

    images = [Image.open(io.BytesIO(png)).convert("RGBA") for png in pngs]
    width, height = max(image.width for image in images), sum(image.height for image in images)
    whole = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    buffer = io.BytesIO()
    whole.quantize(96, method=Image.Quantize.FASTOCTREE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


class Twin:
    """An output with a display id; outside a notebook nothing is shown."""

    def __init__(self) -> None:
        self._id = f"kit-panel-{uuid.uuid4().hex[:12]}"
        self._shown = False

    @property
    def hide(self) -> str:
        """A style for the live panel; of other panels it hides nothing."""
        return f"<style>.{self._id} {{ display: none; }}</style>"

    @property
    def shown(self) -> bool:
        """Whether it is in a notebook."""
        return self._shown

    def show(self, text: str, png: bytes) -> None:
        """Display it, or bring what is displayed up to date."""
        from IPython.display import display

        display(bundle(text, png, self._id), raw=True, display_id=self._id)
        self._shown = True

    def update(self, text: str, png: bytes) -> None:
        """Bring it up to date where it is displayed."""
        from IPython.display import update_display

        if self._shown:
            update_display(bundle(text, png, self._id), raw=True, display_id=self._id)


def bundle(text: str, png: bytes, name: str) -> dict[str, Any]:
    """The twin in all the forms that a page may take one of; `name` is a class of its own (pages drop ids)."""
    encoded = base64.b64encode(png).decode("ascii")
    html = (
        f'<div class="kit-twin {name}"><pre style="white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere">'
        f"{escape(text)}</pre>"
        f'<img alt="memory and throughput over time; the numbers stand above" style="max-width:100%" '
        f'src="data:image/png;base64,{encoded}"></div>'
    )
    return {"text/plain": text, "text/html": html, "image/png": encoded}

"""A bar with words for work under way, and a button that cancels it."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets


class Progress:
    """Hidden until `show`; `on_cancel` is called from the button."""

    def __init__(self, what: str, on_cancel: Callable[[], object]) -> None:
        self._bar = widgets.IntProgress(min=0, max=1, layout={"width": "200px"}, description="")
        self.words = widgets.Label("")
        self.button = widgets.Button(description=f"Cancel {what}", disabled=True)
        self.button.on_click(lambda _: on_cancel())
        self.box = widgets.HBox([self.button, self._bar, self.words])
        self.box.add_class("kit-progress")
        self.hide("")

    def show(self, done: int, total: int, words: str) -> None:
        """`done` of `total` steps are done."""
        self._bar.max, self._bar.value = max(1, total), min(done, max(1, total))
        self._bar.layout.display = ""
        self.words.value = words
        self.button.disabled = False

    def hide(self, words: str) -> None:
        """Nothing is under way; `words` tell how it ended."""
        self._bar.layout.display = "none"
        self.words.value = words
        self.button.disabled = True

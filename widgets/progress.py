"""Work under way: how far it is, a bar with words for it, and a button that cancels it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

import ipywidgets as widgets

from kit.errors import SwitchCancelled


class Steps:
    """How far work is that takes long, by what it is; written by its threads, read by the one that draws.

    Attributes:
        now: (steps done, all steps, words) of what is under way.
        ended: how it ended last, where that is worth words.
    """

    def __init__(self) -> None:
        self.now: dict[str, tuple[int, int, str]] = {}
        self.ended: dict[str, str] = {}

    def note(self, what: str, done: int, total: int, words: str) -> None:
        """`done` of `total` steps are done."""
        self.now[what] = done, total, words

    @contextmanager
    def under_way(self, what: str) -> Iterator[None]:
        """Within it the work is done."""
        self.note(what, 0, 1, "starting")
        words = ""
        try:
            yield
        except (CancelledError, SwitchCancelled):
            words = "cancelled"
            raise
        except Exception:
            words = "failed"
            raise
        finally:
            self.ended[what] = words
            del self.now[what]


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

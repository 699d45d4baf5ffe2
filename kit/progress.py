"""A progress bar that shows itself only on long work and only where somebody can see it."""

from __future__ import annotations

import sys
import time
import uuid
from types import TracebackType
from typing import Any, Self, TextIO

#: Work shorter than this shows no bar.
DELAY_S = 1.0
_Base: Any = object  # what a mix-in is mixed into
_RED = "#d62728"


def somebody_watches(stream: TextIO | None = None) -> bool:
    """Whether output goes to a person: to a notebook, or to a terminal (`stream`, stderr by default)."""
    if in_notebook():
        return True
    stream = sys.stderr if stream is None else stream
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # no stream (pythonw), or a closed one
        return False


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel; imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class progress:  # in small letters, as it is used like a function: `with progress(n) as bar:`
    """A tqdm bar, in a notebook a widget, that appears after a second and turns red on failure.

    It goes when the work is done, in a notebook for a line of text, and stays when it fails. Where nobody watches,
    nothing is printed and tqdm isn't even imported.

    Args:
        total: how much there is to do, None when that isn't known.
        desc: what is being done.
        unit: what is counted.
        enabled: True or False to decide it; None asks `somebody_watches`.
        delay_s: seconds until it appears.

    Use:
        with progress(len(examples), "predictions") as bar:
            bar.update(64)
    """

    def __init__(
        self,
        total: int | None,
        desc: str = "",
        unit: str = "examples",
        *,
        enabled: bool | None = None,
        delay_s: float = DELAY_S,
    ) -> None:
        self.total = total
        self.desc = desc
        self.unit = unit
        self.n = 0
        self._enabled = somebody_watches() if enabled is None else enabled
        self._began = time.monotonic()
        self._shows_at = self._began + delay_s
        self._bar: Any = None

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self.n += n
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() >= self._shows_at and (self.total is None or self.n < self.total):
            self._bar = self._make()

    def close(self, failed: bool = False) -> None:
        """Take the bar away, or leave it in red when `failed`. Twice is once."""
        bar, self._bar, self._enabled = self._bar, None, False
        if bar is None:
            return
        bar.leave = failed
        bar.colour = _RED if failed else None
        if failed:
            bar.refresh()
        bar.close()
        if failed and getattr(bar, "container", None) is not None:
            bar.disp(bar_style="danger", check_delay=False)  # the widget's own red

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A generator that its reader closes hasn't failed.
        self.close(failed=error is not None and not isinstance(error, GeneratorExit))

    def _make(self) -> Any:
        bar = tqdm_bar(
            total=self.total,
            initial=self.n,
            desc=self.desc or None,
            unit=" " + self.unit,
            miniters=1,  # looks at the clock on every update, so nothing stalls without a monitor thread
            dynamic_ncols=True,
        )
        # The rate is that of the whole work, not of what came after the bar.
        bar.start_t -= time.monotonic() - self._began
        bar.initial = 0
        return bar


def tqdm_bar(**options: Any) -> Any:
    """A tqdm bar without a monitor thread, which a saved notebook shows as it ended."""
    from tqdm.auto import tqdm

    in_page = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return type("Bar", (_Lasting, tqdm) if in_page else (tqdm,), {"monitor_interval": 0})(**options)


class _Lasting(_Base):
    """Beside tqdm's bar for notebooks: at the end what was displayed is brought up to date.

    A saved notebook holds the text that came with the widget when it was displayed, such as 12 %, and not how the
    widget moved on.
    """

    def __init__(self, **options: Any) -> None:
        from IPython.display import display

        super().__init__(display=False, **options)
        self._display_id = f"kit-progress-{uuid.uuid4().hex[:12]}"
        display(self.container, display_id=self._display_id)
        self.displayed = True

    def close(self) -> None:
        from IPython.display import update_display

        if self.disable:  # closed already
            return
        last = self.format_meter(**self.format_dict)
        super().close()
        widget = self.container._repr_mimebundle_() if self.leave else {}
        update_display({**widget, "text/plain": last}, raw=True, display_id=self._display_id)

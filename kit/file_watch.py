"""Hot updates from files: the newest file that matches a pattern becomes the model."""

from __future__ import annotations

import glob
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kit import errors
from kit.checks import check_takes_paths, seconds
from kit.shorten import counted, shorten

if TYPE_CHECKING:
    from kit.deployment import Deployment


class Version(NamedTuple):
    """A file as it stood when it was looked at; differs whenever the file was written."""

    changed_ns: int  # also when it was moved here, which leaves the time of writing
    mtime_ns: int
    path: str
    size: int
    inode: int


class ModelWatch:
    """Made by `Deployment.watch`; a thread that looks at files.

    Attributes:
        updates: paths that became the model, in order.
        errors: (path, error) of files that couldn't be served.
        error: the latest error, None when the latest file is served.
    """

    def __init__(self, deployment: Deployment, pattern: str, interval_s: float) -> None:
        if not isinstance(pattern, str | os.PathLike) or not os.fspath(pattern):
            raise errors.InvalidSetting(f"pattern={pattern!r}: give a path with wildcards, such as 'models/*.pt'.")
        if interval_s is None:
            raise errors.InvalidSetting("interval_s=None: give seconds above 0.")
        every_s = seconds("interval_s", interval_s)
        assert every_s is not None
        check_takes_paths(deployment.handler, pattern)
        self.pattern = os.path.abspath(os.path.expanduser(pattern))
        self.interval_s: float = every_s
        self.updates: list[str] = []
        self.errors: list[tuple[str, Exception]] = []
        self.error: Exception | None = None
        # Weak: a watch mustn't keep alive a deployment that nobody else wants.
        self._deployment = weakref.ref(deployment)
        self._stop = threading.Event()
        self._handled = self._newest()
        self._take_back: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="kit-watch-files", daemon=True)

    def start(self) -> Self:
        """Begin to look."""
        deployment = self._deployment()
        if deployment is not None:
            self._take_back = deployment.at_close(self._stop.set)
            # A named deployment goes on when this process lets go of it.
            weakref.finalize(deployment, self._stop.set).atexit = False
        self._thread.start()
        return self

    def stop(self) -> None:
        """Look no more; an update under way is finished first. Idempotent."""
        self._stop.set()
        self._take_back()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def running(self) -> bool:
        """True while it looks."""
        return self._thread.is_alive()

    def __repr__(self) -> str:
        state = "looking" if self.running else "stopped"
        words = f"{state}, {counted(len(self.updates), 'update')}, {counted(len(self.errors), 'error')}"
        if self.error is not None:
            words += f"; the newest file isn't served: {shorten(_words(self.error), 200)}"
        return f"<watch of {self.pattern!r}: {words}>"

    # ---- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        before: Version | None = None
        while self._wait():
            newest = self._newest()
            if newest is not None and newest.size and self._is_news(newest):
                # The same in two looks: nobody is writing it any more.
                if newest == before:
                    self._handled = newest
                    self._update(newest.path)
                before = newest

    def _is_news(self, newest: Version) -> bool:
        """Not so when only the file that was newest is gone."""
        handled = self._handled
        return handled is None or (newest != handled and newest.changed_ns >= handled.changed_ns)

    def _wait(self) -> bool:
        """Wait for the next look; False when there is none."""
        return not self._stop.wait(self.interval_s) and not self._ended()

    def _ended(self) -> bool:
        deployment = self._deployment()
        return self._stop.is_set() or deployment is None or deployment.closed

    def _newest(self) -> Version | None:
        found = [version for path in glob.glob(self.pattern, recursive=True) if (version := _look(path)) is not None]
        return max(found, default=None)

    def _update(self, path: str) -> None:
        deployment: Any = self._deployment()
        if deployment is None:
            return
        try:
            deployment.update_model(path)
        except Exception as error:
            if self._ended():
                return
            deployment.note("warning", f"{path} isn't served, the model before goes on: {_words(error)}")
            self.error = error
            self.errors.append((path, error))
        else:
            self.error = None
            self.updates.append(path)


def _words(error: Exception) -> str:
    """What an error says, without the traceback of another process."""
    return str(error.args[0]) if error.args else repr(error)


def _look(path: str) -> Version | None:
    """The file's version, None for folders and what has just gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not os.path.isfile(path):
        return None
    return Version(found.st_ctime_ns, found.st_mtime_ns, path, found.st_size, found.st_ino)

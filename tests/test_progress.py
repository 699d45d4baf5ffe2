from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from kit.progress import in_notebook, progress, somebody_watches


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: pytest sets its own stderr again between the fixtures and the test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with progress(100, delay_s=60) as bar:
        for _ in range(100):
            bar.update(1)
    assert terminal.getvalue() == ""


def test_long_work_shows_a_bar_that_goes_when_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    threads = threading.active_count()
    with progress(100, "predictions", delay_s=0) as bar:
        for _ in range(10):
            bar.update(10)
        assert threading.active_count() == threads
    shown = terminal.getvalue()
    assert "predictions" in shown
    assert "/100" in shown
    assert shown.endswith("\r")  # the line is blank again, the cursor at its start
    assert shown.rsplit("\r", 2)[1].strip() == ""


def test_failure_leaves_the_bar_in_red(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with pytest.raises(ValueError, match="bad example"), progress(100, delay_s=0) as bar:
        bar.update(40)
        raise ValueError("bad example")
    last = terminal.getvalue().rstrip("\n").rsplit("\r", 1)[1]
    assert "40/100" in last
    assert "\x1b[38;2;214;39;40m" in last


def test_a_stream_closed_by_its_reader_takes_its_bar_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)

    def stream() -> Iterator[int]:
        with progress(None, delay_s=0) as bar:
            while True:
                bar.update(1)
                yield bar.n

    reading = stream()
    assert [next(reading), next(reading)] == [1, 2]
    reading.close()
    assert "1 examples" in terminal.getvalue()
    assert terminal.getvalue().rsplit("\r", 2)[1].strip() == ""


def test_an_unknown_total(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with progress(None, delay_s=0) as bar:
        bar.update(5)
        bar.update(5)
    assert "10 examples" in terminal.getvalue() or "5 examples" in terminal.getvalue()


def test_nobody_watching_means_no_output_and_no_import() -> None:
    code = (
        "import sys; from kit.progress import progress\n"
        "with progress(10, delay_s=0) as bar:\n    bar.update(5)\n"
        "assert bar.n == 5\nassert 'tqdm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    assert not in_notebook()
    assert somebody_watches()
    assert not somebody_watches(io.StringIO())
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    assert not somebody_watches(closed)

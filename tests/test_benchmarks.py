"""Benchmarks say when they couldn't measure what they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("apache_beam")

from tests.benchmarks import beam_steps


def test_a_worker_that_waits_in_vain_for_the_others_says_how_many_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beam_steps, "LONGEST_START_S", 0.05)
    noting = beam_steps.Noting("in", beam_steps.same, str(tmp_path))
    with pytest.raises(TimeoutError, match=r"1 of 2 of Beam's workers have begun within 0\.05 s"):
        noting(1)
    (tmp_path / "another").touch()
    assert beam_steps.Noting("in", beam_steps.same, str(tmp_path))(1) == 1

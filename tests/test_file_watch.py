"""`deployment.watch`: the newest file becomes the model, and only a file that can be served."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit import errors
from kit.handlers import PytorchModelHandlerTensor
from tests.models import Doubling

INTERVAL_S = 0.1


def factor(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([[value]]), "bias": torch.zeros(1)}


def save(value: float, path: Path) -> Path:
    torch.save(factor(value), path)
    return path


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"not within a minute: {what}"
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    save(1.0, tmp_path / "models" / "v1.pt")
    return tmp_path / "models"


@pytest.fixture
def deployment(folder: Path) -> Iterator[kit.Deployment]:
    sizes = {"in_features": 1, "out_features": 1}
    handler = PytorchModelHandlerTensor(str(folder / "v1.pt"), torch.nn.Linear, sizes, device="cpu")
    with kit.deploy(handler, processes=1) as deployment:
        yield deployment


def answer(deployment: kit.Deployment) -> float:
    return float(deployment.predict([torch.tensor([3.0])])[0].inference)


def test_a_new_file_becomes_the_model_and_one_written_anew_too(deployment: kit.Deployment, folder: Path) -> None:
    watch = deployment.watch(str(folder / "*.pt"), interval_s=INTERVAL_S)
    assert answer(deployment) == 3.0
    new = save(2.0, folder / "v2.pt")
    until(lambda: watch.updates == [str(new)], "the update")
    assert answer(deployment) == 6.0
    # Moved here, with an older time of writing than that of the file that serves.
    older = save(4.0, folder.parent / "v2.pt")
    os.utime(older, (1, 1))
    older.rename(new)
    until(lambda: len(watch.updates) == 2, "the second update")
    assert answer(deployment) == 12.0
    assert watch.error is None
    watch.stop()
    assert not watch.running


def test_a_broken_file_never_replaces_a_good_model(deployment: kit.Deployment, folder: Path) -> None:
    watch = deployment.watch(str(folder / "*.pt"), interval_s=INTERVAL_S)
    whole = (save(5.0, folder.parent / "whole.pt")).read_bytes()
    (folder / "v2.pt").write_bytes(whole[: len(whole) // 2])
    until(lambda: watch.errors, "the error")
    assert answer(deployment) == 3.0
    assert isinstance(watch.error, errors.KitError)
    assert str(folder / "v2.pt") in str(watch.error)
    noted = " ".join(event.text for event in deployment._engine.history.events())
    assert "v2.pt isn't served, the model before goes on" in noted
    assert "looking, 0 updates, 1 error; the newest file isn't served: " in repr(watch)
    # The same file isn't tried again and again, and mended it serves.
    looked = len(watch.errors)
    (folder / "v2.pt").write_bytes(whole)
    until(lambda: watch.updates, "the update")
    assert answer(deployment) == 15.0
    assert watch.error is None
    assert len(watch.errors) == looked
    assert repr(watch).endswith("looking, 1 update, 1 error>")
    # A file of another model is no model for this class.
    torch.save({"other": torch.zeros(1)}, folder / "v3.pt")
    until(lambda: len(watch.errors) == looked + 1, "the second error")
    assert answer(deployment) == 15.0


def test_a_file_that_is_being_written_waits(deployment: kit.Deployment, folder: Path) -> None:
    """Written piece by piece, each within the interval; loaded once, when it is whole."""
    whole = (save(7.0, folder.parent / "whole.pt")).read_bytes()
    interval_s = 1.0
    watch = deployment.watch(str(folder / "*.pt"), interval_s=interval_s)
    pause = threading.Event()
    with (folder / "v2.pt").open("wb") as file:
        for start in range(0, len(whole), len(whole) // 5 + 1):
            file.write(whole[start : start + len(whole) // 5 + 1])
            file.flush()
            assert watch.errors == watch.updates == []
            pause.wait(interval_s / 3)
    until(lambda: watch.updates, "the update")
    assert watch.errors == []
    assert answer(deployment) == 21.0


def test_an_older_model_doesnt_come_back_when_the_newest_is_removed(deployment: kit.Deployment, folder: Path) -> None:
    watch = deployment.watch(str(folder / "*.pt"), interval_s=INTERVAL_S)
    newest = save(2.0, folder / "v2.pt")
    until(lambda: watch.updates, "the update")
    newest.unlink()
    third = save(3.0, folder.parent / "v3.pt")
    third.rename(folder / "v3.pt")
    until(lambda: len(watch.updates) == 2, "the next update")
    assert watch.updates[1].endswith("v3.pt")
    assert answer(deployment) == 9.0


def test_ends_with_the_deployment(deployment: kit.Deployment, folder: Path) -> None:
    watch = deployment.watch(str(folder / "*.pt"), interval_s=3600)
    deployment.close()
    until(lambda: not watch.running, "the end of the watch")
    watch.stop()
    with pytest.raises(errors.DeploymentClosed):
        deployment.watch("*.pt")


@pytest.mark.parametrize(
    ("pattern", "interval_s"),
    [("", 1), ("*.pt", 0), ("*.pt", -1), ("*.pt", "1"), (3, 1), ("*.pt", float("inf")), ("*.pt", None)],
)
def test_bad_input(deployment: kit.Deployment, pattern: Any, interval_s: Any) -> None:
    with pytest.raises(errors.InvalidSetting):
        deployment.watch(pattern, interval_s=interval_s)


def test_a_model_that_comes_from_no_path_is_told_at_once() -> None:
    """And not when the first file is there, hours later."""
    with kit.deploy(Doubling(), processes=1) as deployment:
        with pytest.raises(errors.InvalidSetting, match="Doubling has no update_model_path"):
            deployment.watch("*.pt")

"""The README's snippets run, its make targets exist, and what it links to is there."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kit

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FEW = 12


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippets take 300 texts and compare each mode three times, which takes two minutes: do less."""
    texts, compare = kit.assets.texts, kit.compare
    monkeypatch.setattr(kit.assets, "texts", lambda name: texts(name)[:FEW])
    monkeypatch.setattr(kit, "compare", partial(compare, repeats=1, seconds=0.05))


@pytest.mark.usefixtures("quick")
def test_the_snippets_run_one_after_the_other() -> None:
    pytest.importorskip("sentence_transformers")
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) >= 2
    names: dict[str, Any] = {}
    for number, snippet in enumerate(snippets, 1):
        exec(compile(snippet, f"README.md snippet {number}", "exec"), names)
    assert names["panel"].text().startswith("mode default: 2 processes")
    kit.close_all()
    assert names["panel"].closed
    assert len(names["predictions"]) == FEW
    assert names["predictions"][0].inference.shape == (384,)
    assert names["deployment"].closed
    assert names["deployment"].mode == "shared"
    assert {"default", "medium", "large", "shared"} <= set(names["comparison"].table["mode"])


def test_a_snippet_says_what_its_last_line_gives() -> None:
    assert ["a", "bb"] | kit.RunInference(_Lengths()) == [("a", 1, None), ("bb", 2, None)]


class _Lengths(kit.ModelHandler):
    def load_model(self) -> Any:
        return len

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [model(example) for example in batch]


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) | set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"demo", "test"} <= named <= targets


def test_every_folder_and_file_named_exists() -> None:
    named = set(re.findall(r"`((?:kit|data|notebooks|tests)/[\w./]*)`", README))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert all((ROOT / name).exists() for name in ("LICENSE", "requirements.lock", "environment.yml"))


def test_the_modes_of_the_table_are_the_modes() -> None:
    from kit.settings import MODES

    assert tuple(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))[: len(MODES)] == MODES

"""The set-up files agree with each other, and a built package holds all that it needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"demo", "lab", "test", "test-gpu", "bench", "lint", "clean"}


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    """Name -> exact version of every line of the lock file."""
    requirements = [Requirement(line) for line in lock_lines()]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in requirements
    }


def test_lock_pins_one_exact_version_each() -> None:
    for line in lock_lines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; .+)?", line), line
    assert len(pins()) == len(lock_lines())


def test_lock_leaves_out_what_must_not_be_installed() -> None:
    assert pins()["torch"] == "2.13.0"
    assert not {"torchvision", "torchaudio", "serving-kit", "pip"} & set(pins())
    assert not [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_conda_environment_has_the_pins_of_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [from_pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert from_pip == lock_lines()


def test_lock_satisfies_every_dependency_and_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == {"demo", "beam", "dev"}
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in map(Requirement, (line for group in groups for line in group)):
        version = pins().get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} isn't in the lock file"
        assert requirement.specifier.contains(version), f"{requirement}: the lock file has {version}"


def test_plain_make_lists_every_target_with_a_line_of_help() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    helps = dict(re.findall(r"^  make (\S+) +(\S.*)$", shown, flags=re.MULTILINE))
    assert set(helps) >= TARGETS


def test_old_python_is_refused_in_words(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "setup.py", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && { echo "Python 3.9.2"; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    made = subprocess.run(["make", "lint", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode != 0
    assert f"Python 3.11 or newer is needed; {old} is Python 3.9.2" in made.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_make_test(tmp_path: Path) -> None:
    """With a `make` of ours first on the path, which writes down how it was called."""
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "$PWD $CI $*"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CI": ""}
    called = subprocess.run(
        [ROOT / ".ci" / "run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert called.stdout.split() == [str(ROOT), "true", "test"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, built from a copy of what git would hand out."""
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("kit", "widgets", "data"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", base, source], check=True, capture_output=True)
    [wheel] = base.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(base / "site")
    return base / "site"


def test_wheel_holds_every_module_the_data_and_the_licence(site: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for name in ("kit", "widgets") for path in (ROOT / name).rglob("*.py")}
    built = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert modules <= built
    assert {"kit/py.typed", "kit/data/manifest.json", "kit/data/articles.jsonl", "kit/data/tickets.txt"} <= built
    assert any(name.endswith("/licenses/LICENSE") for name in built)


def test_installed_package_finds_its_texts(site: Path, tmp_path: Path) -> None:
    script = "import kit.assets as a; print(a.__file__, len(a.texts('tickets')), len(a.texts('articles')))"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == [str(site / "kit" / "assets.py"), "300", "20"]

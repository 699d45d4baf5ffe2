"""Puts the data folder into built packages as kit/data; everything else stands in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """An editable install reads the data folder of the checkout, so it needs no copy."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            source = Path(__file__).resolve().parent / "data"
            shutil.copytree(source, Path(self.build_lib) / "kit" / "data", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithData})

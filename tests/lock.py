"""Writes requirements.lock and environment.yml from the packages installed in this environment.

Run it with `make lock` after installing what is to be pinned. Both files hold the same pins; a test
compares them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: pip comes with the environment; torchvision and torchaudio built for another torch break transformers.
LEFT_OUT = {"pip", "serving-kit", "torchvision", "torchaudio"}
#: What torch brings along on a machine with a CUDA build; its own metadata pins these.
LEFT_OUT_PREFIXES = ("nvidia-", "cuda-", "triton")
#: Needed on another system only, so never in a freeze made on Linux.
ELSEWHERE = ["appnope==0.1.4 ; sys_platform == 'darwin'"]

HEADER = """\
# Exact versions of everything that `make` installs, with --no-deps. Written by `make lock`; don't edit.
# torch has no local tag here: a CPU build in a folder that pip knows (find-links) satisfies the pin as well.
"""


def pins() -> list[str]:
    """Installed packages as 'name==version' lines, sorted, without local version tags."""
    command = [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = []
    for line in listing.split():
        name, version = line.split("==")
        if name.lower() in LEFT_OUT or name.lower().startswith(LEFT_OUT_PREFIXES):
            continue
        lines.append(f"{name}=={version.split('+')[0]}")
    return sorted([*lines, *ELSEWHERE], key=str.lower)


def main() -> None:
    lines = pins()
    (ROOT / "requirements.lock").write_text(HEADER + "".join(f"{line}\n" for line in lines))
    quoted = "".join(f'      - "{line}"\n' for line in lines)
    (ROOT / "environment.yml").write_text(
        "# conda env create -f environment.yml && conda activate serving-kit && pip install --no-deps -e .\n"
        "# The pins are those of requirements.lock. Written by `make lock`; don't edit.\n"
        "name: serving-kit\nchannels:\n  - conda-forge\ndependencies:\n  - python>=3.11,<3.14\n  - pip\n  - pip:\n"
        + quoted
    )
    print(f"{len(lines)} pins written to requirements.lock and environment.yml")


if __name__ == "__main__":
    main()

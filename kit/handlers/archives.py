"""Checking the archives that ``torch.save`` and ``torch.jit.save`` write: torch reads a changed byte without a word."""

from __future__ import annotations

import zipfile

from kit.errors import WeightsFileError

_STEP_BYTES = 1 << 20


def is_torch_script(local: str) -> bool:
    """Whether the file `local` is an archive of ``torch.jit.save``; False for what is no archive at all."""
    if not zipfile.is_zipfile(local):
        return False
    try:
        with zipfile.ZipFile(local) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def check(path: str, local: str, what: str) -> None:
    """Compare each part of the archive `local` with the CRC32 that was saved with it.

    It costs about one more read of the file: 1 GB/s and more. A file that is no zip archive (torch before 1.6) and
    parts saved without a sum (``torch.serialization.set_crc32_options(False)``) can't be checked.

    Raises:
        WeightsFileError: a part was changed since; `path` is the name for the message.
    """
    if not zipfile.is_zipfile(local):
        return
    try:
        with zipfile.ZipFile(local) as archive:
            for part in archive.infolist():
                if part.CRC == 0:
                    continue  # saved without a sum
                with archive.open(part) as file:
                    while file.read(_STEP_BYTES):
                        pass
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise WeightsFileError(
            f"The {what} {path!r} is corrupt: {error}. It was changed or cut after it was saved; copy or save it again."
        ) from error

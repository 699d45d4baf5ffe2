"""Sizes in bytes: what a user wrote, and how one is shown."""

from __future__ import annotations

import math
import numbers
import os
import re
from typing import Any

from kit.errors import InvalidSetting

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    # A bare letter is decimal, as in SI and Kubernetes; the "i" makes it binary.
    _UNITS[_letter] = _UNITS[_letter + "b"] = 1000**_power
    _UNITS[_letter + "i"] = _UNITS[_letter + "ib"] = 1024**_power

_NUMBER_AND_UNIT = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*([a-z]*)", re.IGNORECASE)
_EXAMPLES = 'give a size above 0, such as "2GiB", "512 MB" or 2_000_000_000 (bytes)'

#: Only a setting is a whole multiple of this; a measured size is one by a chance in 16,384.
_ROUND_BINARY = 64 * 1024**2


def parse_bytes(value: int | float | str | None, name: str = "memory_budget") -> int | None:
    """Bytes meant by `value`: a number of bytes, or text such as "2GiB", "512 MB", "1.5g", "800M".

    "KiB", "MiB", "GiB", "TiB" are powers of 1024; "KB", "MB", "GB", "TB" and the bare letters are
    powers of 1000. None stays None. Capitals don't matter.

    Args:
        value: what the user gave.
        name: name of the setting, for the message.

    Raises:
        InvalidSetting: `value` is no size, or isn't above 0.
    """
    if value is None:
        return None
    size: float
    given: Any = value  # whatever the user passed, numpy's numbers too
    if isinstance(given, str):
        match = _NUMBER_AND_UNIT.fullmatch(given.strip())
        if match is None or match[2].lower() not in _UNITS:
            raise InvalidSetting(f"{name}={value!r} isn't a size in bytes: {_EXAMPLES}.")
        size = float(match[1].replace("_", "")) * _UNITS[match[2].lower()]
    elif isinstance(given, bool) or not isinstance(given, numbers.Real):
        raise InvalidSetting(f"{name}={value!r} ({type(value).__name__}) isn't a size in bytes: {_EXAMPLES}.")
    else:
        size = int(given) if isinstance(given, numbers.Integral) else float(given)
    if not math.isfinite(size) or size < 1:
        raise InvalidSetting(f"{name}={value!r} isn't a size in bytes: {_EXAMPLES}.")
    return int(size)


def format_bytes(count: int | float) -> str:
    """A size for people, three digits at most after rounding: "91 MB", "1.14 GB", "512 B".

    Sizes are printed in powers of 1000; a whole multiple of 64 MiB, which only a setting is, in
    powers of 1024, so that a budget reads as it was given: "1.5 GiB".
    """
    count = int(count)
    sign, size = ("-", -count) if count < 0 else ("", count)
    binary = size > 0 and size % _ROUND_BINARY == 0
    base, units = (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if binary else (1000, ("B", "KB", "MB", "GB", "TB"))
    scaled, unit = float(size), 0
    # 999.5 rounds to 1000 of its unit, so it belongs to the next.
    while scaled >= (base if binary else 999.5) and unit < len(units) - 1:
        scaled, unit = scaled / base, unit + 1
    decimals = 0 if unit == 0 or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    text = f"{scaled:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{sign}{text} {units[unit]}"


def weights_on_disk(path: str | None) -> int | None:
    """Bytes of the weights files at a local path, a file or a model's folder; None if there are none."""
    if not path or not isinstance(path, str):
        return None
    path = os.path.expanduser(path)
    endings = (".safetensors", ".pt", ".pth", ".bin")
    if os.path.isfile(path):
        return os.path.getsize(path) if path.endswith(endings) else None
    if not os.path.isdir(path):
        return None
    for ending in endings:
        found = [entry.stat().st_size for entry in os.scandir(path) if entry.name.endswith(ending)]
        if found:
            return sum(found)
    return None

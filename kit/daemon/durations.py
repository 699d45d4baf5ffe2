"""Durations as people write them: seconds, "90", "45s", "30m", "2h", "1d"."""

from __future__ import annotations

import math
import numbers
import re
from typing import Any

from kit.errors import InvalidSetting

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_TEXT = re.compile(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)", re.IGNORECASE)


def parse_seconds(value: Any, name: str = "keep_alive") -> float | None:
    """Seconds meant by a number or a text; None stays None.

    Raises:
        InvalidSetting: it is no duration above 0.
    """
    if value is None:
        return None
    seconds = math.nan
    if isinstance(value, str):
        match = _TEXT.fullmatch(value.strip())
        if match is not None and match[2].lower() in _UNITS:
            seconds = float(match[1]) * _UNITS[match[2].lower()]
    elif not isinstance(value, bool) and isinstance(value, numbers.Real):
        seconds = float(value)
    if not 0 < seconds < math.inf:
        raise InvalidSetting(f'{name}={value!r}: give seconds above 0, or text such as "45s", "30m" or "2h".')
    return seconds

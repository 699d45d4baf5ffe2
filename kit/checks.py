"""Whether this machine can serve, and whether something is a model handler."""

from __future__ import annotations

import math
import numbers
from typing import Any

from kit import errors


def check_platform() -> None:
    """Raise UnsupportedPlatform on Windows."""
    import sys

    if sys.platform == "win32":
        raise errors.UnsupportedPlatform(
            "kit needs fork and Unix sockets, which Windows doesn't have: run it in WSL (wsl --install)."
        )


def check_handler(handler: Any, where: str = "") -> Any:
    """The handler to serve: the one given, or the kit's form of it.

    Raises:
        InvalidSetting: it isn't a model handler; `where` it was given goes in front of the message.
    """
    where = f"{where}: " if where else ""
    if isinstance(handler, type):
        raise errors.InvalidSetting(
            f"{where}{handler.__name__} is a class: make an object of it, {handler.__name__}(...)."
        )
    missing = [name for name in ("load_model", "run_inference") if not hasattr(handler, name)]
    if missing:
        raise errors.InvalidSetting(
            f"{where}{handler!r} isn't a model handler: it has no {' and no '.join(missing)}. Derive a class from "
            "kit.ModelHandler, or use kit.ModelHandler.from_callable(load, run)."
        )
    if not hasattr(handler, "get_preprocess_fns"):
        name = type(handler).__name__
        raise errors.InvalidSetting(
            f"{where}{name} has load_model and run_inference but isn't derived from kit.ModelHandler (or Beam's "
            f"ModelHandler); write `class {name}(kit.ModelHandler):`."
        )
    import kit

    return kit._in_our_form(handler)


def seconds(name: str, value: Any) -> float | None:
    """A number of seconds above 0; None stays None.

    Raises:
        InvalidSetting: it is none.
    """
    if value is None:
        return None
    if not is_number(value) or not 0 < value < math.inf:
        raise errors.InvalidSetting(f"{name}={value!r}: give seconds above 0, or None.")
    return float(value)


def count(name: str, value: Any) -> int | None:
    """A whole number of at least 1; None stays None.

    Raises:
        InvalidSetting: it is none.
    """
    if value is None:
        return None
    if not is_number(value) or not 1 <= value < math.inf or value % 1:
        raise errors.InvalidSetting(f"{name}={value!r}: give a whole number of at least 1, or None.")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether it is a real number, numpy's too, True and False not counted."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)

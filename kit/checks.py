"""Whether this machine can serve, and whether something is a model handler."""

from __future__ import annotations

from typing import Any

from kit import errors


def check_platform() -> None:
    """Raise UnsupportedPlatform on Windows."""
    import sys

    if sys.platform == "win32":
        raise errors.UnsupportedPlatform(
            "kit needs fork and Unix sockets, which Windows doesn't have: run it in WSL (wsl --install)."
        )


def check_handler(handler: Any) -> None:
    """Raise InvalidSetting when something isn't a model handler."""
    if isinstance(handler, type):
        raise errors.InvalidSetting(f"{handler.__name__} is a class: make an object of it, {handler.__name__}(...).")
    missing = [name for name in ("load_model", "run_inference") if not hasattr(handler, name)]
    if missing:
        raise errors.InvalidSetting(
            f"{handler!r} isn't a model handler: it has no {' and no '.join(missing)}. Derive a class from "
            "kit.ModelHandler, or use kit.ModelHandler.from_callable(load, run)."
        )
    if not hasattr(handler, "get_preprocess_fns"):
        raise errors.InvalidSetting(
            f"{type(handler).__name__} has load_model and run_inference but isn't derived from kit.ModelHandler (or "
            "Beam's ModelHandler); write `class {0}(kit.ModelHandler):`.".format(type(handler).__name__)
        )

"""Modules of the user's own, such as a helpers.py beside the notebook, and the code that importing them would run now.

A handler refers to them, and the workers import them anew: what counts is the file as it is, not what a kernel has
loaded of it. Nothing is imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any, NamedTuple

import cloudpickle

from kit.daemon import code_names

_PATHS = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_INSTALLED = tuple(path.rstrip(os.sep) + os.sep for path in (*_PATHS, site.getusersitepackages()))
_PARTS = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Source(NamedTuple):
    """What importing a module would run, as a digest of its code, or of a file without code; and what that imports."""

    digest: str
    imports: tuple[str, ...]


#: By file: when it was written, its size, and what was found.
_known: dict[str, tuple[int, int, Source]] = {}


def is_installed(module: str | None) -> bool:
    """True for modules of the standard library, of installed packages and of the kit: they count by name."""
    if not module or module == "__main__":
        return False
    if module == "kit" or module.startswith("kit."):
        return True
    found = sys.modules.get(module)
    if found is None:
        return False  # a class that came by value
    file = getattr(found, "__file__", None)
    return not _are_own([file] if file else getattr(found, "__path__", ()))


def travels_by_name(value: Any) -> bool:
    """Whether a class or function is pickled as the name that another process imports it by."""
    name = value.__module__
    module = sys.modules.get(name or "")
    if module is None or name == "__main__" or not imported_anew(module):
        return False
    found: Any = module
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def imported_anew(module: types.ModuleType) -> bool:
    """Whether another process imports a module, rather than getting what it holds here."""
    name = module.__name__
    if sys.modules.get(name) is not module:
        return False
    by_value = cloudpickle.list_registry_pickle_by_value()
    return not any(name == known or name.startswith(f"{known}.") for known in by_value)


def source_of(name: str) -> Source | None:
    """What importing a module of the user's own would run now; None for other modules and for what isn't one."""
    spec = _spec_of(name)
    if spec is None or not _are_own([spec.origin] if spec.has_location else spec.submodule_search_locations or ()):
        return None
    try:
        status = os.stat(spec.origin or "")
    except OSError:
        return _read(spec)
    written = status.st_mtime_ns, status.st_size
    known = _known.get(spec.origin or "")
    if known is None or known[:2] != written:
        known = _known[spec.origin or ""] = (*written, _read(spec))
    return known[2]


def imported(code: types.CodeType, package: str) -> list[str]:
    """The modules that a piece of code imports, and those that these lie in; some names may be no modules.

    Args:
        package: that the code belongs to, for relative imports.
    """
    found: dict[str, None] = {}
    for statement in code_names.imports(code):
        module = statement.module
        if statement.level:
            parents = package.split(".")
            parents = parents[: len(parents) - statement.level + 1]
            module = ".".join([*parents, *([module] if module else [])])
        if not module:
            continue  # relative, in code that is in no package
        for name in (module, *(f"{module}.{name}" for name in statement.names)):
            found.update(dict.fromkeys(_with_packages(name)))
    return list(found)


def submodules(module: types.ModuleType, names: Iterable[str]) -> Iterator[str]:
    """Loaded modules within a package that code which has these names may mean by ``package.module``."""
    if hasattr(module, "__path__"):
        prefix, there = f"{module.__name__}.", set(names)
        for name in sorted(known for known in list(sys.modules) if known.startswith(prefix)):
            if there.issuperset(name[len(prefix) :].split(".")):
                yield name


def _with_packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _are_own(places: Iterable[Any]) -> bool:
    # A package may put a Path into its __path__.
    found = [str(place) for place in places if place]
    return any(not place.startswith(_INSTALLED) and not any(part in place for part in _PARTS) for place in found)


def _spec_of(name: str) -> ModuleSpec | None:
    """How a module would be found, without importing the packages that it lies in."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        spec = getattr(loaded, "__spec__", None)
        return spec if isinstance(spec, ModuleSpec) else None  # anything may be put there
    parent = name.rpartition(".")[0]
    path = None
    if parent:
        above = _spec_of(parent)
        if above is None or above.submodule_search_locations is None or not _are_own(above.submodule_search_locations):
            return None  # an installed package counts by its name
        path = [str(place) for place in above.submodule_search_locations]
    for finder in list(sys.meta_path):
        with contextlib.suppress(Exception):  # anybody may put one there
            found: ModuleSpec | None = finder.find_spec(name, path)
            if found is not None:
                return found
    return None


def _read(spec: ModuleSpec) -> Source:
    loader: Any = spec.loader
    file = spec.origin or ""
    if file.endswith(".py") and not hasattr(loader, "get_code"):
        loader = SourceFileLoader(spec.name, file)
    with contextlib.suppress(Exception):  # the file may be gone, or half written
        code = loader.get_code(spec.name)
        if code is not None:
            return Source(code_names.digest(code), tuple(imported(code, spec.parent or "")))
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        return Source(hashlib.file_digest(opened, "sha256").hexdigest(), ())
    return Source("", ())

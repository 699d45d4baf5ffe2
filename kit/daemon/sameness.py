"""Whether two handlers are the same, so that running a notebook again attaches instead of loading again.

The digest covers what decides what a handler does: of its class, and of functions that it refers to, the bytecode with
its constants and names, not files, line numbers or comments; and the values of its attributes, of those that travel
where a class defines ``__getstate__``. Classes of installed packages count by their name and, for the kit, its version.
It doesn't look into files: a handler whose weights file was written anew is the same one; use `replace`, or
`deployment.update_model(path)`.
"""

from __future__ import annotations

import copyreg
import hashlib
import sys
import sysconfig
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

import kit
from kit.daemon import code_names
from kit.made_with import MadeWith

_DEPTH = 40
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def digest(handler: Any) -> str:
    """Hexadecimal digest of a handler, the same in every process of the same versions."""
    walker = _Walker()
    walker.take(kit.__version__)
    walker.take(handler)
    return walker.hash.hexdigest()


class _Walker:
    """Feeds a tree of objects to a hash, each object once."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}
        self._depth = 0

    def note(self, *words: object) -> None:
        """Feed words, with their boundaries."""
        for word in words:
            text = str(word).encode("utf-8", "surrogatepass")
            self.hash.update(b"%d:" % len(text) + text)

    def take(self, value: Any) -> None:
        """Feed any object."""
        if isinstance(value, _PLAIN):
            self.note(type(value).__name__, repr(value))
            return
        known = self._seen.get(id(value))
        if known is not None or self._depth > _DEPTH:
            self.note("again", known[0] if known else "deep")
            return
        # Whether equal tuples are one object is the compiler's choice.
        if not isinstance(value, (tuple, frozenset)):
            self._seen[id(value)] = (len(self._seen), value)  # kept alive, or its id may be another's
        self._depth += 1
        self._take_object(value)
        self._depth -= 1

    def _take_object(self, value: Any) -> None:
        kind = type(value)
        self.note(kind.__module__, kind.__qualname__)
        if isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, types.ModuleType):
            self.note(value.__name__)
        elif isinstance(value, types.MethodType):
            self.take(value.__func__)
            self.take(value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            self.take(value.__func__)
        elif isinstance(value, property):
            for function in (value.fget, value.fset, value.fdel):
                self.take(function)
        elif isinstance(value, MadeWith):
            self.take(value.args)
            self.take(value.kwargs)
        else:
            self._data(value)

    def _data(self, value: Any) -> None:
        torch: Any = sys.modules.get("torch")
        # Another thread may be importing it just now, and then there are no tensors yet.
        tensor: Any = getattr(torch, "Tensor", ())
        if isinstance(value, (list, tuple)):
            self.note(len(value))
            for item in value:
                self.take(item)
        elif isinstance(value, (set, frozenset)):
            self.note(*sorted(map(repr, value)))
        elif isinstance(value, Mapping):
            self.note(len(value))
            for key, item in value.items():
                self.take(key)
                self.take(item)
        elif type(value) is np.ndarray and not value.dtype.hasobject:
            self.note(value.dtype.str, value.shape)
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, tensor):
            self.note(value.dtype, tuple(value.shape))
            self.hash.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        """An object by what it would be rebuilt from, as pickle and copy see it; else by its attributes."""
        try:
            registered: Any = copyreg.dispatch_table.get(type(value))
            rebuilt = value.__reduce_ex__(4) if registered is None else registered(value)
        except Exception:  # it may raise anything
            self.take(type(value))
            self._attributes(getattr(value, "__dict__", None))
            return
        if isinstance(rebuilt, str):
            self.note(rebuilt)
            return
        make, args, state, *items = (*rebuilt, None)[:5]
        self.take(make)
        self.take(args)
        self._attributes(state)
        for part in items:
            self.take(None if part is None else list(part))

    def _attributes(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            self.take(state)
            return
        for name in sorted(state):
            self.note(name)
            self.take(state[name])

    # ---- code --------------------------------------------------------------------------------

    def _class(self, cls: type) -> None:
        self.note(cls.__module__, cls.__qualname__)
        if is_installed(cls.__module__):
            return
        for base in cls.__bases__:
            self.take(base)
        for name in sorted(vars(cls)):
            if name not in _NOT_CODE:
                self.note(name)
                self.take(vars(cls)[name])

    def _function(self, function: types.FunctionType) -> None:
        self.note(function.__qualname__)
        if is_installed(function.__module__):
            self.note(function.__module__)
            return
        self._code(function.__code__)
        self.take(function.__defaults__)
        self.take(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.take(cell.cell_contents)
            except ValueError:
                self.note("empty")
        for name in sorted(code_names.loaded(function.__code__)):
            if name in function.__globals__:
                self.note(name)
                self.take(function.__globals__[name])

    def _code(self, code: types.CodeType) -> None:
        self.note(code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_flags)
        for constant in code.co_consts:
            self.take(constant)


#: Attributes of a class that say nothing about what it does, or change from one definition to the next.
_NOT_CODE = frozenset(
    [
        *("__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl"),
        *("__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__slotnames__"),
    ]
)


def is_installed(module: str | None) -> bool:
    """True for modules of the standard library, of installed packages and of the kit: they count by name."""
    if not module or module == "__main__":
        return False
    if module == "kit" or module.startswith("kit."):
        return True
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if found is None:
        return False  # a class that came by value
    return file is None or file.startswith(_INSTALLED)

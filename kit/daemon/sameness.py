"""Whether two handlers are the same, so that running a notebook again attaches instead of loading again.

The digest covers what decides what a handler does: of its class, and of functions that it refers to, the bytecode with
its constants and names, not line numbers or comments; and the values of its attributes, of those that travel where a
class defines ``__getstate__``. What the workers would import from a module of the user's own counts by the bytecode
of that module's file as it is now, and of the user's own modules that this imports. Installed packages count by their
name and, for the kit, its version. It doesn't look into other files: a handler whose weights file was written anew is
the same one; use `replace`, or `deployment.update_model(path)`.
"""

from __future__ import annotations

import copyreg
import hashlib
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

import kit
from kit.daemon import code_names, own_modules
from kit.daemon.own_modules import is_installed
from kit.made_with import MadeWith

_DEPTH = 100
#: Of the user's own modules, so that the digest of a handler in a very large project doesn't take seconds.
_MOST_MODULES = 500
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digest(handler: Any) -> str:
    """Hexadecimal digest of a handler, the same in every process of the same versions."""
    walker = _Walker()
    walker.take(kit.__version__)
    walker.take(handler)
    walker.take_modules()
    return walker.hash.hexdigest()


class _Walker:
    """Feeds a tree of objects to a hash, each object once."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}
        self._depth = 0
        self._modules: dict[str, None] = {}  # of the user's own, in the order of their first mention

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

    def take_modules(self) -> None:
        """Feed the modules of the user's own that the objects refer to, and those that they import."""
        waiting, taken = list(self._modules), 0
        for name in waiting:  # which grows meanwhile
            found = own_modules.source_of(name)
            if found is None or taken == _MOST_MODULES:
                continue
            taken += 1
            self.note("module", name, found.digest)
            waiting += [more for more in found.imports if more not in self._modules]
            self._modules.update(dict.fromkeys(found.imports))

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
            self._module(value)
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
        if type(value) in (list, tuple):
            self._items(value)
        elif isinstance(value, (set, frozenset)):
            self.take(type(value))
            self._items(sorted(value, key=lambda item: (type(item).__name__, _ADDRESS.sub("", repr(item)))))
            self._attributes(getattr(value, "__dict__", None))
        elif type(value) in (dict, types.MappingProxyType):
            self._items([part for item in value.items() for part in item])
        elif type(value) is np.ndarray and not value.dtype.hasobject:
            self.note(value.dtype.str, repr(value.dtype), value.shape)
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, tensor):
            self._tensor(value, torch)
        else:
            self._object(value)

    def _items(self, items: Any) -> None:
        self.note(len(items))
        for item in items:
            self.take(item)

    def _tensor(self, value: Any, torch: Any) -> None:
        self.note(value.dtype, tuple(value.shape), value.layout, value.device.type == "meta")
        try:
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
            found = plain.view(torch.uint8).numpy().tobytes()
        except (RuntimeError, NotImplementedError, TypeError):
            self._object(value)  # a sparse one, or one of the meta device: by what it would be rebuilt from
        else:
            self.hash.update(found)

    def _object(self, value: Any) -> None:
        """An object by what it would be rebuilt from, as pickle and copy see it; else by its attributes."""
        try:
            registered: Any = copyreg.dispatch_table.get(type(value))
            rebuilt = value.__reduce_ex__(4) if registered is None else registered(value)
        except Exception:  # it may raise anything
            self.take(type(value))
            self._attributes(getattr(value, "__dict__", None))
            if isinstance(value, (list, tuple)):
                self._items(value)
            elif isinstance(value, Mapping):
                self._items([part for item in value.items() for part in item])
            return
        if isinstance(rebuilt, str):
            self._global(value, rebuilt)
            return
        make, args, state, *items = (*rebuilt, None)[:5]
        self.take(make)
        self.take(args)
        self._attributes(state)
        for part in items:
            self.take(None if part is None else list(part))

    def _global(self, value: Any, name: str) -> None:
        """An object that is found by its name, such as a function that `functools.lru_cache` has wrapped."""
        module = getattr(value, "__module__", None)
        self.note(module, name)
        if isinstance(module, str) and module in sys.modules and module != "__main__":
            self._modules.setdefault(module)
        else:
            self.take(getattr(value, "__wrapped__", None))
            self.take(value.cache_parameters() if hasattr(value, "cache_parameters") else None)

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
        if is_installed(cls.__module__) or self._travels_by_name(cls):
            return
        if type(cls) is not type:
            self.take(type(cls))
        for base in cls.__bases__:
            self.take(base)
        for name in sorted(vars(cls)):
            if name not in _NOT_CODE:
                self.note(name)
                self.take(vars(cls)[name])

    def _function(self, function: types.FunctionType) -> None:
        self.note(function.__qualname__)
        code, installed = function.__code__, is_installed(function.__module__)
        if installed or self._travels_by_name(function):
            self.note(function.__module__)
            if not installed or own_modules.travels_by_name(function):
                return
        else:
            self._code(code)
        self.take(function.__defaults__)
        self.take(function.__kwdefaults__)
        self._attributes(function.__dict__)
        for cell in function.__closure__ or ():
            try:
                self._referred(cell.cell_contents, code)
            except ValueError:
                self.note("empty")
        if installed:
            return  # of what is made within one of its functions only what that was given counts
        for name in sorted(code_names.loaded(code)):
            if name in function.__globals__:
                self.note(name)
                self._referred(function.__globals__[name], code)
        package = function.__globals__.get("__package__") or ""
        self._modules.update(dict.fromkeys(own_modules.imported(code, package)))

    def _referred(self, value: Any, code: types.CodeType) -> None:
        self.take(value)
        if isinstance(value, types.ModuleType) and not is_installed(value.__name__):
            names = {name for part in code_names.within(code) for name in part.co_names}
            self._modules.update(dict.fromkeys(own_modules.submodules(value, names)))

    def _module(self, module: types.ModuleType) -> None:
        name = module.__name__
        self.note(name)
        if is_installed(name):
            return
        if own_modules.imported_anew(module):
            self._modules.setdefault(name)
        else:
            self._attributes({key: held for key, held in vars(module).items() if not key.startswith("__")})

    def _travels_by_name(self, value: Any) -> bool:
        """Whether a class or function is imported by the workers, from a module that counts then."""
        found = own_modules.travels_by_name(value)
        if found:
            self._modules.setdefault(value.__module__)
        return found

    def _code(self, code: types.CodeType) -> None:
        raw, constants = code_names.without_notes(code)
        self.note(raw.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_flags)
        self.note(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable.hex())
        for constant in constants:
            self.take(constant)


#: Attributes of a class that say nothing about what it does, or change from one definition to the next.
_NOT_CODE = frozenset(
    [
        *("__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl"),
        *("__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__slotnames__"),
    ]
)

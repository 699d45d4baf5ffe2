"""What a piece of bytecode does, as a digest, and refers to by name: globals that it loads, modules that it imports.

``co_names`` has the names of attributes, too, so a variable that happens to be called like one would count. ``dis``
tells them apart, but takes milliseconds for a class.
"""

from __future__ import annotations

import dis
import hashlib
import types
from collections.abc import Iterator
from typing import NamedTuple

_EXTENDED = dis.opmap["EXTENDED_ARG"]
_LOAD_GLOBAL = dis.opmap["LOAD_GLOBAL"]
#: Those of the body of a class, whose argument is the number of the name as it stands.
_LOADS = frozenset(dis.opmap[name] for name in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in dis.opmap)
_IMPORT = dis.opmap["IMPORT_NAME"]
_IMPORT_FROM = dis.opmap["IMPORT_FROM"]
_STORE = dis.opmap["STORE_NAME"]
#: By Python 3.13 in the body of a class; the second in no certain order, up to 3.13.0.
_NOTED = frozenset({"__firstlineno__", "__static_attributes__"})
_CONSTANT = dis.opmap["LOAD_CONST"]
_CONSTANTS = frozenset(dis.hasconst)


class Import(NamedTuple):
    """An import statement: ``from .module import names`` has a level of 1."""

    module: str
    level: int
    names: tuple[str, ...]


def within(code: types.CodeType) -> Iterator[types.CodeType]:
    """A piece of code and all that are nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from within(constant)


def digest(code: types.CodeType) -> str:
    """Hexadecimal digest of a module's code, of what it does, not where it stands."""
    found = hashlib.sha256()
    for part in within(code):
        counts = part.co_argcount, part.co_posonlyargcount, part.co_kwonlyargcount, part.co_flags
        names = part.co_qualname, part.co_names, part.co_varnames, part.co_freevars, part.co_cellvars
        raw, constants = without_notes(part)
        said = raw, part.co_exceptiontable, counts, names, [_constant(value) for value in constants]
        found.update(repr(said).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def without_notes(code: types.CodeType) -> tuple[bytes, list[object]]:
    """The bytecode and constants of a piece of code, without what Python 3.13 notes in the body of a class."""
    if _NOTED.isdisjoint(code.co_names):
        return code.co_code, list(code.co_consts)
    # Where a constant stands depends on the line, which may be equal to another one: in the order of their use.
    said: list[tuple[int, int]] = []
    used: list[object] = []
    for operation, argument in _operations(code):
        if operation == _STORE and code.co_names[argument] in _NOTED:
            if said[-1][0] in _CONSTANTS:
                used.pop()
            said[-1] = (0, 0)
        if operation in _CONSTANTS:
            used.append(code.co_consts[argument])
            argument = 0
        said.append((operation, argument))
    return repr(said).encode(), used


def _constant(value: object) -> object:
    if isinstance(value, types.CodeType):
        return "code"  # counted by itself
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def loaded(code: types.CodeType) -> set[str]:
    """Names that a function, and those within it, look up outside of themselves."""
    found = set()
    for part in within(code):
        for operation, argument in _operations(part):
            if operation == _LOAD_GLOBAL:
                found.add(part.co_names[argument >> 1])  # the lowest bit asks for room for `self`
            elif operation in _LOADS:
                found.add(part.co_names[argument])
    return found


def imports(code: types.CodeType) -> list[Import]:
    """The import statements of a piece of code, and of those within it."""
    found: list[Import] = []
    for part in within(code):
        if _IMPORT not in part.co_code[::2]:
            continue
        former = last = (0, 0)
        for operation, argument in _operations(part):
            if operation == _IMPORT:
                level = part.co_consts[former[1]] if former[0] == _CONSTANT else former[1]  # a small number is itself
                found.append(Import(part.co_names[argument], level, ()))
            elif operation == _IMPORT_FROM and found:
                found[-1] = found[-1]._replace(names=(*found[-1].names, part.co_names[argument]))
            former, last = last, (operation, argument)
    return found


def _operations(code: types.CodeType) -> Iterator[tuple[int, int]]:
    raw, above = code.co_code, 0
    for at in range(0, len(raw), 2):
        operation, argument = raw[at], raw[at + 1] | above
        if operation == _EXTENDED:
            above = argument << 8
        else:
            above = 0
            yield operation, argument

"""What counts when a handler is compared with the one that is served, and what doesn't."""

from __future__ import annotations

import ast
import dis
import json
import types
from pathlib import Path
from typing import Any

import pytest

from kit.daemon import code_names, sameness

SCALED = """
import kit
class Scaled(kit.ModelHandler):
    def __init__(self):
        super().__init__()
        self.scale = 3
    def load_model(self): return self.scale
    def run_inference(self, batch, model, inference_args=None):
        return [offset + example.real * model for example in batch]
"""


def handler(source: str, expression: str, **variables: Any) -> Any:
    """A handler of a cell's class, in a notebook that has these variables, too."""
    space: dict[str, Any] = {"__name__": "__main__", **variables}
    exec(compile(source, "cell", "exec"), space)
    return eval(expression, space)


def digest(source: str, expression: str, **variables: Any) -> str:
    return sameness.digest(handler(source, expression, **variables))


def test_a_variable_called_like_an_attribute_does_not_count() -> None:
    base = digest(SCALED, "Scaled()", offset=1)
    assert digest(SCALED, "Scaled()", offset=1, scale=5, real="x", model=7, load_model=print) == base
    assert digest(SCALED, "Scaled()", offset=2) != base


@pytest.mark.parametrize("module", [ast, dis, json, types, sameness], ids=lambda module: module.__name__)
def test_names_that_are_loaded_and_imported_are_told_as_the_standard_library_does(module: types.ModuleType) -> None:
    text = Path(str(module.__file__)).read_text()
    code = compile(text, module.__name__, "exec", dont_inherit=True)
    loads = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
    parts = list(code_names.within(code))
    assert code_names.loaded(code) == {
        found.argval for part in parts for found in dis.get_instructions(part) if found.opname in loads
    }
    statements = list(ast.walk(ast.parse(text)))
    expected = {(name.name, 0) for found in statements if isinstance(found, ast.Import) for name in found.names}
    expected |= {(found.module or "", found.level) for found in statements if isinstance(found, ast.ImportFrom)}
    assert {(found.module, found.level) for found in code_names.imports(code)} == expected


def test_names_behind_many_others_are_told_too() -> None:
    many = "\n".join(f"    a.b{number}" for number in range(300))
    code = compile(f"def f(a):\n{many}\n    last\n    from ..here import there, then", "cell", "exec")
    assert code_names.loaded(code) == {"last"}
    assert code_names.imports(code) == [code_names.Import("here", 2, ("there", "then"))]

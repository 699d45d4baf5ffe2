"""What counts when a handler is compared with the one that is served, and what doesn't."""

from __future__ import annotations

import ast
import collections
import dis
import functools
import importlib
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

import kit
from kit.daemon import client, code_names, sameness
from tests.daemon_kernels import Kernel

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


def test_lines_and_comments_do_not_count() -> None:
    def found(text: str) -> str:
        return code_names.digest(compile(text, "module", "exec"))

    text = "class A:\n    value = 1\n    def f(self):\n        class B: pass\n        return B"
    assert found(text) == found(f"# a comment\n\n{text}  # and one") == found("\n" * 300 + text)
    assert found(text) != found(text.replace("1", "2"))
    assert found(text) != found(text.replace("B", "C"))


# ---- modules of the user's own -----------------------------------------------------------------

HELPED = """
import kit, helpers
class Helped(kit.ModelHandler):
    def load_model(self): return None
    def run_inference(self, batch, model, inference_args=None): return [helpers.change(x) for x in batch]
"""


EITHER = "kit.ModelHandler.from_callable(use, lambda batch, model: batch)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are found in, by this process and those that it starts; they are forgotten at the end."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two edits within a second may have one length
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()


def write(folder: Path, modules: dict[str, str]) -> None:
    for name, text in modules.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    importlib.invalidate_caches()


def test_an_edited_module_is_served_anew(runtime: Path, folder: Path) -> None:
    write(folder, {"helpers": "def change(x): return x + 1"})
    serve = "d = kit.deploy(Helped(), name='helped', processes=1, replace={})"
    found = "[p.inference for p in d.predict([1])]"
    with Kernel() as first:
        assert first.run(HELPED + serve.format(False), found) == [2]
        write(folder, {"helpers": "# as before\n\ndef change(x): return x + 1"})
        assert first.run(HELPED + serve.format(False), "d.attached")
        write(folder, {"helpers": "def change(x): return x + 1000"})
        with Kernel() as second:
            with pytest.raises(RuntimeError, match="NameTaken"):
                second.run(HELPED + serve.format(False))
            assert second.run(serve.format(True), found) == [1001]
            # This one has the old code loaded, and its workers would import the file as it is now.
            assert first.run(serve.format(False), "d.attached")


@pytest.mark.parametrize(
    ("cell", "edited"),
    [
        ("import helpers\ndef use(): return helpers.change", "helpers"),
        ("import helpers\ndef use(): return helpers.change", "below"),  # which helpers imports
        ("def use():\n    from helpers import change\n    return change", "below"),
        ("from helpers import change\ndef use(): return change", "helpers"),
        ("from helpers import cached\ndef use(): return cached", "helpers"),
        ("from helpers import Base\nclass Use(Base): pass\ndef use(): return Use", "below"),
        ("import package.inner\ndef use(): return package.inner.value", "package/inner"),
        ("from package import inner\ndef use(): return inner.value", "package/other"),  # by a relative import
        ("import package\ndef use(): return package", "package/__init__"),
        ("import helpers\nvalue = helpers.Base()\ndef use(): return value", "helpers"),
    ],
)
def test_modules_that_the_code_refers_to_count(folder: Path, cell: str, edited: str) -> None:
    def written(number: int) -> dict[str, str]:
        return {
            "below": f"value = {number if edited == 'below' else 0}",
            "helpers": "import functools\nimport below\nclass Base: pass\n@functools.lru_cache\ndef cached(): pass\n"
            f"def change(x): return x + {number if edited == 'helpers' else 0}",
            "package/__init__": f"value = {number if edited == 'package/__init__' else 0}",
            "package/inner": f"from . import other\nvalue = {number if edited == 'package/inner' else 0}",
            "package/other": f"value = {number if edited == 'package/other' else 0}",
        }

    def found() -> str:
        return digest(f"import kit\n{cell}", EITHER)

    write(folder, written(1))
    one = found()
    assert found() == one
    write(folder, written(2))
    other = found()
    assert other != one  # though what is loaded here is as it was
    write(folder, {**written(1), "unused": "value = 3"})
    assert found() == one


def test_a_package_may_have_a_path_in_its_search_path(folder: Path) -> None:
    def found(value: int) -> str:
        write(folder, {"odd/__init__": "import pathlib\n__path__[:] = map(pathlib.Path, __path__)"})
        write(folder, {"odd/inner": f"value = {value}"})
        return digest("import kit, odd\ndef use():\n    from odd import inner", EITHER)

    assert found(1) == found(1) != found(2)


def test_what_cannot_be_found_does_not_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "standin", types.SimpleNamespace(__spec__="none"))
    imports = "from . import inner\n    from .. import outer\n    import nowhere.deep, standin.deep"
    assert digest(f"import kit\ndef use():\n    {imports}", EITHER)


def test_an_own_handlers_module_counts_and_an_installed_ones_name(folder: Path) -> None:
    text = "import kit, json\nclass Mine(kit.ModelHandler):\n    factor = {}\n    def load_model(self): return json"
    write(folder, {"mine": text.format(2)})
    one = digest("from mine import Mine", "Mine()")
    write(folder, {"mine": text.format(3)})
    assert digest("from mine import Mine", "Mine()") != one
    mine = sys.modules["mine"]
    cloudpickle.register_pickle_by_value(mine)
    try:
        assert digest("from mine import Mine", "Mine()") == (by_value := digest("from mine import Mine", "Mine()"))
        mine.Mine.factor = 4
        assert digest("from mine import Mine", "Mine()") != by_value  # what is loaded travels
    finally:
        cloudpickle.unregister_pickle_by_value(mine)
    write(folder, {"mine": "this is no Python"})
    broken = digest("import mine", "mine.Mine()")
    (folder / "mine.py").unlink()
    assert digest("import mine", "mine.Mine()") != broken


# ---- alike, but not the same -------------------------------------------------------------------


class Held(kit.ModelHandler):
    """Holds something."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def load_model(self) -> None:
        return None

    def run_inference(self, batch: Any, model: None, inference_args: Any = None) -> Any:
        return batch


class Words(dict[str, int]):
    pass


class Row(list[int]):
    pass


def with_attribute(value: Any, number: int) -> Any:
    value.extra = number
    return value


def function(text: str) -> Any:
    space: dict[str, Any] = {"__name__": "__main__", "functools": functools}
    exec(text, space)
    return space["f"]


def nested(value: Any) -> Any:
    for _ in range(60):
        value = [value]
    return value


ALIKE = {
    "keyword-only": (lambda: function("def f(a, b): return a"), lambda: function("def f(a, *, b): return a")),
    "positional-only": (lambda: function("def f(a, b): return a"), lambda: function("def f(a, /, b): return a")),
    "what is tried": (
        lambda: function("def f(a):\n    try: a(); b = 1\n    except ValueError: return b"),
        lambda: function("def f(a):\n    a()\n    try: b = 1\n    except ValueError: return b"),
    ),
    "lru_cache": (
        lambda: function("@functools.lru_cache\ndef f(x): return x + 1"),
        lambda: function("@functools.lru_cache\ndef f(x): return x + 2"),
    ),
    "size of a cache": (
        lambda: function("@functools.lru_cache(1)\ndef f(x): return x"),
        lambda: function("@functools.lru_cache(2)\ndef f(x): return x"),
    ),
    "attribute of a function": (
        lambda: with_attribute(function("def f(): pass"), 1),
        lambda: with_attribute(function("def f(): pass"), 2),
    ),
    "names of fields": (lambda: np.zeros(1, [("a", "i4")]), lambda: np.zeros(1, [("b", "i4")])),
    "attribute of a dict": (lambda: with_attribute(Words(a=1), 1), lambda: with_attribute(Words(a=1), 2)),
    "attribute of a list": (lambda: with_attribute(Row([1]), 1), lambda: with_attribute(Row([1]), 2)),
    "items of a list's subclass": (lambda: Row([1]), lambda: Row([2])),
    "factory": (lambda: collections.defaultdict(list), lambda: collections.defaultdict(set)),
    "set": (lambda: {("a", Held(1))}, lambda: {("a", Held(2))}),
    "nested": (lambda: nested(1), lambda: nested(2)),
    "sparse": (lambda: torch.eye(2).to_sparse(), lambda: (torch.eye(2) * 2).to_sparse()),
    "compressed": (lambda: torch.eye(2).to_sparse_csr(), lambda: (torch.eye(2) * 2).to_sparse_csr()),
    "conjugate": (lambda: torch.tensor([1 + 2j]).conj(), lambda: torch.tensor([1 + 3j]).conj()),
    "meta": (lambda: torch.ones(2, device="meta"), lambda: torch.ones(3, device="meta")),
}


@pytest.mark.parametrize("what", ALIKE)
def test_what_is_alike_but_not_the_same_is_told_apart(what: str) -> None:
    one, other = ALIKE[what]
    assert sameness.digest(Held(one())) == sameness.digest(Held(one())) != sameness.digest(Held(other()))


@pytest.mark.parametrize("what", ["sparse", "compressed", "conjugate", "meta"])
def test_a_handler_with_an_unusual_tensor_is_served_under_a_name(runtime: Path, what: str) -> None:
    for attached in (False, True):
        with kit.deploy(Held(ALIKE[what][0]()), name="held", processes=1) as deployment:
            assert deployment.attached is attached  # type: ignore[attr-defined]
            assert deployment.predict([1])[0].inference == 1
    client.stop("held")

"""The extension: magics with help, errors in one line, completion, and expressions left alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import kit
from kit.daemon import client, hello, paths
from kit.magics_args import options_of, parsers, split_expression
from kit.settings import MODES
from tests.daemon_kernels import LOADS, Kernel, wait_for, wait_for_file

CELL = """
import kit
class Times(kit.ModelHandler):
    def __init__(self, factors, prefix=""):
        super().__init__()
        self.factors, self.prefix = factors, prefix
    def load_model(self): return self.factors
    def run_inference(self, batch, model, inference_args=None):
        return [self.prefix + str(x) if self.prefix else x * model["a"] for x in batch]
"""


@pytest.fixture
def shell(runtime: Path) -> Iterator[InteractiveShell]:
    """A shell with the extension loaded and a handler's class defined in a cell."""
    InteractiveShell.clear_instance()
    found = InteractiveShell.instance()
    found.run_line_magic("load_ext", "kit")
    assert found.run_cell(CELL).success
    yield found
    for value in list(found.user_ns.values()):
        if isinstance(value, kit.Deployment):
            value.close()
    for own in found.magics_manager.registry["KitMagics"]._own.values():
        own.close()
    found.reset()
    InteractiveShell.clear_instance()


def line(shell: InteractiveShell, text: str) -> Any:
    name, _, rest = text.partition(" ")
    return shell.run_line_magic(name.lstrip("%"), rest)


@pytest.mark.parametrize(
    ("text", "expression", "options"),
    [
        ("handler --name a", "handler", "--name a"),
        ("K([M(['a'], mh)]) --mode large", "K([M(['a'], mh)])", "--mode large"),
        ("H('x --name y') --name z", "H('x --name y')", "--name z"),
        ('H(""" it\'s --no """, {"k": 1}) --name z', 'H(""" it\'s --no """, {"k": 1})', "--name z"),
        (r"H('\' --a') --name z", r"H('\' --a')", "--name z"),
        ("H(1 --2)", "H(1 --2)", ""),
        ("f'{x}$y' --name z", "f'{x}$y'", "--name z"),
        ("H('#a', 1)  # as before, --name z", "H('#a', 1)", ""),
        ("H(1) --name z  # not --name y", "H(1)", "--name z  # not --name y"),
        ("--help", "", "--help"),
        (" -h ", "", "-h"),
        ("handler -h", "handler -h", ""),
        ("handler", "handler", ""),
    ],
)
def test_the_expression_runs_to_the_first_option_outside_brackets_and_quotes(
    text: str, expression: str, options: str
) -> None:
    assert split_expression(text) == (expression, options)


def test_loading_the_extension_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys\nfrom IPython.core.interactiveshell import InteractiveShell\ns = InteractiveShell.instance()\n"
        "before = set(sys.modules)\ns.run_line_magic('load_ext', 'kit')\nnew = set(sys.modules) - before\n"
        "import json; print(json.dumps(sorted(n for n in new if '.' not in n)))"
    )
    found = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert "kit" in found
    assert not {"torch", "pandas", "ipywidgets", "widgets", "matplotlib", "numpy"} & set(found)


def test_serve_infer_switch_and_unserve(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    deployment = line(shell, '%serve Times({"a": 3}) --name times --processes 1 --keep-alive 30m')
    assert "times: served" in capsys.readouterr().out
    frame = shell.run_cell_magic("infer", "times", "[1, 2,\n 3]")
    assert isinstance(frame, pd.DataFrame)
    assert list(frame["inference"]) == [3, 6, 9]
    assert list(shell.run_cell_magic("infer", "", "(x for x in range(3))")["inference"]) == [0, 3, 6]
    assert shell.run_cell_magic("infer", "--into found", "[5]") is None
    assert list(shell.user_ns["found"]["inference"]) == [15]
    capsys.readouterr()
    line(shell, "%switch large")
    assert "default → large" in capsys.readouterr().out
    line(shell, "%switch --processes 2")
    line(shell, "%switch times --mode default")
    assert deployment.mode == "default"
    line(shell, "%switch times medium --copies 3")
    settings = deployment.settings
    assert (settings.mode, settings.processes, settings.model_copies) == ("medium", 2, 3)
    assert list(line(shell, "%models")["state"]) == ["resident"]
    assert "worker" in set(line(shell, "%stats times")["role"])
    line(shell, "%unserve times")
    assert client.names() == []
    assert deployment.closed


def test_a_switch_that_waited_for_another_kernels_says_what_it_changed(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    begun, go = tmp_path / "loads 2", tmp_path / "go"
    with Kernel() as other:
        go.touch()
        other.run(LOADS + f"d = kit.deploy(Loads({str(tmp_path)!r}, 2), name='x', processes=1)")
        for command, said in (
            ("%switch shared x", "large → shared in "),
            ("%switch large x", "Nothing to do: it is served so already (mode 'large', 1 process × 1 thread)."),
        ):
            go.unlink()
            begun.unlink()
            other.send("d.switch('large')")
            wait_for_file(begun)
            later = threading.Timer(0.5, go.touch)  # by then this one's switch waits, too
            later.start()
            line(shell, command)
            later.join()
            assert other.receive() is None
            assert said in capsys.readouterr().out
        line(shell, "%switch --processes 1 --threads 2")
        assert "1 → 2 threads in " in capsys.readouterr().out
        assert str(kit.connect("x").history["events"].tolist()).count("switch:") == 4


def test_the_panel_of_a_name_is_that_of_its_deployment(shell: InteractiveShell) -> None:
    line(shell, "%serve Times({'a': 2}) --name times --processes 1")
    line(shell, "%serve Times({'a': 3}) --processes 2")
    for command in ("%panel times", "%panel"):  # the one that was asked for is the latest now
        panel = line(shell, command)
        assert "1 kernel connected" in panel.text()
        assert "1 process × 1 thread" in panel.text()
        panel.close()


def test_lines_of_text_are_examples(shell: InteractiveShell) -> None:
    line(shell, "%serve Times({}, 'got {it} $HOME ') --name texts --processes 1")
    frame = shell.run_cell_magic("infer", "texts --lines", "first {x}\n\n  second $y\n")
    assert list(frame["inference"]) == ["got {it} $HOME first {x}", "got {it} $HOME   second $y"]


def test_running_all_again_attaches_and_another_handler_needs_replace(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    line(shell, "%serve Times({'a': 3}) --name times --processes 1")
    assert shell.run_cell(CELL).success
    capsys.readouterr()
    again = line(shell, "%serve Times({'a': 3}) --name times --mode large")
    out = capsys.readouterr().out
    assert "attached" in out
    assert "%switch large times" in out
    with pytest.raises(UsageError, match="--replace"):
        line(shell, "%serve Times({'a': 4}) --name times")
    line(shell, "%serve Times({'a': 4}) --name times --replace")
    assert again.predict([1])[0].inference == 4


def test_without_a_name_it_says_where_it_lives_and_never_leaves_two(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    first = line(shell, "%serve Times({'a': 2}) --processes 1")
    assert "lives in this kernel" in capsys.readouterr().out
    second = line(shell, "%serve Times({'a': 2}) --processes 1")
    assert first.closed
    assert list(shell.run_cell_magic("infer", "", "[4]")["inference"]) == [8]
    for refused in ("--budget 1B", "--threads 0"):
        with pytest.raises(UsageError, match=refused.partition(" ")[0]):
            line(shell, f"%serve Times({{'a': 2}}) --processes 1 {refused}")
    assert not second.closed
    shell.user_ns["mine"] = second
    assert list(shell.run_cell_magic("infer", "mine", "[4]")["inference"]) == [8]
    line(shell, "%unserve mine")
    assert second.closed


def test_a_name_is_a_deployments_and_only_then_a_variables(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, factor in (("two", 2), ("three", 3), ("four", 4)):
        line(shell, f"%serve Times({{'a': {factor}}}) --name {name} --processes 1")

    def answer(name: str) -> int:
        capsys.readouterr()
        return int(shell.run_cell_magic("infer", name, "[1]")["inference"][0])

    shell.user_ns["held"] = kit.connect("two")
    assert answer("held") == 2
    shell.user_ns["held"] = kit.connect("three")
    assert answer("held") == 3
    shell.user_ns["held"] = own = kit.deploy(shell.user_ns["Times"]({"a": 5}), processes=1)
    assert answer("held") == 5
    own.close()
    shell.user_ns["held"] = kit.connect("three")
    line(shell, "%unserve held")
    assert client.names() == ["four", "two"]
    assert capsys.readouterr().out == "three: ended.\n"

    shell.user_ns["four"] = kit.connect("two")
    assert answer("four") == 4
    line(shell, "%stats four")
    assert "the variable four holds another one" in capsys.readouterr().out
    line(shell, "%unserve four")
    assert client.names() == ["two"]
    shell.user_ns["two"] = kit.connect("two")
    assert answer("four") == 2  # no deployment has that name any more
    assert "holds another" not in capsys.readouterr().out
    with Kernel() as other:
        other.run(
            "import kit; kit.deploy(kit.ModelHandler.from_callable(int, lambda b, m: b), name='four', processes=1)"
        )
    line(shell, "%unserve four")  # to which this kernel isn't connected
    assert client.names() == ["two"]


@pytest.mark.parametrize("magic", ["serve", "switch", "models", "stats", "panel", "unserve"])
def test_help_is_shown_and_nothing_is_done(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], magic: str
) -> None:
    assert line(shell, f"%{magic} --help") is None
    assert f"%{magic}" in capsys.readouterr().out
    assert line(shell, f"%{magic} -h") is None
    assert f"%{magic}" in capsys.readouterr().out


def test_infer_shows_its_help_with_and_without_a_body(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("reload_ext", "kit")  # once more is no second line
    for cell in ("%infer --help", "%%infer --help", "%%infer -h\n\n", "%%infer --help\n[1]"):
        assert shell.run_cell(cell).success, cell
        assert capsys.readouterr().out.count("--into") == 2, cell
    found = shell.run_cell("%infer times [('a', 1)]")
    assert "begin the cell with %%infer" in str(found.error_in_exec)
    found = shell.run_cell("%%infer nobody")
    assert "no deployment is named 'nobody'" in str(found.error_in_exec)
    assert shell.transform_cell("%%infer").count("\n") == 1
    assert shell.check_complete("%%infer m\n")[0] == "incomplete", "in a terminal the body is still to come"
    assert shell.transform_cell("%%inferx") == "get_ipython().run_cell_magic('inferx', '', '')\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("%serve", "give an expression"),
        ("%serve Times({}) --mode huge", "invalid choice: 'huge'"),
        ("%serve Times({}) --processes many", "invalid int value"),
        ("%serve Times({}) --processes 0", "--processes=0: give"),
        ("%serve Times({}) --mode medium --copies 0 --name x", "--copies=0: give"),
        ("%serve Times({}) --mode large --copies 3", "--copies=3 doesn't go with --mode='large', which keeps 1"),
        ("%serve Times({}) --budget much", "--budget='much' isn't a size"),
        ("%serve Times({}) --keep-alive -5m --name x", "--keep-alive='-5m': give seconds above 0"),
        ("%serve kit.ModelHandler(model_copies=0)", "model_copies=0"),
        ("%serve Times({}) --nam x", "unrecognized arguments: --nam x"),
        ("%serve Times({}) --nme x", "unrecognized arguments: --nme x"),
        ("%serve Times({}) --name a/b", "name='a/b'"),
        ("%serve Times", "make an object of it"),
        ("%serve Times({}) --keep-alive 30m", "--keep-alive: for named deployments; give a --name"),
        ("%serve Times({}) --replace --allow-pickle", "--replace, --allow-pickle: for named deployments"),
        ("%serve --name times Times({})", "before the options"),
        ("%switch huge", "no mode"),
        ("%switch", "give a mode"),
        ("%switch large", "nothing is served from here yet"),
        ("%switch large nobody", "no deployment is named 'nobody'"),
        ("%stats nobody", "no deployment is named 'nobody'"),
        ("%models a b", "unrecognized arguments"),
        ("%unserve nobody", "no deployment is named 'nobody'"),
        ("%unserve 'open", "No closing quotation"),
    ],
)
def test_argument_errors_are_one_line(shell: InteractiveShell, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        line(shell, text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_the_cell_itself_are_told(shell: InteractiveShell) -> None:
    line(shell, "%serve Times({'a': 3}) --name times --processes 1")
    for cell in (
        lambda: shell.run_cell_magic("infer", "", " \n"),
        lambda: shell.run_cell_magic("infer", "--lines", " \n\n"),
    ):
        with pytest.raises(UsageError, match="empty"):
            cell()
    with pytest.raises(UsageError, match="begin the cell with %%infer"):
        line(shell, "%infer times")
    with pytest.raises(UsageError, match="no name of a variable"):
        shell.run_cell_magic("infer", "--into 3x", "[1]")
    with pytest.raises(UsageError, match="no name of a variable"):
        shell.run_cell_magic("infer", "--into class", "[1]")
    for cell, words in (
        (lambda: shell.run_cell_magic("infer", "", "nobody"), "%%infer: name 'nobody' is not defined"),
        (
            lambda: shell.run_cell_magic("infer", "", "[1"),
            "%%infer: [1 isn't a Python expression: '[' was never closed",
        ),
        (lambda: shell.run_cell_magic("infer", "", "[1]\n[2]"), "%%infer: [1] [2] is 2 statements; give one"),
        (lambda: shell.run_cell_magic("infer", "", "x = [1]"), "%%infer: x = [1] is a statement; give an expression"),
        (lambda: shell.run_cell_magic("infer", "", "[1,\n2"), "'[' was never closed (line 2 of the cell)"),
        (lambda: line(shell, "%serve len 'abc --name x"), "isn't a Python expression: unterminated string literal"),
        (
            lambda: shell.run_cell_magic("infer", "", "'text'"),
            "'text' is one string, not a list of them",
        ),
        (lambda: line(shell, "%serve Tmes({})"), "%serve: name 'Tmes' is not defined"),
        (lambda: line(shell, "%serve Times extra --name x"), "%serve: Times extra isn't a Python expression: "),
    ):
        with pytest.raises(UsageError) as told:
            cell()
        assert words in str(told.value)
        assert "\n" not in str(told.value)
    shell.run_cell("def wrong(): return undefined_there")
    with pytest.raises(NameError, match="undefined_there"):  # where it comes from matters
        line(shell, "%serve wrong()")


def shown(shell: InteractiveShell, capsys: pytest.CaptureFixture[str], cell: str) -> str:
    """What a cell that fails shows, without colours."""
    capsys.readouterr()
    assert not shell.run_cell(cell).success
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(capsys.readouterr()))


def test_of_an_error_the_users_own_part_is_shown(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    package = str(Path(kit.__file__).parent)
    shell.run_cell("import threading\ndef bad(x):\n    return 1 / x\ndef unloadable(): return bad(0)")
    line(shell, "%serve Times({'a': 3}) --name times --processes 1")
    sets = "kit.ModelHandler.from_callable(lambda: None, lambda batch, model: [{x} for x in batch])"
    line(shell, f"%serve {sets} --name sets --processes 1")
    for cell, words in (
        ("%%infer times\n\n[1,\n bad(0)]", ["line 4", "bad(0)]", "in bad(x)", "ZeroDivisionError: division by zero"]),
        ("%%infer times\n(bad(x) for x in range(3))", ["<genexpr>", "in bad(x)", "ZeroDivisionError"]),
        ("%serve Times(bad(0))", ["line 1", "in bad(x)", "ZeroDivisionError"]),
        (
            "%serve kit.ModelHandler.from_callable(unloadable, lambda batch, model: batch) --name x",
            ["ModelLoadFailed: ", "in unloadable", "in bad", "ZeroDivisionError"],
        ),
        ("%serve Times(threading.Lock()) --name x", ["HandlerNotPicklable: Times.factors (a lock) can't travel"]),
        ("%%infer times\n[None]", ["InferenceFailed: ", "in run_inference", "TypeError: unsupported operand"]),
        ("%%infer sets\n[1]", ["UnsupportedResult: in a result of the handler: a builtins.set can't"]),
        ("def ask(): kit.connect('times').predict([None])\nask()\n", ["in ask()", "InferenceFailed"]),
    ):
        said = shown(shell, capsys, cell)
        for word in words:
            assert word in said, said
        if cell[0] == "%":
            assert package not in said
            assert len(said.splitlines()) < 20, said


def shown_interrupted(shell: InteractiveShell, capsys: pytest.CaptureFixture[str], text: str, file: Path) -> str:
    """`shown`, interrupted as soon as a file is there."""

    def interrupt() -> None:
        wait_for_file(file)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    said = shown(shell, capsys, text)
    other.join()
    return said


def test_an_interrupted_serve_says_what_came_of_it(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shell.run_cell(LOADS)
    shell.user_ns["folder"] = str(tmp_path)
    said = shown_interrupted(shell, capsys, "%serve Loads(folder, 2) --name x --processes 1", tmp_path / "loads 2")
    assert said.strip() == "KeyboardInterrupt: the load of 'x' was cancelled, and nothing is served."
    wait_for(lambda: client.names() == [], "it is gone")


@pytest.mark.parametrize(("options", "words"), [("--name x", "'x' wasn't switched"), ("", "the switch was cancelled")])
def test_an_interrupted_switch_says_what_came_of_it(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: str, words: str
) -> None:
    shell.run_cell(LOADS)
    shell.user_ns["folder"] = str(tmp_path)
    (tmp_path / "go").touch()
    deployment = line(shell, f"%serve Loads(folder, 2) {options} --processes 1")
    (tmp_path / "go").unlink()
    (tmp_path / "loads 2").unlink()
    said = shown_interrupted(shell, capsys, "%switch large", tmp_path / "loads 2")
    assert said.splitlines()[-1].startswith(f"KeyboardInterrupt: {words}, and ")
    assert said.strip().endswith("serves on as before.")
    assert "Traceback" not in said
    assert deployment.mode == "default"
    assert deployment.predict([3])[0].inference == 6
    deployment.close()


def test_a_comment_is_no_example_and_keys_have_a_column(shell: InteractiveShell) -> None:
    mappings = "kit.KeyModelMapping([k], Times({'a': k})) for k in (2, 3)"
    line(shell, f"%serve kit.KeyedModelHandler([{mappings}]) --name keyed --processes 1")
    with pytest.raises(UsageError, match="empty"):
        shell.run_cell_magic("infer", "keyed", "# nothing yet\n\n")
    found = shell.run_cell_magic("infer", "keyed", "# two\n[(3, 5),\n (2, 5)]  # of each")
    assert found[["key", "example", "inference"]].to_numpy().tolist() == [[3, 5, 15], [2, 5, 10]]
    with pytest.raises(UsageError, match="no model for the key 4"):
        shell.run_cell_magic("infer", "keyed", "[(4, 5)]")


def test_what_ended_a_deployment_is_told(shell: InteractiveShell) -> None:
    deployment = line(shell, "%serve Times({'a': 3}) --name short --processes 1 --keep-alive 1s")
    wait_for(lambda: deployment.closed, "it has ended")
    with pytest.raises(UsageError, match=r"no request for keep_alive=1 s and has ended"):
        line(shell, "%stats short")
    deployment = line(shell, "%serve Times({'a': 3}) --name short --processes 1")
    deployment.close()
    client.stop("short")
    with pytest.raises(UsageError, match="no deployment is named 'short'"):  # this kernel had let go of it before
        line(shell, "%stats short")


def test_settings_that_attaching_leaves_alone_are_told(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    line(shell, "%serve Times({'a': 3}) --name times --mode default --processes 1 --budget '1 GB'")
    line(shell, "%serve Times({'a': 3}) --name times --mode default --processes 1")
    assert "settings stay" not in capsys.readouterr().out
    line(shell, "%serve Times({'a': 3}) --name times --mode medium --processes 2 --copies 2 --budget '2 GB'")
    told = capsys.readouterr().out.strip().rpartition("This changes them: ")[2]
    assert told == "%switch medium times --processes 2 --copies 2 --budget '2 GB'"
    line(shell, told)
    settings = kit.connect("times").settings
    assert (settings.mode, settings.processes, settings.copies) == ("medium", 2, 2)
    line(shell, "%serve Times({'a': 3}) --name times --mode medium --processes 2 --copies 2 --budget '2 GB'")
    assert "settings stay" not in capsys.readouterr().out


def test_replacing_loads_a_rewritten_file_again_and_takes_the_settings_given(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shell.user_ns["weights"] = weights = tmp_path / "weights.txt"
    shell.run_cell(
        "def load(): return int(weights.read_text())\n"
        "def handler(): return kit.ModelHandler.from_callable(load, lambda batch, model: [model] * len(batch))"
    )
    weights.write_text("1")
    first = line(shell, "%serve handler() --name file --processes 1")
    weights.write_text("2")
    line(shell, "%serve handler() --name file")
    assert "attached" in capsys.readouterr().out
    assert first.predict([0])[0].inference == 1
    line(shell, "%serve handler() --name file --replace --mode medium --processes 2 --copies 3 --budget '2 GB'")
    said = capsys.readouterr().out
    assert "file: replaced (" in said
    assert "mode 'medium'" in said
    assert "stay" not in said
    assert first.predict([0])[0].inference == 2
    settings = first.settings
    assert (settings.mode, settings.processes, settings.copies) == ("medium", 2, 3)
    assert settings.memory_budget == 2_000_000_000
    line(shell, "%serve handler() --name file --replace --threads 2")
    settings = first.settings
    assert (settings.mode, settings.processes, settings.threads, settings.copies) == ("medium", 2, 2, 3)


def test_another_notebooks_deployment_is_named_where_none_is_meant(shell: InteractiveShell) -> None:
    with pytest.raises(UsageError, match=r"or give a name$"):
        line(shell, "%stats")
    with kit.deploy(kit.ModelHandler.from_callable(lambda: 2, lambda batch, by: list(batch)), name="else", processes=1):
        with pytest.raises(UsageError, match=r"these are served: else$"):
            line(shell, "%stats")
        assert len(line(shell, "%stats else"))


def test_models_by_key_of_a_named_deployment_are_listed(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    mappings = "kit.KeyModelMapping([k], Times({'a': k})) for k in (2, 3)"
    line(shell, f"%serve kit.KeyedModelHandler([{mappings}]) --name keyed --processes 1")
    shell.run_cell_magic("infer", "keyed", "[(3, 5)]")
    table = line(shell, "%models keyed")
    assert table["keys"].tolist() == [[3], [2]]
    assert table["state"].tolist() == ["resident", "evicted"]
    assert line(shell, "%models")["keys"].tolist() == [[3], [2]], "the latest"
    line(shell, "%models --help")
    assert "a row a key's model" in " ".join(capsys.readouterr().out.split())
    assert list(shell.complete(None, "%models k", 9)[1]) == ["keyed"]
    assert "--help" in options_of(parsers()["models"])


def test_names_modes_and_options_are_completed(shell: InteractiveShell) -> None:
    line(shell, "%serve Times({'a': 3}) --name times --processes 1")

    def complete(text: str) -> list[str]:
        return list(shell.complete(None, text, len(text))[1])

    assert set(complete("%switch ")) >= {"default", "medium", "large", "shared"}
    assert complete("%switch sh") == ["shared"]
    assert complete("%switch t") == ["times"]
    assert "large" in complete("%switch times l")
    assert "times" not in complete("%switch large --processes t")
    assert "times" in complete("%switch large ")
    assert complete("%stats t") == ["times"]
    assert complete("%unserve t") == ["times"]
    assert complete("%%infer t") == ["times"]
    assert complete("%serve x --mode sh") == ["shared"]
    assert complete("%serve x --mode=sh") == ["shared"]
    assert "Times" in complete("%serve Tim")
    assert "--keep-alive" in complete("%serve x --k")
    assert "--into" in complete("%%infer --i")
    shell.user_ns["answers"] = 1
    assert complete("%%infer times --into an") == ["answers"]
    assert complete("%serve x --keep-alive 3") == ["30m"]
    assert complete("%switch large --processes=4") == ["4"]


def test_completion_shows_what_fits_and_no_more(shell: InteractiveShell) -> None:
    shell.run_line_magic("reload_ext", "kit")  # once more is no second list

    def complete(text: str) -> list[str]:
        with provisionalcompleter():
            return [found.text for found in shell.Completer.completions(text, len(text))]

    assert complete("%switch ") == list(MODES)
    assert complete("%serve Times({}) --mode ") == list(MODES)
    assert complete("served = %serve Times({}) --mode l") == ["large"]
    assert complete("%serve Times({}) --") == list(options_of(parsers()["serve"]))
    assert "upper" in complete("text = 'a'\ntext.upp")  # elsewhere it is IPython's
    assert "--into" not in complete("%%infer a\n--")
    assert complete("%switch --mode ") == list(MODES)
    assert "%alias" not in complete("%%infer a --into ")
    assert "%alias" not in complete("%serve Times({}) --keep-alive ")


def test_loading_the_extension_again_keeps_what_is_served(shell: InteractiveShell) -> None:
    own = line(shell, "%serve Times({'a': 3}) --processes 1")
    shell.run_line_magic("reload_ext", "kit")
    assert "worker" in set(line(shell, "%stats  # of the latest, isn't it?")["role"])
    assert line(shell, "%serve Times({'a': 3}) --processes 1") is not own
    assert own.closed
    assert list(shell.run_cell_magic("infer", "--lines # text", "a")["inference"]) == ["aaa"]


def test_once_the_latest_has_ended_it_is_asked_which_one_is_meant(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        line(shell, f"%serve Times({{'a': 3}}) --name {name} --processes 1")
    line(shell, "%unserve")
    assert "second: ended." in capsys.readouterr().out
    with pytest.raises(UsageError, match="say which: first"):
        line(shell, "%stats")
    assert len(line(shell, "%stats first"))
    line(shell, "%unserve first")
    with pytest.raises(UsageError, match="what was served here has ended"):
        line(shell, "%panel")


def test_completion_starts_no_daemon(shell: InteractiveShell, runtime: Path) -> None:
    shell.complete(None, "%stats ", 7)
    assert list(runtime.iterdir()) == []


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kit", *arguments], capture_output=True, text=True, timeout=60)


def test_everything_works_from_a_terminal(runtime: Path) -> None:
    assert "no named deployment" in run("ps").stdout
    noisy = kit.ModelHandler.from_callable(lambda: print("hello from load"), lambda batch, model: list(batch))
    with kit.deploy(noisy, name="noisy", processes=1) as deployment:
        deployment.predict([1])
        found = run("ps").stdout.splitlines()
        assert found[0].split()[:4] == ["name", "state", "handler", "mode"]
        assert found[1].split()[:4] == ["noisy", "serving", "CallableModelHandler", "default"]
        assert "hello from load" in run("logs", "noisy").stdout
        assert run("logs", "noisy", "-n", "0").stdout.strip() == ""
        figures: list[str] = []
        while len(figures) < 2:  # of a second in which it has answered
            deployment.predict([1])
            header, row = run("top", "-n", "1").stdout.splitlines()
            figures = re.findall(r"[\d.]+ ms", row)
        assert header.split()[:7] == ["name", "mode", "kernels", "elements/s", "queued", "p50", "p99"]
        failed = run("stop", "other")
        assert failed.returncode == 1
        assert "'noisy'" in failed.stderr
        assert run("stop").returncode == 1
        assert run("nonsense").returncode == 2
        assert "stopped noisy" in run("stop", "--all").stdout
        assert run("--version").stdout.split() == ["kit", f"{kit.__version__},", "Python", hello.PYTHON]
        assert "no named deployment" in run("ps").stdout


def test_the_log_of_one_that_has_ended_is_shown(runtime: Path) -> None:
    def serve(word: str) -> kit.ModelHandler:
        return kit.ModelHandler.from_callable(lambda: print(word), lambda batch, model: list(batch))

    for word in ("first", "second"):
        deployment: Any = kit.deploy(serve(word), name="daemon", processes=1)
        wait_for(lambda word=word, deployment=deployment: word in deployment.logs(), "it has printed")
        deployment.stop()
    found = run("logs", "daemon")
    assert "daemon has ended" in found.stderr
    assert "second" in found.stdout
    assert "first" not in found.stdout, "a new one of this name starts its log anew"
    assert found.stdout.splitlines()[-1].startswith("the named deployment 'daemon' was stopped")
    assert run("logs", "daemon", "-n", "1").stdout == found.stdout.splitlines()[-1] + "\n"
    assert run("logs", "nobody").returncode == 1


def test_old_logs_do_not_pile_up(runtime: Path) -> None:
    for number in range(paths.KEPT_LOGS + 3):
        path = paths.log_of(runtime, f"old{number}")
        path.write_text("x")
        os.utime(path, (number, number))
    other = paths.log_of(runtime, "serves")
    other.write_text("x")
    os.utime(other, (0, 0))
    paths.forget_old_logs(runtime, {"serves"})
    assert other.exists()
    other.unlink()
    kit.deploy(kit.ModelHandler.from_callable(int, lambda batch, model: batch), name="new", processes=1)
    assert {path.name.partition(".")[0] for path in runtime.glob("*.deployment.log")} == {
        "new",
        *(f"old{number}" for number in range(3, paths.KEPT_LOGS + 3)),
    }


def test_what_an_attached_deployment_does_not_do_is_said(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = "%serve Times({'a': 3}) --name kept --processes 1 --keep-alive"
    line(shell, f"{serve} 40m")
    capsys.readouterr()
    line(shell, f"{serve} 2400")
    assert "without a request" not in capsys.readouterr().out
    line(shell, f"{serve} 30m --allow-pickle")
    said = capsys.readouterr().out
    assert "It ends after 2400 s without a request." in said
    assert "It was served without --allow-pickle, and stays so." in said
    assert said.count("%unserve kept") == 2
    replaced = line(shell, "%serve Times({'a': 4}) --name kept --processes 1 --replace --keep-alive 30m")
    assert "without a request" not in capsys.readouterr().out
    assert replaced.keep_alive_s == 1800
    assert kit.deployments().set_index("name").keep_alive_s["kept"] == 1800

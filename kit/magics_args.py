"""Arguments of the magics: an expression up to the first option, options as on a command line, errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from IPython.core.error import UsageError

from kit import errors
from kit.settings import MODES

_CLOSING = {"(": ")", "[": "]", "{": "}"}


_NAME = "of a deployment, or of a variable that holds one, where no deployment has that name"
_COMMENT = re.compile(r"(?:^|\s)#.*", re.DOTALL)
_NEGATIVE = re.compile(r"-\.?\d")
#: Arguments of `kit.deploy`, by the options that give them.
_OPTIONS = {
    **{name: f"--{name}" for name in ("name", "mode", "processes", "threads")},
    "model_copies": "--copies",
    "memory_budget": "--budget",
    "keep_alive": "--keep-alive",
}
_ARGUMENT = re.compile(rf"(?<![\w-])({'|'.join(_OPTIONS)})(?==)|model_copies|memory_budget")


@contextlib.contextmanager
def options_as_typed() -> Iterator[None]:
    """Within, errors about arguments of `kit.deploy` and `switch` name the options that gave them."""
    try:
        yield
    except (errors.InvalidSetting, errors.BudgetExceeded) as error:
        raise type(error)(_ARGUMENT.sub(lambda found: _OPTIONS[found[0]], str(error))) from error


class HelpShown(Exception):
    """--help was given; the text is printed."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError, which IPython shows as one line, and never exits."""

    def __init__(self, magic: str, usage: str, description: str) -> None:
        # argparse takes a % in the usage for a format.
        super().__init__(prog=magic, usage=usage.replace("%", "%%"), description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown

    def parse_line(self, line: str) -> argparse.Namespace:
        """Parse the rest of a line.

        Raises:
            UsageError: what is wrong. HelpShown.
        """
        try:
            words = shlex.split(_COMMENT.sub("", line))
        except ValueError as error:
            self.error(f"{error} in {line!r}")
        for at in range(len(words) - 1, 0, -1):
            # argparse takes -5m for an option.
            if words[at - 1] in options_of(self) and _NEGATIVE.match(words[at]):
                words[at - 1 : at + 1] = [f"{words[at - 1]}={words[at]}"]
        return self.parse_args(words)


def split_expression(line: str) -> tuple[str, str]:
    """A Python expression and the options behind it, which begin at the first " --" outside brackets and quotes."""
    if line.strip() == "-h":
        return "", "-h"
    at, quote, depth = 0, "", 0
    while at < len(line):
        here = line[at]
        if quote:
            if here == "\\":
                at += 1
            elif line.startswith(quote, at):
                at += len(quote) - 1
                quote = ""
        elif here in "'\"":
            quote = here * 3 if line.startswith(here * 3, at) else here
            at += len(quote) - 1
        elif here == "#" and depth == 0 and line[at - 1 : at].isspace():
            return line[:at].strip(), ""  # a comment, and no options
        elif here in _CLOSING:
            depth += 1
        elif here in _CLOSING.values():
            depth -= 1
        elif depth == 0 and line.startswith("--", at) and (at == 0 or line[at - 1].isspace()):
            return line[:at].strip(), line[at:]
        at += 1
    return line.strip(), ""


def add_settings(parser: Parser) -> None:
    """Options for processes, threads, copies and the budget."""
    parser.add_argument("--processes", type=int, metavar="N", help="worker processes")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads a process")
    parser.add_argument("--copies", type=int, metavar="N", help="copies of the model, in mode medium")
    parser.add_argument("--budget", metavar="SIZE", help='memory for all copies, such as "2GiB"')


def settings_of(wanted: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, under the names of `kit.deploy`."""
    return {
        "processes": wanted.processes,
        "threads": wanted.threads,
        "model_copies": wanted.copies,
        "memory_budget": wanted.budget,
    }


def switch_to(wanted: argparse.Namespace) -> str:
    """The line that gives a deployment the settings that %serve was given."""
    options = {name: getattr(wanted, name) for name in ("processes", "threads", "copies", "budget")}
    given = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return " ".join(["%switch", *filter(None, [wanted.mode]), wanted.name, *given])


def parsers() -> dict[str, Parser]:
    """A parser for each magic."""
    serve = Parser("%serve", "%serve HANDLER_EXPR [options]", "Serve a model handler; gives the deployment.")
    serve.add_argument("--name", help="let it live in the daemon under this name, shared by all kernels")
    serve.add_argument("--mode", choices=MODES)
    add_settings(serve)
    serve.add_argument("--keep-alive", metavar="TIME", help='end after so long without a request, such as "30m"')
    serve.add_argument(
        "--replace",
        action="store_true",
        help="load it again, or another in its place, live, with the settings given",
    )
    serve.add_argument("--allow-pickle", action="store_true", help="let objects of any type travel, as pickles")
    switch = Parser("%switch", "%switch [MODE] [NAME] [options]", "Change the mode and other settings, live.")
    switch.add_argument(
        "words", nargs="*", metavar="MODE NAME", help=f"MODE is one of {', '.join(MODES)}; NAME, {_NAME}"
    )
    switch.add_argument("--mode", choices=MODES, help="as %%serve has it; all words are names then")
    add_settings(switch)
    found = {"serve": serve, "switch": switch}
    for magic, description in (
        ("models", "The models that a deployment holds, as a DataFrame; of models by key, a row a key's model."),
        ("stats", "Its processes, as a DataFrame: memory, rates, counts."),
        ("panel", "Watch it and switch its mode."),
        ("unserve", "End it, for all kernels."),
    ):
        parser = Parser(f"%{magic}", f"%{magic} [NAME]", f"{description} NAME defaults to the latest.")
        parser.add_argument("name", nargs="?", metavar="NAME", help=_NAME)
        found[magic] = parser
    infer = Parser(
        "%%infer",
        "%%infer [NAME] [--lines] [--into VAR]",
        "Predictions, as a DataFrame, for the examples that the cell's body gives: a Python expression.",
    )
    infer.add_argument("name", nargs="?", metavar="NAME", help=f"{_NAME}; the latest by default")
    infer.add_argument("--lines", action="store_true", help="the body is text, each line that isn't empty an example")
    infer.add_argument("--into", metavar="VAR", help="assign the DataFrame to a variable and show nothing")
    found["infer"] = infer
    return found


def options_of(parser: Parser, *, with_value: bool = False) -> Sequence[str]:
    """The long options of a magic, for completion; or those that a value follows."""
    actions = [action for action in parser._actions if action.nargs != 0 or not with_value]
    return [text for action in actions for text in action.option_strings if text.startswith("--")]

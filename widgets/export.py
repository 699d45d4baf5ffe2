"""The settings now shown, as Python code and as Apache Beam code that reproduces them.

A handler is written down from the arguments that it was made with. Where these can't be (a lambda, a
tensor), the code uses the notebook's own variable instead.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from kit.handler import ModelHandler
from kit.key_mappings import KeyModelMapping
from kit.settings import Settings

#: Of the call that makes a handler; a mapping for each of thousands of keys is no code to read.
MOST_CHARACTERS = 10_000
_PLAIN = (str, int, float, bool, bytes, type(None))


class NotCode(Exception):
    """A value has no short text that makes it again."""


def python_code(handler: Any, settings: Settings, examples: Any = None) -> str:
    """Code that deploys the handler with these settings, and asks it the first of `examples`."""
    imports, lines = _handler_lines(handler, {})
    arguments = [f"mode={settings.mode!r}", f"processes={settings.processes}", f"threads={settings.threads}"]
    if settings.mode == "medium":
        arguments.append(f"model_copies={settings.model_copies}")
    if settings.memory_budget is not None:
        arguments.append(f"memory_budget={settings.memory_budget}")
    return "\n".join(
        [
            *sorted({"import kit", "from kit import RunInference", *imports}, key=_import_order),
            "",
            *lines,
            *_example_lines(examples),
            f"deployment = kit.deploy(handler, {', '.join(arguments)})",
            "predictions = examples | RunInference(deployment)",
            "",
        ]
    )


def beam_code(handler: Any, settings: Settings, examples: Any = None) -> str:
    """A Beam pipeline with the same handler, sharing its model as these settings do, on the first of `examples`."""
    in_shared = settings.mode == "shared"
    sharing: dict[str, Any] = {"large_model": settings.mode == "large" or in_shared, "model_copies": None}
    if settings.mode == "medium":
        sharing["model_copies"] = settings.model_copies
    imports, lines = _handler_lines(handler, sharing)
    beam = {"import apache_beam as beam", "from apache_beam.ml.inference.base import RunInference"}
    return "\n".join(
        [
            *sorted({*beam, *imports}, key=_import_order),
            "",
            *lines,
            *_example_lines(examples),
            f"# Here mode {settings.mode}, {settings.workers_in_words}; in Beam the runner decides on processes.",
            *(["# Beam has no mode shared: large_model keeps one copy a machine too, in one process."] * in_shared),
            "with beam.Pipeline() as pipeline:",
            "    (",
            "        pipeline",
            "        | beam.Create(examples)",
            "        | RunInference(handler)",
            "        | beam.Map(print)",
            "    )",
            "",
        ]
    )


def _example_lines(examples: Any) -> list[str]:
    """A few examples where they can be written down, so that the code runs as it is; else it uses `examples`."""
    try:
        few = [_code(example, set()) for _, example in zip(range(3), examples if examples is not None else ())]  # noqa: B905
    except NotCode:
        few = []
    if not few or sum(map(len, few)) > 2000:
        return ["# examples: a list of your own"]
    return ["# a few of the examples; put all of yours here", "examples = [", *(f"    {one}," for one in few), "]"]


# ---- the handler ---------------------------------------------------------------------------------


def _handler_lines(handler: Any, sharing: Mapping[str, Any]) -> tuple[set[str], list[str]]:
    imports: set[str] = set()
    try:
        call = _constructor(handler, sharing, imports)
        if len(call) > MOST_CHARACTERS:
            raise NotCode(f"what it is made of would take {len(call):,} characters")
        return imports, [f"handler = {call}"]
    except NotCode as reason:
        name = _name_in_notebook(handler)
        lines = [f"# {name} is the handler as your notebook made it: {reason}."]
        changed = {option: value for option, value in _changed_options(handler).items() if _is_plain(value)}
        if changed:
            name += f".with_batching({_keywords(changed, set())})"
        lines.append(f"handler = {name}")
        if sharing and _shares(handler) != (bool(sharing["large_model"]), sharing["model_copies"]):
            lines += _sharing_methods(sharing)
        return set(), lines


def _constructor(handler: Any, sharing: Mapping[str, Any], imports: set[str]) -> str:
    """The call that makes the handler again, with its batching as it is now."""
    origin = getattr(handler, "_origin", None) or handler
    if not isinstance(handler, ModelHandler):
        raise NotCode(f"{type(handler).__name__} doesn't keep the arguments that it was made with")
    made_with = origin._made_with
    if made_with is None:
        raise NotCode("its arguments stayed in the process that made it")
    args = made_with.args
    wanted = dict(made_with.kwargs) | _changed_options(handler)
    for name, value in sharing.items():
        if value:
            wanted[name] = value
        else:
            wanted.pop(name, None)
    _check_accepts(type(handler), args, wanted)
    words = [_code(value, imports) for value in args]
    if wanted:
        words.append(_keywords(wanted, imports))
    if type(handler).__name__ == "CallableModelHandler":
        imports.add("import kit")
        call = f"kit.ModelHandler.from_callable({', '.join(words)})"
    else:
        call = f"{_code(type(handler), imports)}({', '.join(words)})"
    for function in reversed(handler._preprocess_fns):
        call += f".with_preprocess_fn({_code(function, imports)})"
    for function in handler._postprocess_fns:
        call += f".with_postprocess_fn({_code(function, imports)})"
    return call + (".with_no_batching()" if handler._skip_batching else "")


def _check_accepts(kind: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    try:
        inspect.signature(kind).bind(*args, **kwargs)
    except TypeError as error:
        raise NotCode(f"{kind.__name__} doesn't take these settings ({error})") from None


def _changed_options(handler: Any) -> dict[str, Any]:
    """Batching options that differ from what the constructor gave; None for those taken away."""
    origin = getattr(handler, "_origin", None)
    if origin is None or not isinstance(handler, ModelHandler):
        return {}
    names = {**origin._options, **handler._options}
    return {
        name: handler._options.get(name)
        for name in names
        if handler._options.get(name) is not origin._options.get(name)
        and handler._options.get(name) != origin._options.get(name)
    }


def _shares(handler: Any) -> tuple[bool, int | None]:
    if not handler.share_model_across_processes():
        return (False, None)
    copies = handler.model_copies()
    return (True, None) if copies == 1 else (False, copies)


def _sharing_methods(sharing: Mapping[str, Any]) -> list[str]:
    """The two methods that Beam asks, set on the object: works for any handler."""
    shared = bool(sharing["large_model"] or sharing["model_copies"])
    lines = [f"handler.share_model_across_processes = lambda: {shared}"]
    if shared:
        lines.append(f"handler.model_copies = lambda: {sharing['model_copies'] or 1}")
    return lines


def _name_in_notebook(handler: Any) -> str:
    """The variable of the notebook that holds this handler, or the one that it was copied from."""
    space = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    origin = getattr(handler, "_origin", None)
    for name, value in list(space.items()):
        if not name.startswith("_") and (value is handler or (origin is not None and value is origin)):
            return str(name)
    return "handler"


# ---- values --------------------------------------------------------------------------------------


def _keywords(values: Mapping[str, Any], imports: set[str]) -> str:
    return ", ".join(f"{name}={_code(value, imports)}" for name, value in values.items())


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN)


def _code(value: Any, imports: set[str]) -> str:
    """Text that makes the value again; what has to be imported for it is added to `imports`."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if hasattr(value, "__fspath__"):
        return repr(value.__fspath__())
    if type(value) in (list, tuple):
        items = [_code(item, imports) for item in value]
        inner = ", ".join(items)
        if len(inner) > 90 and any("(" in item for item in items):
            inner = "\n    " + ",\n    ".join(items) + ",\n"
        return f"[{inner}]" if type(value) is list else f"({inner}{',' * (len(items) == 1)})"
    if type(value) is dict:
        return "{" + ", ".join(f"{_code(k, imports)}: {_code(v, imports)}" for k, v in value.items()) + "}"
    if isinstance(value, KeyModelMapping):
        imports.add("from kit import KeyModelMapping")
        return f"KeyModelMapping({_code(list(value.keys), imports)}, {_code(value.handler, imports)})"
    if isinstance(value, ModelHandler):
        return _constructor(value, {}, imports)
    return _imported(value, imports)


def _imported(value: Any, imports: set[str]) -> str:
    """The name of a class or function of some module, or of the notebook itself."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module is None or name is None or not name.isidentifier():
        raise NotCode(f"{value!r:.60} has no name to import it by")
    public = "kit.handlers" if module.startswith("kit.handlers.") else "kit" if module.startswith("kit.") else module
    for home in dict.fromkeys((public, module)):
        if getattr(sys.modules.get(home), name, None) is value:
            if home == "builtins":
                return str(name)
            if home != "__main__":
                imports.add(f"from {home} import {name}")
            return str(name)
    raise NotCode(f"{name} is defined where nothing can import it")


def _import_order(line: str) -> tuple[bool, str]:
    return (line.startswith("from"), line)

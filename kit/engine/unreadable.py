"""Messages that can't be rebuilt where they arrive: whoever waits for them is told, and their reader goes on."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kit.engine.codec import LONG, PICKLE, long_parts
from kit.engine.trouble import Trouble, in_words

if TYPE_CHECKING:
    from kit.engine.transport import Message

#: Where what every pickle may need is from; of torch itself an element type says something.
_COMMON = frozenset(["builtins", "copyreg", "collections", "_codecs", "cloudpickle", "numpy", "torch", "kit"])
MOST_NAMES = 3
EXAMPLES, PREDICTIONS, ARGUMENTS = "an example", "the predictions", "the inference_args"


class NotRebuilt(Exception):
    """Something pickled can't be unpickled here; `encoded` is its kind, head and buffers, see `codec`."""

    def __init__(self, error: BaseException, encoded: tuple[int, Any, list[Any]]) -> None:
        self._reason = in_words(error)
        self._trace = "".join(traceback.format_exception(error))
        self._names = names_in(*encoded)
        super().__init__(self._reason)

    def trouble(self, what: str) -> Trouble:
        """What to tell who waits for it."""
        names = f" (pickled as {', '.join(self._names)})" if self._names else ""
        return Trouble(
            "InferenceFailed",
            f"{what}{names} can't be rebuilt in another process: {self._reason.rstrip('.')}. Use numbers, text, arrays "
            "or objects that come back from pickle.loads(pickle.dumps(x)) there.",
            self._trace,
        )


class Unreadable(NotRebuilt):
    """A message was received, but its value can't be unpickled.

    Attributes:
        message: with None for the value.
    """

    def __init__(self, message: Message, error: BaseException, encoded: tuple[int, Any, list[Any]]) -> None:
        super().__init__(error, encoded)
        self.message = message


def names_in(kind: int, head: Any, buffers: list[Any]) -> list[str]:
    """The classes and functions that a pickle refers to, or has with it, without those of every pickle."""
    try:
        if kind == LONG:
            kind, head, _ = long_parts(head, buffers[0])
        return list(dict.fromkeys(_references(bytes(head))))[:MOST_NAMES] if kind == PICKLE else []
    except Exception:  # it may be no pickle at all
        return []


def _references(head: bytes) -> Iterator[str]:
    import pickletools  # takes milliseconds, which connecting needn't

    texts: list[str] = []
    memo: list[str | None] = []
    text: str | None = None  # what the latest step has put on the stack, if that is text
    made = 0  # 2 before the metaclass of a class that comes by value, 1 before its name
    for step, argument, _ in pickletools.genops(head):
        if step.name == "MEMOIZE":
            memo.append(text)
            continue
        text = None
        if isinstance(argument, str):
            text = argument
        elif isinstance(argument, int) and "BINGET" in step.name:
            text = memo[argument]
        if text is not None:
            texts.append(text)
            if made == 1:
                made = 0
                yield text
        elif step.name == "STACK_GLOBAL":
            module, name = texts[-2:]
            if name in ("_make_skeleton_class", "_make_skeleton_enum"):
                made = 2
            elif made == 2:
                made = 1
            elif module == "torch" or module.partition(".")[0] not in _COMMON:
                yield f"{module}.{name}"

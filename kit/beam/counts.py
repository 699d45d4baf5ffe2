"""What a step reports of its windows: all of it together, and of models by key each apart, as Beam's handler does.

Sizes, bytes and latencies are those of the batches that were computed, as the engine tells them. A batch of several
workers' examples is reported by each of them: its own examples in it, and the seconds of the whole batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kit.beam.core_handler import size_of, size_unkeyed, unkeyed_bytes
from kit.beam.metrics import Reporter
from kit.beam.options import Options
from kit.engine.requests import Failure

if TYPE_CHECKING:
    from kit.beam.serving import Shared
    from kit.beam.window import Window

#: Models by key may be loaded again at any time; that is looked for so often, seconds.
LOOK_S = 1.0


class Counts:
    """Reports the windows of a step; nothing where the handler reports its own metrics.

    Args:
        handler: counts the bytes of a batch; None for those of its arrays and texts.
    """

    def __init__(self, options: Options, handler: Any | None) -> None:
        self._options = options
        self._count_bytes: Callable[[Any], int] = size_of if handler is None else handler.get_num_bytes
        self._count_unkeyed = size_unkeyed if handler is None else unkeyed_bytes(handler)
        namespace = options.namespace
        self._all = None if namespace is None else Reporter(namespace)
        self._by_key = None if namespace is None or not options.groups else ByKey(namespace, options.groups)
        self._looked_at = 0.0

    def use(self, model: Any, *, by_key: bool) -> None:
        """Report under the names of the version that a side input names."""
        if self._all is None or self._options.namespace is None:
            return
        if not by_key:
            self._all = Reporter(self._options.namespace, model.model_name)
        elif self._by_key is not None:
            self._by_key.use(model)

    def failed(self, examples: Iterable[Any] | None = None) -> None:
        """Batches of one example each that failed, or a batch that is unknown."""
        if self._all is None:
            return
        for example in examples if examples is not None else [None]:
            self._all.failed()
            reporter = None if self._by_key is None else self._by_key.of(example)
            if reporter is not None:
                reporter.failed()

    def window(self, window: Window, results: Any, failures: int, shared: Shared | None) -> None:
        """A window that was answered, in a deployment whose loads may be unreported; `failures` of its results are."""
        if self._all is None:
            return
        examples, bad = window.examples, set()
        if failures:
            bad = {at for at, one in enumerate(results) if type(one) is Failure}
            self.failed(examples[at] for at in sorted(bad))
        good = [example for at, example in enumerate(examples) if at not in bad] if bad else examples
        news = True
        if self._by_key is not None:
            news = self._by_key.answered(good) or time.monotonic() - self._looked_at > LOOK_S
        if news and shared is not None:
            self._report_loads(shared)
        if good:
            self._all.answered(sum(max(1, len(batch)) for batch in good) if self._options.prebatched else len(good))
        for where, seconds in window.batches:
            mine = [examples[at] for at in where if at not in bad]
            if mine:
                self._batch(mine, seconds)

    def _batch(self, examples: list[Any], seconds: float) -> None:
        assert self._all is not None
        batch = examples[0] if self._options.prebatched else examples
        self._all.batch(max(1, len(batch)), self._count_bytes(batch), seconds)
        reporter = None if self._by_key is None else self._by_key.of(examples[0])
        if reporter is not None:
            reporter.batch(len(examples), self._count_unkeyed(examples), seconds)

    def _report_loads(self, shared: Shared) -> None:
        self._looked_at = time.monotonic()
        for keys, seconds, size_bytes in shared.take_loads():
            assert self._all is not None
            self._all.loaded(seconds, size_bytes)
            reporter = None if self._by_key is None or not keys else self._by_key.of_key(keys[0])
            if reporter is not None:
                reporter.loaded(seconds, size_bytes)


#: Path and id of a model that a side input named; of the handler's own there are none.
_Version = tuple[str | None, str | None]
_OWN: _Version = (None, None)


class ByKey:
    """Reports groups of keys that share a model, each under the name of one of its keys.

    "films-_num_inferences", and of a model that a side input names, "films-v2-_num_inferences".

    Args:
        groups: the key that stands for each key.
    """

    def __init__(self, namespace: str, groups: Mapping[Hashable, Hashable]) -> None:
        self._namespace = namespace
        self._groups = dict(groups)
        self._versions: dict[Hashable, _Version] = dict.fromkeys(groups.values(), _OWN)
        self._reporters = {group: Reporter(namespace, f"{group}-") for group in groups.values()}
        self._seen: set[Hashable] = set()

    def use(self, mappings: Iterable[Any]) -> None:
        """Take the paths of a side input: keys that had a model together may part by them."""
        named = {key: (mapping.update_path, mapping.model_id) for mapping in mappings for key in mapping.keys}
        parts: dict[tuple[Hashable, _Version], list[Hashable]] = {}
        for key, group in self._groups.items():
            parts.setdefault((group, named.get(key, self._versions[group])), []).append(key)
        before, self._versions = self._versions, {}
        for (group, version), keys in parts.items():
            name = group if group in keys else keys[0]
            self._groups.update(dict.fromkeys(keys, name))
            self._versions[name] = version
            if before.get(name) != version:
                words = f"{name}-" if version == _OWN else f"{name}-{version[1]}-"
                self._reporters[name] = Reporter(self._namespace, words)
                self._seen.discard(name)

    def of_key(self, key: Hashable) -> Reporter | None:
        """The reporter of a key's group."""
        return self._reporters.get(self._groups.get(key))

    def of(self, example: Any) -> Reporter | None:
        """The reporter of an example's group; None where it has no key that is known."""
        if type(example) is not tuple or len(example) != 2 or not isinstance(example[0], Hashable):
            return None
        return self.of_key(example[0])

    def answered(self, examples: Iterable[Any]) -> bool:
        """Examples that were answered; True when a model among theirs wasn't seen before."""
        found: dict[Hashable, int] = {}
        for example in examples:
            if type(example) is tuple and len(example) == 2:  # those without a key have no model apart
                group = self._groups.get(example[0])
                found[group] = found.get(group, 0) + 1
        for group, count in found.items():
            if group in self._reporters:
                self._reporters[group].answered(count)
        news = not self._seen.issuperset(found)
        self._seen.update(found)
        return news

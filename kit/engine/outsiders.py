"""Who else maps the files that a deployment's weights are in: another notebook with the same model, say."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from kit.engine.memory_roles import Report, mapped_files
from kit.mapped_files import File, pss_of

#: Reading all mappings of a process is dear, so others are looked for seldom, in seconds.
EVERY_S = 15.0


class Outsiders:
    """Counts them by file, judged by the part of its bytes that is in the PSS of the deployment's own processes."""

    def __init__(self) -> None:
        self._counts: dict[File, float] = {}
        self._looked_at = 0.0

    def counts(self, processes: Sequence[tuple[int, Report]]) -> Mapping[File, float]:
        """Processes of others that map each file of these (pid, report); read again now and then, and for new files."""
        files = {file for _, report in processes for file in mapped_files(report)}
        if files and (not files <= set(self._counts) or time.monotonic() - self._looked_at > EVERY_S):
            self._looked_at = time.monotonic()
            self._counts = self._look(processes)
        return self._counts

    def _look(self, processes: Sequence[tuple[int, Report]]) -> dict[File, float]:
        mappers: Counter[File] = Counter()
        inside: Counter[File] = Counter()
        sizes: dict[File, int] = {}
        for pid, report in processes:
            files = mapped_files(report)
            mappers.update(files.keys())
            inside.update(pss_of(pid, files) if files else {})
            sizes |= {file: max(size, sizes.get(file, 0)) for file, size in files.items()}
        # Of n mappers, those inside have n_inside/n of the bytes.
        return {
            file: max(0.0, mappers[file] * (size - inside[file]) / inside[file]) if inside[file] else 0.0
            for file, size in sizes.items()
        }

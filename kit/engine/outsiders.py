"""How much of the files with a deployment's weights is in memory, and who else maps them: another notebook, say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from kit.engine.memory_roles import FileUse, Report, mapped_files
from kit.mapped_files import File, mapped_by

#: Reading all mappings of a process is dear, so it is done so many seconds after another process has come, ...
SOON_S = (2.0, 6.0)
#: ... and from then on in these.
EVERY_S = 15.0


class Outsiders:
    """Looks now and then; in between, and before the first look, the last one counts."""

    def __init__(self) -> None:
        self._uses: dict[File, FileUse] = {}
        self._pids: set[int] = set()
        self._due = [0.0]

    def uses(self, processes: Sequence[tuple[int, Report]]) -> Mapping[File, FileUse]:
        """How the files are used that these (pid, report) map weights from."""
        mappers = [(pid, files) for pid, report in processes if (files := mapped_files(report))]
        now = time.monotonic()
        pids = {pid for pid, _ in mappers}
        if not pids <= self._pids:
            self._due = [now + seconds for seconds in SOON_S]
        self._pids = pids
        if mappers and now >= self._due[0]:
            self._due = self._due[1:] or [now + EVERY_S]
            self._look(mappers)
        return self._uses

    def _look(self, mappers: Sequence[tuple[int, Mapping[File, int]]]) -> None:
        found = [mapped_by(pid, files) for pid, files in mappers]
        for file in {file for one in found for file in one}:
            held = [one[file] for one in found if file in one]
            most = max(held, key=lambda one: one.rss_bytes)
            # Its pages are shared by so many in the mean, of which these are ours.
            others = most.rss_bytes / most.pss_bytes - len(held) if most.pss_bytes else 0.0
            self._uses[file] = FileUse(max(0.0, others), most.rss_bytes)

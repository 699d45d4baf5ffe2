"""What the memory of a deployment's processes holds: weights, libraries, working memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kit.mapped_files import File
from kit.memory import ProcessMemory

#: What a process has reported of the model or models that it has loaded.
Report = Mapping[str, Any]


class FileUse(NamedTuple):
    """How many other processes map a file, in the mean of its pages, and bytes of it that are in memory."""

    others: float
    resident_bytes: int


def mapped_files(report: Report) -> dict[File, int]:
    """Bytes of weights in mapped files, by file; of a file that several models map, the most that one has."""
    found: dict[File, int] = {}
    for one in list(report.get("mapped", ())):
        for file, size in one.items():
            found[file] = max(size, found.get(file, 0))
    return found


def weights_of(report: Report) -> tuple[int, int]:
    """Bytes of weights that a process holds alone, on a GPU too, and that it maps from files or segments."""
    mapped = sum(mapped_files(report).values())
    if "private_bytes" in report:
        return int(report["private_bytes"]), mapped
    in_files = sum(sum(one.values()) for one in list(report.get("mapped", ())))
    return max(0, int(report.get("weights_bytes", 0)) - in_files), mapped


def weights_together(reports: Iterable[Report]) -> int:
    """Bytes of the weights that processes have loaded, on GPUs too; what they map from one file counts once."""
    private, files = 0, Counter[File]()
    for report in reports:
        private += weights_of(report)[0]
        files |= Counter(mapped_files(report))  # the most that any has
    return private + files.total()


def written_to(report: Report, written: int) -> Report:
    """The report of a process that has written to `written` bytes of weights that it maps: these are its own now."""
    if not written:
        return report
    left, mapped = written, []
    for one in list(report.get("mapped", ())):
        kept = {}
        for file, size in one.items():
            kept[file] = size - min(left, size)
            left -= size - kept[file]
        mapped.append(kept)
    return {**report, "mapped": mapped, "private_bytes": weights_of(report)[0] + written - left}


def by_role(
    processes: Iterable[tuple[Report, ProcessMemory]],
    forkserver: ProcessMemory | None,
    uses: Mapping[File, FileUse] | None = None,
) -> dict[str, int]:
    """PSS of processes by what it holds; the parts add up to ``pss_bytes``.

    A mapped file counts once, however many map it: what is in memory of it, and where others map it too, the part
    that isn't theirs. Libraries are what processes share but for that (the fork server's pages above all); working
    memory is what remains.

    Args:
        processes: reports and memory of those that serve.
        forkserver: its memory.
        uses: of mapped files; one that isn't there is in memory as a whole, and nobody else's.
    """
    uses = uses or {}
    pss = private = common = 0
    files: dict[File, int] = {}
    mappers: Counter[File] = Counter()
    for report, memory in processes:
        on_host = weights_of(report)[0] - int(report.get("device_bytes", 0))
        private += max(0, min(on_host, memory.anonymous_bytes))
        pss += memory.pss_bytes
        common += memory.pss_bytes - memory.uss_bytes
        for file, size in mapped_files(report).items():
            files[file] = max(size, files.get(file, 0))
            mappers[file] += 1
    if forkserver is not None:
        pss += forkserver.pss_bytes
        common += forkserver.pss_bytes
    for file, size in files.items():
        use = uses.get(file, FileUse(0.0, size))
        files[file] = int(min(size, use.resident_bytes) * mappers[file] / (mappers[file] + use.others))
    private = min(private, pss)
    shared = min(sum(files.values()), pss - private)
    # The pages of a file's only mapper are no common ones.
    alone = FileUse(0.0, 0)
    common -= sum(size for file, size in files.items() if mappers[file] + uses.get(file, alone).others > 1.5)
    libraries = max(0, min(common, pss - private - shared))
    return {
        "pss_bytes": pss,
        "libraries_bytes": libraries,
        "weights_private_bytes": private,
        "weights_shared_bytes": shared,
        "working_bytes": pss - private - shared - libraries,
    }

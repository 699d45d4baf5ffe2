"""Loading a model without holding up the threads that serve meanwhile.

A thread that wakes up on a core where another one computes waits there until the scheduler looks again, up to
4 ms later, although that core could be had at once: for a batch of few ms, that doubles its time. So it does
for the GIL, where the other one computes in Python: up to 5 ms, each time that it comes back from a library's function.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

from kit.engine.parting import leave_core
from kit.engine.system import LINUX

#: Bytes that are copied or mapped at once; then others get the GIL, the core and the lock of the address space.
PIECE_BYTES = 4 << 20
#: A request asks for the GIL several times; with a fifth of a ms and more, the ends of loads showed in its latency.
_SWITCH_S = 0.0001
#: Nobody asks for a slice above it, and the kernel takes none.
_LONG_NS = 100_000_000
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
_RESET_ON_FORK = 1
_MADV_POPULATE_READ = 22


class _SchedAttr(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


class _Switching:
    """How long a thread keeps the GIL that others wait for: shorter while anything is loaded in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads = 0
        self._usual_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._loads += 1
            if self._loads == 1:
                self._usual_s = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual_s, _SWITCH_S))

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._loads -= 1
            if not self._loads:
                sys.setswitchinterval(self._usual_s)


_switching = _Switching()


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """For the length of a ``with``, others that wake up on this thread's core, or want the GIL, get it at once.

    This thread asks for a long slice, and Linux 6.12 and newer let a thread with a shorter one go first; elsewhere
    only the GIL changes hands sooner. Its share of the cores stays the same: with a lower priority a load would
    starve where all cores compute (as idle threads, loads of 12 s took 150).
    """
    changed = give_way()
    # A core that serves at this moment has been used up by who serves: there the load would go first at its start.
    here = threading.get_ident()
    leave_core(thread.native_id or 0 for thread in threading.enumerate() if _serves(thread) and thread.ident != here)
    try:
        with _switching:
            yield
    finally:
        if changed:
            _ask_for_slice(0)  # the usual one


def _serves(thread: threading.Thread) -> bool:
    return thread.name.startswith(("kit-lane", "kit-host"))


def give_way() -> bool:
    """Let others have this thread's core first until its end, see `giving_way`; True where that can be done."""
    return _ask_for_slice(_LONG_NS)


def _ask_for_slice(nanoseconds: int) -> bool:
    number = _SCHED_SETATTR.get(os.uname().machine)
    if not LINUX or number is None or os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
        return False  # a user who chose another way of scheduling knows better
    attributes = _SchedAttr(
        size=ctypes.sizeof(_SchedAttr),
        flags=_RESET_ON_FORK,  # threads that the load starts may serve later
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        runtime=nanoseconds,
    )
    return bool(ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), 0) == 0)


def read_ahead(address: int, size: int) -> None:
    """Have the pages of a mapping at hand before they are used, in pieces; without a copy of any.

    The module mmap would hold the GIL meanwhile, and MAP_POPULATE would make a private copy of every page.
    """
    if not LINUX:
        return
    madvise = ctypes.CDLL(None).madvise
    for start in range(0, size, PIECE_BYTES):
        length = min(PIECE_BYTES, size - start)
        madvise(ctypes.c_void_p(address + start), ctypes.c_size_t(length), _MADV_POPULATE_READ)
        os.sched_yield()

"""Malformed, truncated, oversized and hostile messages close their own connection and touch nobody else's."""

from __future__ import annotations

import array
import fcntl
import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kit
from kit.daemon import hello, protocol, ring, spawn
from kit.daemon.encoder import Encoder
from kit.daemon.frames import HEADER, MAGIC, NO_SLOT, OWN_FD, LinkClosed
from kit.daemon.link import Link
from tests.daemon_kernels import wait_for
from tests.models import Doubling


@pytest.fixture
def served(runtime: Path) -> Iterator[Any]:
    """A named deployment that must still answer after the test."""
    with kit.deploy(Doubling(), name="double", processes=1) as deployment:
        yield deployment
        assert deployment.predict([21])[0].inference == 42
        wait_for(lambda: list(deployment.clients()["connections"]) == [1], "nobody else is connected")
        assert deployment.counters["accepted"] == deployment.counters["answered"] + deployment.counters["cancelled"]


def header(kind: int = protocol.RUN, **fields: int) -> bytes:
    """A frame's header, sane but for what is given."""
    sane = {"magic": MAGIC, "version": protocol.VERSION, "slot": NO_SLOT, "fds": 0, "offset": 0, "freed": 0}
    found = {**sane, "total": 0, "head": 0, **fields}
    names = ("slot", "fds", "number", "offset", "freed", "total", "head")
    return HEADER.pack(found["magic"], found["version"], kind, *({"number": 1, **found}[name] for name in names))


def daemon_socket(folder: Path) -> socket.socket:
    sock = spawn.connect(folder)
    assert sock is not None
    sock.settimeout(20)
    return sock


def attached(name: str = "double") -> Link:
    """A link past its WELCOME, without its ring used."""
    found = spawn.open_link(hello.hello(hello.ATTACH, name))
    assert found is not None
    peer, frame = found
    os.close(frame.fd)
    return peer


def is_closed(sock: socket.socket) -> bool:
    """True when the other side hangs up, whatever it says before."""
    sock.settimeout(20)
    try:
        while sock.recv(65536):
            continue
    except ConnectionError:
        return True
    return True


BAD_FRAMES = {
    "no magic": header(magic=1),
    "another version": header(version=9),
    "unknown kind": header(77),
    "welcome from a client": header(protocol.WELCOME),
    "oversized": header(total=1 << 60, head=1),
    "oversized inline": header(total=1 << 29, head=1),
    "head beyond body": header(total=64, head=65) + bytes(64),
    "slot out of the ring": header(slot=3, offset=1 << 40, total=64, head=8),
    "slot that isn't there": header(slot=60000, offset=0, total=64, head=8),
    "descriptor missing": header(slot=OWN_FD, fds=0, total=64, head=8),
    "announced descriptor missing": header(fds=1, total=64, head=8) + bytes(64),
    "empty run": header(),
    "random": random.Random(5).randbytes(300),
}


@pytest.mark.parametrize("where", ["daemon", "deployment"])
def test_bad_frames_close_their_connection_only(served: Any, runtime: Path, where: str) -> None:
    for name, frame in BAD_FRAMES.items():
        if where == "daemon":
            with daemon_socket(runtime) as sock:
                sock.sendall(frame)
                assert is_closed(sock), name
        else:
            assert_refused(frame)
        assert served.predict([1])[0].inference == 2, name


def assert_refused(frame: bytes, *fds: int) -> None:
    """A kernel that sends this is hung up on."""
    peer = attached()
    peer.sock.setblocking(True)
    peer.sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
    assert is_closed(peer.sock), frame
    peer.close()


def run_frame(*values: Any) -> bytes:
    encoder = Encoder()
    for value in values:
        encoder.add(value)
    body = bytes(encoder.head).ljust(-(-len(encoder.head) // 64) * 64, b"\0")
    return header(total=len(body), head=len(encoder.head)) + body


def test_requests_that_make_no_sense_close_their_connection_only(served: Any) -> None:
    for frame in (
        run_frame("options", [1]),
        run_frame((False, None, None, None, 0, False), "text"),
        run_frame((False, None, None, None, 0, False), []),
        run_frame((False, "soon", None, None, 0, False), [1]),
        run_frame((False, None, None, [1], 0, False), [1]),
        run_frame((False, None, None, None, 0, False)),
    ):
        assert_refused(frame)


def test_fuzzed_messages_never_reach_others(served: Any) -> None:
    draw = random.Random(7)
    good = run_frame((False, None, None, None, 0, False), [1, 2, [3, "x"], {"a": 1.5}])
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        peer = attached()
        peer.sock.setblocking(True)
        peer.sock.sendall(damaged[: draw.randint(1, len(damaged))])
        peer.sock.shutdown(socket.SHUT_WR)
        assert is_closed(peer.sock)
        peer.close()


def test_memory_that_could_be_truncated_or_is_too_small_is_refused(served: Any) -> None:
    for seals, total in ((0, 4096), (0x2, 4096), (ring.SEALS, 1 << 30)):
        fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        assert_refused(header(slot=OWN_FD, total=total, head=64), fd)
        os.close(fd)


def test_many_descriptors_are_closed_again(served: Any) -> None:
    pid = int(kit.deployments()["pid"][0])
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(20):
        peer = attached()
        peer.sock.setblocking(True)
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
        peer.sock.sendmsg([b"junk"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        for fd in fds:
            os.close(fd)
        peer.sock.shutdown(socket.SHUT_WR)
        assert is_closed(peer.sock)
        peer.close()
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before + 2, "descriptors are closed")


def test_descriptors_that_ride_on_sane_frames_close_the_connection(served: Any) -> None:
    pid = int(kit.deployments()["pid"][0])
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for frame in (header(protocol.CANCEL, fds=1), header(slot=OWN_FD, fds=1, total=64, head=8)):
        for _ in range(10):
            fd = os.open("/dev/null", os.O_RDONLY)
            assert_refused(frame, fd)
            os.close(fd)
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before + 2, "descriptors are closed")


def test_pickles_are_never_read_unless_the_owner_allows_them(served: Any, tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "boom"),))

    peer = attached()
    peer.allow_pickle = True
    encoder = peer.encoder().add((False, None, None, None, 0, False)).add([Boom()])
    peer.send(protocol.RUN, encoder, 1)
    assert is_closed(peer.sock)
    peer.close()
    assert not (tmp_path / "boom").exists()


def test_a_handler_is_read_only_when_it_was_asked_for(served: Any) -> None:
    peer = attached()
    peer.send(protocol.HANDLER, peer.encoder().add({"handler": b"cos\nsystem\n"}))
    assert is_closed(peer.sock)
    peer.close()


def test_a_kernel_that_reads_nothing_stalls_nobody_else(served: Any) -> None:
    peer = attached()
    examples = [np.zeros(250_000, np.float32)]  # 1 MB: more than the ring holds, in all
    for number in range(1, 151):
        peer.send(protocol.RUN, peer.encoder().add((False, None, None, None, 0, False)).examples(examples), number)
        if number % 20 == 0:
            assert served.predict([number])[0].inference == 2 * number
    for number in range(20):
        assert served.predict([number])[0].inference == 2 * number
    peer.close()


def test_a_flood_of_requests_closes_the_connection(served: Any) -> None:
    peer = attached()
    peer.sock.setblocking(True)
    frame = run_frame((False, None, None, None, 0, False), [1])  # the same number each time
    with pytest.raises(ConnectionError):
        for _ in range(100_000):
            peer.sock.sendall(frame + frame)
    peer.close()


def test_a_slow_hello_keeps_nobody_waiting(served: Any, runtime: Path) -> None:
    with daemon_socket(runtime) as sock:
        sock.sendall(b"\x44")
        assert kit.connect("double").predict([1])[0].inference == 2


def test_hellos_that_make_no_sense_are_refused(served: Any) -> None:
    for change in (
        {"action": 3},
        {"action": "serve"},
        {"action": "serve", "digest": "x", "start": {}},
        {"name": "../../etc"},
        {"pid": "x"},
        {"action": "serve", "name": "a", "digest": "x", "start": {**hello.surroundings(), "executable": "/bin/\0sh"}},
        {"action": "serve", "name": "a", "digest": "x", "start": {**hello.surroundings(), "executable": "/no/python"}},
    ):
        said = {**hello.hello(hello.ATTACH, "double"), **change}
        with pytest.raises((kit.KitError, LinkClosed)):
            found = spawn.open_link(said)
            if found is not None:
                found[0].close()


def test_another_user_is_turned_away(served: Any, runtime: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    runtime.chmod(0o711)
    runtime.parent.chmod(0o711)
    (runtime / "daemon.sock").chmod(0o777)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setuid(12345)
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(runtime / "daemon.sock"))
            sock.sendall(struct.pack("<B", 0x44))
            code = 0 if is_closed(sock) else 2
        except PermissionError:
            code = 3  # a folder above keeps others out already
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    runtime.chmod(0o700)
    assert status in (0, 3)

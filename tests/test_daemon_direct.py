"""The direct line: a kernel that is alone asks a worker itself, and nothing else is different for it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kit
from kit import errors
from kit.daemon import protocol
from kit.daemon.direct import ROW
from kit.daemon.frames import OWN_FD
from kit.daemon.ledger import RECORDS, Ledger, Record
from tests.daemon_kernels import DOUBLE, SLOW, Kernel, wait_for
from tests.models import Doubling
from tests.test_daemon_hostile import header, is_closed, run_frame


class Moody(kit.ModelHandler):
    """Doubles numbers; dies over 13, raises over 14, returns an object for 15, and waits over 16."""

    def load_model(self) -> None:
        return None

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        if 13 in batch:
            os._exit(3)
        if 14 in batch:
            raise ValueError("fourteen")
        if 16 in batch:
            time.sleep(1.0)
        return [object() if example == 15 else example * 2 for example in batch]


def line_of(deployment: Any) -> Any:
    """The kernel's end of its direct line, None where it has none."""
    return deployment._connection.direct._line


def until_direct(deployment: Any) -> int:
    """Ask until the kernel has the line; how many examples that took."""
    asked = 0
    until = time.monotonic() + 30
    while line_of(deployment) is None:
        assert time.monotonic() < until, "no direct line"
        assert deployment.predict([100 + asked])[0].inference == 200 + 2 * asked
        asked += 1
    return asked


@pytest.fixture
def moody(runtime: Path) -> Iterator[Any]:
    with kit.deploy(Moody(), name="moody", processes=1) as deployment:
        yield deployment


def test_what_is_answered_directly_counts_as_any_other(runtime: Path) -> None:
    with kit.deploy(Doubling(), name="double", processes=1) as deployment:
        asked = until_direct(deployment)
        assert asked >= ROW
        for number in range(50):
            assert [p.inference for p in deployment.predict([number, 3])] == [2 * number, 6]
            asked += 2
            if number % 10 == 0:
                counters = deployment.counters
                assert counters["accepted"] == counters["answered"] == asked
        assert line_of(deployment) is not None
        clients = deployment.clients()
        assert list(clients["examples"]) == [asked]
        assert list(clients["requests"]) == [asked - 50]
        workers = deployment.stats().query("role == 'worker'")
        assert workers["examples"].sum() == asked
        wait_for(lambda: dict(deployment.snapshot().latest).get("example") == 3, "the latest answer is shown")
        latest = deployment.snapshot().latest
        assert latest["result"].inference == 6
        assert latest["pid"] == workers["pid"].iloc[0]


@pytest.mark.parametrize("mode", ["large", "shared"])
def test_every_mode_answers_directly(runtime: Path, mode: str) -> None:
    with kit.deploy(Doubling(), name="double", processes=2, mode=mode) as deployment:
        until_direct(deployment)
        for number in range(20):
            assert deployment.predict([number])[0].inference == 2 * number
        assert line_of(deployment) is not None


def test_arrays_and_text_travel_directly(runtime: Path) -> None:
    with kit.deploy(Doubling(), name="double", processes=1) as deployment:
        until_direct(deployment)
        rows = np.arange(60_000, dtype=np.float32).reshape(4, -1)
        found = [deployment.predict(rows) for _ in range(20)]  # kept: no answer may be overwritten by a later one
        for predictions in found:
            assert np.array_equal(np.stack([p.inference for p in predictions]), rows * 2)
        assert deployment.predict(["a", "b"])[1].inference == "bb"
        assert line_of(deployment) is not None


def test_what_is_too_large_goes_the_ordinary_way(runtime: Path) -> None:
    handler = kit.ModelHandler.from_callable(lambda: None, lambda batch, model: [len(str(each)) for each in batch])
    with kit.deploy(handler, name="long", processes=1) as deployment:
        for _ in range(2 * ROW):
            deployment.predict(["x"])
        line = line_of(deployment)
        assert line is not None
        for example in ("x" * 3_000_000, {"k" * 3_000_000: 1}, np.zeros(3_000_000)):
            asked = line._number
            assert deployment.predict([example])[0].inference == len(str(example))
            assert line._number == asked
        assert not line.closed


def test_another_kernel_ends_the_line_and_both_are_served(runtime: Path) -> None:
    with kit.deploy(Doubling(), name="double", processes=1) as deployment, Kernel() as other:
        until_direct(deployment)
        line = line_of(deployment)
        other.run("import kit; d = kit.connect('double')")
        assert other.run("", "d.predict([4])[0].inference") == 8
        for number in range(2 * ROW):
            assert deployment.predict([number])[0].inference == 2 * number
        assert line.closed
        assert line_of(deployment) is None
        other.kill()
        wait_for(lambda: len(deployment.clients()) == 1, "the other kernel is gone")
        until_direct(deployment)


def test_a_class_of_one_kernel_answers_another_directly(runtime: Path) -> None:
    with Kernel() as first, Kernel() as second:
        first.run(DOUBLE + "d = kit.deploy(Double(), name='double', processes=1)")
        second.run("import kit; d = kit.connect('double')")
        found = second.run("", "[d.predict([x])[0].inference for x in range(40)]")
        assert found == [2 * number for number in range(40)]
        assert second.run("", "d._connection.direct._line is not None")
        first.run("d.stop()")


def test_a_switch_and_an_update_fail_no_direct_request(runtime: Path) -> None:
    wrong: list[Any] = []
    done = threading.Event()
    with kit.deploy(Doubling(), name="double", processes=1) as deployment:
        until_direct(deployment)

        def ask() -> None:
            while not done.is_set():
                found = deployment.predict([5])[0].inference
                if found not in (10, 15):
                    wrong.append(found)

        asking = threading.Thread(target=ask, name="asks")
        asking.start()
        try:
            for mode in ("large", "default", "shared"):
                deployment.switch(mode)
            deployment.update_model(kit.ModelHandler.from_callable(lambda: 3, lambda xs, by: [by * x for x in xs]))
            assert deployment.predict([5])[0].inference == 15
        finally:
            done.set()
            asking.join(30)
        assert not asking.is_alive()
        assert not wrong
        counters = deployment.counters
        assert counters["failed"] == 0
        assert counters["accepted"] == counters["answered"]


def test_a_switch_lets_a_direct_request_finish(runtime: Path, tmp_path: Path) -> None:
    notes = tmp_path / "computed"

    def run(batch: Any, model: Any) -> list[Any]:
        with notes.open("a") as file:
            file.write(f"{batch[0]}\n")
        time.sleep(1.0 if batch[0] == 16 else 0.0)
        return [2 * example for example in batch]

    handler = kit.ModelHandler.from_callable(lambda: None, run)
    with kit.deploy(handler, name="notes", processes=1) as deployment:
        until_direct(deployment)
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.extend(deployment.predict([16])))
        asking.start()
        wait_for(lambda: "16" in notes.read_text(), "it is computed")
        deployment.switch(processes=2)
        asking.join(30)
        assert [prediction.inference for prediction in found] == [32]
        assert notes.read_text().split().count("16") == 1
        counters = deployment.counters
        assert counters["retried"] == counters["deaths"] == 0


def test_a_killed_worker_fails_no_direct_request(moody: Any) -> None:
    for _ in range(2):
        until_direct(moody)
        pid = moody.kill()
        assert moody.predict([4])[0].inference == 8
        assert pid not in set(moody.stats()["pid"])
    assert moody.counters["failed"] == 0


def test_an_example_that_kills_has_two_tries_in_all_before_quarantine(moody: Any) -> None:
    until_direct(moody)
    with pytest.raises(errors.KitError, match=r"kills the process"):
        moody.predict([13])
    assert moody.counters["deaths"] == 2
    assert moody.predict([4])[0].inference == 8


def test_errors_are_those_of_the_ordinary_way(moody: Any) -> None:
    told = []
    for _ in range(2):  # the second time directly
        with pytest.raises(errors.InferenceFailed, match="fourteen") as failed:
            moody.predict([14])
        with pytest.raises(errors.UnsupportedType, match="object can't travel"):
            moody.predict([15])
        with pytest.raises(errors.UnsupportedType, match="complex"):
            moody.predict([1j])
        told.append(failed.value.args[0])
        until_direct(moody)
    assert told[0] == told[1]
    assert line_of(moody) is not None  # none of these ends it


def test_interrupts_leave_the_kernel_whole(moody: Any) -> None:
    for after_s in (0.0, 0.01, 0.3):
        until_direct(moody)
        timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                moody.predict([16])
        timer.join()
        assert moody.predict([4])[0].inference == 8


def test_threads_of_a_kernel_ask_side_by_side(moody: Any) -> None:
    until_direct(moody)
    wrong: list[Any] = []

    def ask(draw: random.Random) -> None:
        for _ in range(100):
            numbers = [draw.randrange(20, 1000) for _ in range(draw.randint(1, 4))]
            if [p.inference for p in moody.predict(numbers)] != [2 * number for number in numbers]:
                wrong.append(numbers)

    threads = [threading.Thread(target=ask, args=(random.Random(seed),)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert moody.counters["accepted"] == moody.counters["answered"]


def test_the_ledger_loses_nothing_and_says_when_it_is_full() -> None:
    fd = Ledger.make()
    worker, owner = Ledger(fd), Ledger(fd)
    os.close(fd)
    written = read = 0
    for count in (1, RECORDS - 1, RECORDS, 7, RECORDS):
        for _ in range(count):
            assert not worker.full
            written += 1
            worker.add(Record(written, 2.0, 3.0, 0.5, 1, 1, 100, False))
        assert worker.full == (count == RECORDS)
        for record in owner.take():
            read += 1
            assert record == Record(read, 2.0, 3.0, 0.5, 1, 1, 100, 0.0)
        assert read == written
        assert owner.take() == []


def test_a_killed_kernels_line_is_freed(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as first, Kernel() as other:
        first.run(DOUBLE + "d = kit.deploy(Double(), name='double', processes=1)")
        first.run("[d.predict([x]) for x in range(40)]")
        assert first.run("", "d._connection.direct._line is not None")
        other.run("import kit; d = kit.connect('double')")
        worker = other.run("", "int(d.stats().query(\"role == 'worker'\")['pid'].iloc[0])")
        before = len(os.listdir(f"/proc/{worker}/fd"))
        first.kill()
        wait_for(lambda: len(os.listdir(f"/proc/{worker}/fd")) < before, "the worker lets go")
        assert other.run("", "[d.predict([x])[0].inference for x in range(40)]") == [2 * x for x in range(40)]
        other.run("d.stop()")


def test_a_long_direct_request_keeps_the_deployment(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        kernel.run(SLOW + f"d = kit.deploy(Slow({str(tmp_path)!r}, 0.0), name='slow', processes=1, keep_alive=1.0)")
        kernel.run("[d.predict([x]) for x in range(40)]")
        assert kernel.run("", "d._connection.direct._line is not None")
        kernel.run(f"d.update_model(Slow({str(tmp_path)!r}, 0.01))")
        kernel.run("[d.predict([x]) for x in range(400)]")  # 4 s and more, all of it direct but the first few
        assert kernel.run("", "d._connection.direct._line is not None")
        kernel.run("d.stop()")


def test_hostile_messages_over_the_line_end_it_only(runtime: Path) -> None:
    draw = random.Random(11)
    with kit.deploy(Doubling(), name="double", processes=1) as deployment:
        workers = deployment.stats().query("role == 'worker'")["pid"]
        good = run_frame(1.0, [1, 2, [3, "x"], {"a": 1.5}])
        for frame in (
            header(magic=1),
            header(protocol.HELLO),
            header(protocol.CALL),
            header(slot=3, offset=1 << 40, total=64, head=8),
            header(slot=OWN_FD, total=1 << 30, head=1 << 29),
            run_frame("when", [1]),
            run_frame(1.0, "text"),
            run_frame(1.0, []),
            run_frame(1.0, [1] * 100_000),
            run_frame(float("nan"), 7),
            *(_damaged(good, draw) for _ in range(40)),
        ):
            deployment._connection.direct._asked_at = 0.0
            until_direct(deployment)
            sock = line_of(deployment)._link.sock
            sock.setblocking(True)
            sock.sendall(frame)
            sock.shutdown(1)
            assert is_closed(sock), frame
            deployment._connection.direct.close()
        assert deployment.predict([21])[0].inference == 42
        assert list(deployment.stats().query("role == 'worker'")["pid"]) == list(workers)


def _damaged(frame: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(frame)
    for _ in range(draw.randint(1, 4)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    return bytes(damaged[: draw.randint(1, len(damaged))])


def test_prints_of_direct_requests_reach_the_kernel(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(batch: Any, model: Any) -> list[Any]:
        print("computing", batch[0])
        return [2 * example for example in batch]

    with kit.deploy(kit.ModelHandler.from_callable(lambda: None, run), name="loud", processes=1) as deployment:
        until_direct(deployment)
        deployment.predict([4711])
        seen = ""

        def said() -> bool:
            nonlocal seen
            seen += capfd.readouterr().out
            return "computing 4711" in seen

        wait_for(said, "the print is shown")

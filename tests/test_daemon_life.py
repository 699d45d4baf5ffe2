"""What ends what: kernels, deployments and the daemon, by interrupt, shutdown and kill -9; starts that race."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import kit
from kit import errors
from kit.daemon import client, hello, paths, spawn
from tests.conftest import daemon_processes
from tests.daemon_kernels import DOUBLE, LOADS, SLOW, Kernel, wait_for, wait_for_file
from tests.models import Doubling


def daemon_pid(folder: Path) -> int:
    """The process that holds the lock."""
    own = [p for p in daemon_processes(folder) if "kit.daemon.daemon" in " ".join(p.cmdline())]
    assert len(own) == 1, own
    return own[0].pid


def test_interrupting_a_kernel_ends_its_request_only(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        kernel.run(SLOW + f"d = kit.deploy(Slow({str(tmp_path)!r}, 0.05), name='slow', processes=1)")
        kernel.send("d.predict(list(range(100000)))")
        wait_for_file(tmp_path / "0")
        kernel.interrupt()
        with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
            kernel.receive()
        deployment = kit.connect("slow")
        counters = wait_for(
            lambda: (found := deployment.counters)["cancelled"] > 1000 and found, "what was sent is cancelled"
        )
        assert counters["accepted"] < 50_000, "the rest was never sent"
        assert kernel.run("", "d.predict(['x'])[0].inference") == "x"
        assert deployment.predict(["y"])[0].inference == "y"


def test_an_interrupt_while_a_job_is_sent_cancels_all_of_it(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        kernel.run(SLOW + f"d = kit.deploy(Slow({str(tmp_path)!r}, 0.05), name='slow', processes=1)")
        deployment = kit.connect("slow")
        rows = "[[number] * 20 for number in range(100000)]"  # some milliseconds to send
        kernel.run(f"rows = {rows}")
        for number in range(12):
            begun = tmp_path / f"begun {number}"
            kernel.send(f"pathlib.Path({str(begun)!r}).touch(); d.predict(rows)")
            wait_for_file(begun)
            time.sleep(0.003 * number)  # where exactly it hits is the point
            kernel.interrupt()
            with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
                kernel.receive()
        done = ("answered", "cancelled", "failed")
        wait_for(lambda: (found := deployment.counters)["accepted"] == sum(map(found.get, done)), "nothing waits")


def test_interrupts_at_any_moment_leave_the_connection_whole(runtime: Path) -> None:
    with Kernel() as kernel:
        kernel.run(DOUBLE + "d = kit.deploy(Double(), name='double', processes=1)")
        for pause_s in [0.001 * n for n in range(20)]:
            kernel.send("while True:\n    assert d.predict([1, 2])[1].inference == 4")
            time.sleep(0.02 + pause_s)  # long enough to be under way; where exactly it hits is the point
            kernel.interrupt()
            with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
                kernel.receive()
        assert kernel.run("", "d.predict([3])[0].inference") == 6


def test_an_interrupted_serve_loads_nothing_that_nobody_waits_for(runtime: Path, tmp_path: Path) -> None:
    serve = f"d = kit.deploy(Loads({str(tmp_path)!r}, 2), name='x', processes=1)"
    with Kernel() as kernel:
        kernel.send(LOADS + serve)
        wait_for_file(tmp_path / "loads 2")
        kernel.interrupt()
        with pytest.raises(RuntimeError, match="KeyboardInterrupt: the load of 'x' was cancelled, and nothing is"):
            kernel.receive()
        (tmp_path / "loads 2").unlink()
        kernel.send(serve, "d.attached")  # the one that is just ending isn't in its way
        wait_for_file(tmp_path / "loads 2")
        (tmp_path / "go").touch()
        assert kernel.receive() is False
        assert kernel.run("", "d.predict([3])[0].inference") == 6
        assert daemon_processes(runtime)
        kernel.run("d.stop()")
    wait_for(lambda: not daemon_processes(runtime), "the daemon has ended")


@pytest.mark.parametrize("other", ["serve", "connect"])
def test_a_load_that_another_kernel_waits_for_goes_on(runtime: Path, tmp_path: Path, other: str) -> None:
    serve = f"d = kit.deploy(Loads({str(tmp_path)!r}, 2), name='x', processes=1)"
    with Kernel() as first, Kernel() as second, Kernel() as third:
        first.send(LOADS + serve)
        wait_for_file(tmp_path / "loads 2")
        third.run(LOADS)
        second.run(LOADS)
        for kernel, code in ((second, serve if other == "serve" else "d = kit.connect('x')"), (third, serve)):
            kernel.send(code)
            process = psutil.Process(kernel.process.pid)
            wait_for(lambda process=process: process.net_connections("unix"), "it has connected")
        time.sleep(0.5)  # until they wait
        for kernel in (third, first):
            kernel.interrupt()
            with pytest.raises(RuntimeError, match="another kernel waits for 'x', too, so its load goes on"):
                kernel.receive()
        (tmp_path / "go").touch()
        second.receive()
        assert second.run("", "d.predict([3])[0].inference") == 6


def test_what_a_killed_kernel_loads_is_served(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        kernel.send(LOADS + f"d = kit.deploy(Loads({str(tmp_path)!r}, 2), name='x', processes=1)")
        wait_for_file(tmp_path / "loads 2")
        kernel.kill()
    (tmp_path / "go").touch()
    assert kit.connect("x").predict([3])[0].inference == 6


def test_an_interrupted_replacement_leaves_what_is_served(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with Kernel() as kernel:
        kernel.run(LOADS + f"d = kit.deploy(Loads({str(tmp_path)!r}, 2), name='x', processes=1)")
        (tmp_path / "go").unlink()
        kernel.send(f"kit.deploy(Loads({str(tmp_path)!r}, 3), name='x', replace=True)")
        wait_for_file(tmp_path / "loads 3")
        kernel.interrupt()
        with pytest.raises(RuntimeError, match="KeyboardInterrupt: 'x' wasn't replaced, and serves on as before"):
            kernel.receive()
        assert kernel.run("", "d.predict([3])[0].inference") == 6
        assert kernel.run(f"e = kit.deploy(Loads({str(tmp_path)!r}, 2), name='x')", "e.attached") is True


@pytest.mark.parametrize("way", ["kill", "interrupt first"])
def test_a_killed_kernels_requests_are_cancelled_and_the_deployment_goes_on(
    runtime: Path, tmp_path: Path, way: str
) -> None:
    with Kernel() as kernel:
        kernel.run(SLOW + f"d = kit.deploy(Slow({str(tmp_path)!r}, 0.05), name='slow', processes=1)")
        deployment = kit.connect("slow")
        assert len(deployment.clients()) == 2
        kernel.send("d.predict(list(range(100000)))")
        wait_for_file(tmp_path / "0")
        if way != "kill":
            kernel.interrupt()
        kernel.kill()
        wait_for(lambda: len(deployment.clients()) == 1, "the kernel is forgotten")
        counters = wait_for(
            lambda: (found := deployment.counters)["cancelled"] > 1000 and found, "its requests are cancelled"
        )
        assert counters["accepted"] - counters["answered"] - counters["cancelled"] - counters["failed"] < 10
        assert deployment.predict(["x"])[0].inference == "x"


def test_a_kernel_is_gone_even_when_a_fork_of_it_holds_the_socket(runtime: Path) -> None:
    with Kernel() as kernel:
        kernel.run(DOUBLE + "d = kit.deploy(Double(), name='double', processes=1)")
        deployment = kit.connect("double")
        child = kernel.run("import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(600)", "pid")
        try:
            kernel.kill()
            wait_for(lambda: len(deployment.clients()) == 1, "the kernel is forgotten")
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_fork_of_a_kernel_is_told_to_connect_itself(runtime: Path) -> None:
    deployment = kit.deploy(Doubling(), name="double", processes=1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            deployment.predict([1])
        except errors.DeploymentLost as error:
            os.write(write, str(error).encode())
        deployment.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert b"kit.connect('double')" in os.read(read, 1000)
    os.close(read)
    os.close(write)
    assert deployment.predict([1])[0].inference == 2


def test_the_daemon_killed_takes_all_along_and_the_next_serve_starts_afresh(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        kernel.run(SLOW + f"d = kit.deploy(Slow({str(tmp_path)!r}, 600), name='slow', processes=2)")
        idle = kit.connect("slow")
        kernel.send("d.predict(['x'])")
        wait_for_file(tmp_path / "x")
        processes = daemon_processes(runtime)
        assert len(processes) >= 4
        os.kill(daemon_pid(runtime), signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"DeploymentLost: the daemon of .* was killed.*%serve"):
            kernel.receive()
        wait_for(lambda: idle.closed, "an idle kernel notices too")
        with pytest.raises(errors.DeploymentLost):
            idle.predict([1])
        assert psutil.wait_procs(processes, timeout=10)[1] == []
        assert (runtime / paths.SOCKET).exists(), "a stale socket is what this is about"
        assert client.names() == []
        assert (
            kernel.run(DOUBLE + "d = kit.deploy(Double(), name='slow', processes=1)", "d.predict([1])[0].inference")
            == 2
        )


def test_a_deployments_process_killed_is_an_error_at_once_and_its_name_is_free(runtime: Path) -> None:
    deployment = kit.deploy(Doubling(), name="double", processes=1)
    other = kit.deploy(Doubling(), name="other", processes=1)
    pid = int(kit.deployments().set_index("name").loc["double", "pid"])
    below = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(errors.DeploymentLost, match=str(pid)):
        while True:
            deployment.predict([1])
    assert psutil.wait_procs(below, timeout=10)[1] == []
    wait_for(lambda: client.names() == ["other"], "the name is free")
    assert other.predict([1])[0].inference == 2
    assert not kit.deploy(Doubling(), name="double", processes=1).attached


def test_workers_that_die_are_replaced_without_a_failed_request(runtime: Path) -> None:
    deployment = kit.deploy(Doubling(), name="double", processes=2)
    future = deployment.submit(list(range(50_000)))
    for pid in deployment.stats().query("role == 'worker'")["pid"]:
        os.kill(int(pid), signal.SIGKILL)
    assert [p.inference for p in future.result(60)] == list(range(0, 100_000, 2))
    wait_for(lambda: deployment.counters["deaths"] >= 1, "a death is counted")


def test_the_daemon_ends_with_the_last_deployment(runtime: Path) -> None:
    first, second = (kit.deploy(Doubling(), name=name, processes=1) for name in ("first", "second"))
    pid = daemon_pid(runtime)
    first.stop()
    assert client.names() == ["second"]
    second.close()
    assert client.names() == ["second"]
    client.stop("second")
    wait_for(lambda: not psutil.pid_exists(pid), "the daemon ends")
    assert not (runtime / paths.SOCKET).exists()
    second.stop()  # idempotent


def test_stopping_tells_all_kernels(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        kernel.run(SLOW + f"d = kit.deploy(Slow({str(tmp_path)!r}, 600), name='slow', processes=1)")
        kernel.send("d.predict(['x'])")
        wait_for_file(tmp_path / "x")
        client.stop("slow")
        with pytest.raises(RuntimeError, match=r"DeploymentLost: the named deployment 'slow' was stopped"):
            kernel.receive()


def test_an_idle_deployment_ends_after_keep_alive_but_not_while_it_is_used(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        kernel.run(SLOW + f"d = kit.deploy(Slow({str(tmp_path)!r}, 3), name='slow', processes=1, keep_alive=0.5)")
        assert kernel.run("", "d.predict(['x'])[0].inference") == "x"
        deployment = kit.connect("slow")
        wait_for(lambda: deployment.closed, "it ends")
        with pytest.raises(errors.DeploymentLost, match=r"keep_alive=0\.5"):
            deployment.predict([1])
    wait_for(lambda: daemon_processes(runtime) == [], "the daemon ends too")


def test_kernels_that_start_the_daemon_at_once_share_one(runtime: Path) -> None:
    kernels = [Kernel() for _ in range(4)]
    try:
        for kernel in kernels:
            kernel.send(DOUBLE + "d = kit.deploy(Double(), name='double', processes=1)", "[d.attached, d.name]")
        found = [kernel.receive() for kernel in kernels]
        assert sorted(attached for attached, _ in found) == [False, True, True, True]
        daemon_pid(runtime)
        assert [kernel.run("", "d.predict([4])[0].inference") for kernel in kernels] == [8] * 4
    finally:
        for kernel in kernels:
            kernel.__exit__()


def test_serving_while_the_last_deployment_ends_never_fails(runtime: Path) -> None:
    for _ in range(4):
        deployment = kit.deploy(Doubling(), name="double", processes=1)
        ending = threading.Thread(target=client.stop, args=("double",))
        ending.start()
        again = kit.deploy(Doubling(), name="another", processes=1)
        ending.join(30)
        assert again.predict([1])[0].inference == 2
        again.stop()
        deployment.close()


def test_shutting_a_kernels_process_group_down_spares_the_daemon(runtime: Path) -> None:
    with Kernel() as kernel:
        kernel.run(DOUBLE + "d = kit.deploy(Double(), name='double', processes=1)")
        os.killpg(kernel.process.pid, signal.SIGTERM)
        kernel.process.wait(10)
        assert psutil.Process(daemon_pid(runtime)).ppid() != kernel.process.pid
        assert kit.connect("double").predict([2])[0].inference == 4


def test_a_long_job_of_one_kernel_lets_others_in(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        kernel.run(SLOW + f"d = kit.deploy(Slow({str(tmp_path)!r}, 0.02), name='slow', processes=1)")
        deployment = kit.connect("slow")
        kernel.send("d.predict(list(range(1_000_000)))")
        wait_for_file(tmp_path / "20")
        for number in range(10):
            before = deployment.counters["answered"]
            assert deployment.predict([f"other {number}"])[0].inference == f"other {number}"
            # The chunks under way, and one of each window that waits: counted, since time is another matter here.
            assert deployment.counters["answered"] - before < 40
        assert deployment.counters["accepted"] < 50_000, "the job waits in its own kernel, not in the daemon"


def test_termination_of_the_daemon_ends_deployments_in_order(runtime: Path) -> None:
    kit.deploy(Doubling(), name="double", processes=1).close()
    os.kill(daemon_pid(runtime), signal.SIGTERM)
    wait_for(lambda: daemon_processes(runtime) == [], "all end")
    assert not (runtime / paths.SOCKET).exists()


# ---- the runtime folder ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_reach_is_refused(runtime: Path, mode: int) -> None:
    runtime.chmod(mode)
    with pytest.raises(errors.DaemonUnavailable, match="chmod 700"):
        kit.deploy(Doubling(), name="double")


def test_a_link_in_place_of_the_folder_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = runtime.parent / "link"
    link.symlink_to(runtime)
    monkeypatch.setenv("KIT_RUNTIME_DIR", str(link))
    with pytest.raises(errors.DaemonUnavailable, match="is a link"):
        kit.connect("double")


def test_a_missing_folder_is_made_for_us_alone(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runtime / "deeper" / "still"
    monkeypatch.setenv("KIT_RUNTIME_DIR", str(folder))
    with kit.deploy(Doubling(), name="double", processes=1) as deployment:
        assert deployment.predict([1])[0].inference == 2
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / paths.SOCKET).stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
        deployment.stop()
    wait_for(lambda: daemon_processes(folder) == [], "all end")


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KIT_RUNTIME_DIR", str(tmp_path / "file" / "folder"))
    with pytest.raises(errors.DaemonUnavailable, match="KIT_RUNTIME_DIR"):
        kit.deploy(Doubling(), name="double")


def test_another_users_folder_is_refused(runtime: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(runtime, 12345, -1)
    try:
        with pytest.raises(errors.DaemonUnavailable, match="belongs to user 12345"):
            kit.connect("double")
    finally:
        os.chown(runtime, 0, -1)


def test_a_long_path_works_all_the_same(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runtime / ("long" * 40)
    monkeypatch.setenv("KIT_RUNTIME_DIR", str(folder))
    with kit.deploy(Doubling(), name="double", processes=1) as deployment:
        assert kit.connect("double").predict([1])[0].inference == 2
        deployment.stop()
    wait_for(lambda: daemon_processes(folder) == [], "all end")


def test_a_full_disk_is_an_error_at_start_and_no_end_later(runtime: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    # What the processes write goes to a device that is always full.
    for name in (paths.LOG, paths.log_of(runtime, "double").name):
        (runtime / name).symlink_to("/dev/full")
    noisy = kit.ModelHandler.from_callable(lambda: None, lambda batch, model: [print("x" * 9999) for _ in batch])
    deployment = kit.deploy(noisy, name="double", processes=1)
    assert len(deployment.predict(list(range(100)))) == 100


def test_the_lock_of_a_daemon_that_hangs_is_an_error_in_time(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "START_S", 0.5)
    lock = os.open(runtime / paths.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(errors.DaemonUnavailable, match="didn't start within"):
            kit.deploy(Doubling(), name="double")
    finally:
        os.close(lock)
    wait_for(lambda: not daemon_processes(runtime), "the late one ends: nobody waits for it any more")


# ---- versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "value"), [("kit", "0.0.9"), ("python", "3.99")])
def test_another_version_is_an_error_that_says_what_to_do(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: str
) -> None:
    kit.deploy(Doubling(), name="double", processes=1)
    real = hello.hello

    def lie(*args: Any, **more: Any) -> dict[str, Any]:
        return {**real(*args, **more), what: value}

    monkeypatch.setattr(hello, "hello", lie)
    with pytest.raises(errors.DaemonMismatch, match=rf"{value}(.|\n)*python -m kit stop --all"):
        kit.connect("double")
    with pytest.raises(errors.DaemonMismatch):
        kit.deploy(Doubling(), name="double")
    assert client.names() == ["double"], "it can still be seen and stopped"
    client.stop("double")


@pytest.mark.parametrize("lost", ["socket", "folder"])
def test_a_daemon_whose_socket_or_folder_was_removed_is_found_again(runtime: Path, lost: str) -> None:
    """As cleaners of /tmp do it, or a logout; else its processes would go on unseen, beside a second copy."""
    deployment = kit.deploy(Doubling(), name="double", processes=1)
    pid = int(kit.deployments().pid[0])
    if lost == "socket":
        (runtime / paths.SOCKET).unlink()
    else:
        shutil.rmtree(runtime)
        wait_for((runtime / paths.SOCKET).exists, "the daemon has made its folder again")
    again: Any = kit.deploy(Doubling(), name="double", processes=1)
    assert again.attached
    assert list(kit.deployments().pid) == [pid]
    assert [one.inference for one in (*deployment.predict([1]), *again.predict([2]))] == [2, 4]
    client.stop("double")
    wait_for(lambda: not psutil.pid_exists(pid), "its process ends")


def test_of_two_daemons_the_one_whose_folder_was_removed_ends(runtime: Path) -> None:
    deployment = kit.deploy(Doubling(), name="double", processes=1)
    pid = int(kit.deployments().pid[0])
    shutil.rmtree(runtime)
    again: Any = kit.deploy(Doubling(), name="double", processes=1)  # before the first has looked
    if not again.attached:
        wait_for(lambda: not psutil.pid_exists(pid), "what the first daemon served ends")
        with pytest.raises(errors.DeploymentLost, match="was removed, and another daemon has taken its place"):
            deployment.predict([1])
    assert [one.inference for one in again.predict([2])] == [4]
    assert len(kit.deployments()) == 1
    client.stop("double")


def test_a_runtime_folder_that_each_notebook_finds_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "run/kit")
    with pytest.raises(errors.DaemonUnavailable, match=r"KIT_RUNTIME_DIR='run/kit' .*: give a full path"):
        kit.deploy(Doubling(), name="double", processes=1)


@pytest.mark.parametrize("name", [paths.SOCKET, paths.LOCK, paths.LOG])
def test_a_folder_in_the_place_of_a_file_is_told(runtime: Path, name: str) -> None:
    (runtime / name).mkdir()
    with pytest.raises(errors.DaemonUnavailable, match=rf"{name} is a folder, .*: remove it, or name another"):
        kit.deploy(Doubling(), name="double", processes=1)
    (runtime / name).rmdir()
    assert kit.deploy(Doubling(), name="double", processes=1).predict([1])[0].inference == 2


def test_entries_of_the_search_path_that_python_ignores_keep_nobody_from_serving(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [runtime, b"/tmp", 3, *sys.path, "nowhere\0"])
    with kit.deploy(Doubling(), processes=1) as own:
        assert own.predict([1])[0].inference == 2
    for name in ("first", "second"):  # which starts the daemon, or finds it
        assert kit.deploy(Doubling(), name=name, processes=1).predict([1])[0].inference == 2

"""Named deployments that break, hang or end while others ask for them: what kernels are told, and what comes next."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import kit
from kit import errors
from kit.daemon import cli, client
from tests.daemon_kernels import DOUBLE, LOADS, Kernel, wait_for, wait_for_file
from tests.models import Doubling


class Deadly(kit.ModelHandler):
    """Ends its process over "die"."""

    def load_model(self) -> None:
        print("loaded so far")

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        if "die" in batch:
            os._exit(3)
        return list(batch)


def crash(deployment: Any) -> errors.CrashLoop:
    """Have it break; the error."""
    for _ in range(4):
        try:
            deployment.predict(["die"])
        except errors.WorkerDied:
            continue
        except errors.CrashLoop as error:
            return error
    with pytest.raises(errors.CrashLoop) as caught:
        wait_for(lambda: deployment.predict(["good"]) is None, "the crash loop is noticed")
    return caught.value


@pytest.mark.parametrize("replace", [False, True])
def test_a_crash_loop_ends_the_deployment_and_the_next_serves_afresh(runtime: Path, replace: bool, capfd: Any) -> None:
    kit.deploy(Doubling(), name="other", processes=1)
    broken, watching = kit.deploy(Deadly(), name="deadly", processes=1), kit.connect("deadly")
    assert "python -m kit logs deadly" in str(crash(broken))
    again = kit.deploy(Deadly(), name="deadly", processes=1, replace=replace)
    assert not again.attached
    assert again.predict(["good"])[0].inference == "good"
    assert again._connection.pid != broken._connection.pid
    for deployment in (broken, watching):
        wait_for(lambda it=deployment: it.closed, "every kernel is told")
        with pytest.raises(errors.CrashLoop, match="5 serving processes died"):
            deployment.predict(["good"])
    with pytest.raises(errors.CrashLoop):
        crash(again)
        again.switch("large")
    wait_for(lambda: client.names() == ["other"], "it is no deployment any more")
    with pytest.raises(errors.UnknownDeployment):
        kit.connect("deadly")
    assert cli.main(["logs", "deadly"]) == 0
    out, err = capfd.readouterr()
    assert "has ended" in err
    assert "loaded so far" in out
    assert "5 serving processes died" in out


def outcome(kernel: Kernel) -> str:
    """What comes of what it is doing."""
    try:
        kernel.receive()
    except RuntimeError as error:
        return str(error)
    return "served"


def test_a_replacement_beside_an_end_is_served_or_lost(runtime: Path) -> None:
    """Its kernel was welcomed to a deployment that had ended, and stumbled over what that didn't say."""
    with Kernel() as kernel:
        kernel.run(DOUBLE)
        for number in range(12):
            deployment = kit.deploy(Doubling(), name="brief", processes=1)
            mode = ["default", "large"][number % 2]
            kernel.send(f"d = kit.deploy(Double(), name='brief', processes=1, replace=True, mode={mode!r})")
            time.sleep(0.04 * number)  # where exactly it hits is the point
            deployment.stop()
            said = outcome(kernel)
            assert said == "served" or said.startswith("DeploymentLost: the named deployment 'brief' was stopped"), said
            client.stop("brief", missing_ok=True)


def test_an_end_while_a_replacement_loads_is_told_as_such(runtime: Path, tmp_path: Path) -> None:
    with Kernel() as kernel:
        deployment = kit.deploy(Doubling(), name="brief", processes=1)
        kernel.run(LOADS)
        kernel.send(f"kit.deploy(Loads({str(tmp_path)!r}, 3), name='brief', processes=1, replace=True)")
        wait_for_file(tmp_path / "loads 3")
        deployment.stop()
        with pytest.raises(RuntimeError, match="DeploymentLost: the named deployment 'brief' was stopped"):
            kernel.receive()


def test_one_that_hangs_is_listed_as_such_beside_the_others(runtime: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(client, "LOOK_S", 1.0)
    hung = kit.deploy(Doubling(), name="hung", processes=1)
    kit.deploy(Doubling(), name="sound", processes=1)
    pid = hung._connection.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        frame = kit.deployments().set_index("name")
        assert dict(frame["state"]) == {"hung": "not answering", "sound": "serving"}
        assert frame["pid"]["hung"] == pid
        for command in ("ps", "top -n 1"):
            assert cli.main(command.split()) == 0
            lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
            assert "not answering" in lines["hung"]
            assert "default" in lines["sound"]
        with (
            pytest.raises(errors.DaemonUnavailable, match=r"no answer from 'hung'.*python -m kit stop hung"),
            client.look("hung", 0.5),
        ):
            pass
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: set(kit.deployments()["state"]) == {"serving"}, "it answers again")


def test_the_logs_of_one_that_loads_are_told_from_those_of_one_that_has_ended(
    runtime: Path, tmp_path: Path, capsys: Any
) -> None:
    kit.deploy(Doubling(), name="loads", processes=1).stop()
    with Kernel() as kernel:
        kernel.run(LOADS)
        kernel.send(f"d = kit.deploy(Loads({str(tmp_path)!r}, 3), name='loads', processes=1)")
        wait_for_file(tmp_path / "loads 3")
        assert cli.main(["logs", "loads"]) == 0
        assert "loads is still loading" in capsys.readouterr().err
        (tmp_path / "go").touch()
        kernel.receive()
        assert cli.main(["logs", "loads"]) == 0
        assert capsys.readouterr().err == ""

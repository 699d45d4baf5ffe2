"""An interrupted cell takes back what it asked a named deployment for, and nothing of anybody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

import kit
from tests.daemon_kernels import LOADS, Kernel, wait_for, wait_for_file

#: As LOADS, of a model that weighs something, with one file a load.
HEAVY = """
import kit, os, pathlib, time
class Heavy(kit.ModelHandler):
    def __init__(self, folder):
        super().__init__()
        self.folder = pathlib.Path(folder)
    def load_model(self):
        (self.folder / f"loads {os.getpid()}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)
        return bytearray(3 << 20)
    def run_inference(self, batch, model, inference_args=None): return [len(model) for _ in batch]
"""


@pytest.mark.parametrize(
    ("change", "loads", "words"),
    [
        ("d.switch('large')", "loads 2", "'x' wasn't switched, and serves on as before"),
        ("d.update_model(Loads(folder, 3))", "loads 3", "'x' wasn't updated, and serves on as before"),
    ],
)
def test_an_interrupted_switch_or_update_is_taken_back(
    runtime: Path, tmp_path: Path, change: str, loads: str, words: str
) -> None:
    (tmp_path / "go").touch()
    with Kernel() as kernel:
        kernel.run(f"{LOADS}folder = {str(tmp_path)!r}\nd = kit.deploy(Loads(folder, 2), name='x', processes=1)")
        (tmp_path / "go").unlink()
        (tmp_path / "loads 2").unlink()
        kernel.send(change)
        wait_for_file(tmp_path / loads)
        kernel.interrupt()
        with pytest.raises(RuntimeError, match=f"KeyboardInterrupt: {words}"):
            kernel.receive()
        assert kernel.run("", "d.cancel_switch()") is False
        assert kernel.run("", "[d.mode, d.predict([3])[0].inference]") == ["default", 6]
        assert kernel.run("", "[e.kind for e in d.snapshot().events if e.kind == 'cancelled']") == ["cancelled"]
        (tmp_path / "go").touch()
        kernel.run("d.switch('large')")
        kernel.run("d.update_model(Loads(folder, 5))")
        assert kernel.run("", "[d.mode, d.predict([3])[0].inference]") == ["large", 15]


@pytest.mark.parametrize("change", ["d.switch('large')", "kit.deploy(Loads(folder, 3), name='x', replace=True)"])
def test_who_cancelled_a_switch_is_said(runtime: Path, tmp_path: Path, change: str) -> None:
    (tmp_path / "go").touch()
    with Kernel() as first, Kernel(JPY_SESSION_NAME="/home/ada/other.ipynb") as second:
        first.run(f"{LOADS}folder = {str(tmp_path)!r}\nd = kit.deploy(Loads(folder, 2), name='x', processes=1)")
        (tmp_path / "go").unlink()
        first.send(change)
        second.run("import kit, time\nd = kit.connect('x')\nwhile not d.cancel_switch(): time.sleep(0.01)")
        with pytest.raises(RuntimeError, match=r"SwitchCancelled: .* by other\.ipynb; .* serves on"):
            first.receive()
        assert second.run("", "d.predict([3])[0].inference") == 6


def test_an_interrupt_leaves_another_kernels_switch_alone(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with Kernel() as first, Kernel() as second:
        first.run(f"{LOADS}d = kit.deploy(Loads({str(tmp_path)!r}, 2), name='x', processes=1)")
        second.run("import kit; d = kit.connect('x')")
        (tmp_path / "go").unlink()
        (tmp_path / "loads 2").unlink()
        first.send("d.switch('large')")
        wait_for_file(tmp_path / "loads 2")
        second.send("d.switch('medium')")
        deployment = kit.connect("x")
        assert deployment.mode == "default"  # answered, so the second one's is there, or comes just now
        second.interrupt()
        with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
            second.receive()
        (tmp_path / "go").touch()
        first.receive()
        assert first.run("", "[d.mode, d.predict([3])[0].inference]") == ["large", 6]
        assert [e.kind for e in deployment.snapshot().events if e.kind in ("switch", "cancelled")] == ["switch"]


def test_what_a_switch_had_ended_for_room_comes_back_after_an_interrupt(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "go").touch()

    def loads() -> int:
        return len(list(tmp_path.glob("loads *")))

    with Kernel() as kernel:
        options = "name='x', processes=1, memory_budget='5MB'"
        kernel.run(f"{HEAVY}d = kit.deploy(Heavy({str(tmp_path)!r}), {options})")
        (tmp_path / "go").unlink()
        kernel.send("d.switch('large')")
        wait_for(lambda: loads() == 2, "the new one loads, in the place of the former")
        kernel.interrupt()
        wait_for(lambda: loads() == 3, "the former one loads again")
        (tmp_path / "go").touch()
        with pytest.raises(RuntimeError, match="KeyboardInterrupt: 'x' wasn't switched"):
            kernel.receive()
        assert kernel.run("", "[d.mode, d.predict([1])[0].inference]") == ["default", 3 << 20]

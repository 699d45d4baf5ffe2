"""A pipeline whose model is killed once: ours ends with all elements, what Beam's own does.

``python -m tests.benchmarks.beam_killed ours|beam FOLDER`` is one such pipeline.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kit
from tests.benchmarks.harness import Figure

COUNT = 643
#: Beam's pipeline may wait for ever.
PATIENCE_S = 60.0


class DiesOnce(kit.ModelHandler):
    """Doubles numbers; kills its own process at the first sight of the number 13."""

    def __init__(self, folder: str) -> None:
        super().__init__(min_batch_size=8, max_batch_size=8, large_model=True)
        self.mark = Path(folder) / "died"

    def load_model(self) -> Any:
        from tests.benchmarks.models import Nothing

        return _Doubles(str(self.mark)) if self.share_model_across_processes() else Nothing()

    def run_inference(
        self, batch: Sequence[int], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> list[int]:
        found: list[int] = model.double(list(batch))
        return found


class _Doubles:
    """The model, so that it is the process with the model that dies, not the one that asks it."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def double(self, batch: list[int]) -> list[int]:
        if 13 in batch and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [number * 2 for number in batch]


def figures() -> list[Figure]:
    """Elements that came back."""
    from tests.benchmarks.beam_mlp import runtime_folder

    with runtime_folder():
        ours, peer = _run("ours"), _run("beam")
    met = ours == f"{COUNT} of {COUNT}"
    return [Figure("the model's process killed in a Beam pipeline", ours, peer, "", "all elements", met)]


def _run(whose: str) -> str:
    with tempfile.TemporaryDirectory(prefix="kit-bench-") as folder:
        command = [sys.executable, "-m", "tests.benchmarks.beam_killed", whose, folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            out, _ = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            return f"hangs (over {PATIENCE_S:g} s)"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        if not (Path(folder) / "died").exists():
            raise RuntimeError("nothing was killed")
        return out.decode().splitlines()[-1] if process.returncode == 0 else "fails"


def main(whose: str, folder: str) -> None:
    """One pipeline."""
    from kit.beam import RunInference
    from tests.benchmarks import beam_peer, beam_steps

    handler = DiesOnce(folder)
    step = RunInference(handler, processes=1) if whose == "ours" else beam_peer.RunInference(handler)
    beam_peer.run_numbers(COUNT, step, beam_steps.same)
    print(f"{COUNT} of {COUNT}", flush=True)


if __name__ == "__main__":
    # Under its own name, so that Beam's workers find the classes.
    from tests.benchmarks import beam_killed

    beam_killed.main(sys.argv[1], sys.argv[2])

"""``python -m tests.benchmarks [NAME ...] [--quick]``: print the figures, of all benchmarks or of some."""

from __future__ import annotations

import argparse
import compileall
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

# One thread everywhere, said before any library starts a pool of its own.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"

from tests.benchmarks import harness  # noqa: E402

#: Module and function of each benchmark, in the order of the table.
BENCHMARKS = {
    "import": "import_time",
    "identity": "identity_in_process",
    "identity-workers": "identity_workers",
    "mlp": "mlp_in_process",
    "mlp-large": "mlp_large",
    "mlp-shared": "mlp_shared",
    "beam-mlp": "beam_mlp",
    "beam-memory": "beam_memory",
    "beam-killed": "beam_killed",
    "beam-keyed": "beam_keyed",
    "minilm": "minilm",
    "round-trip": "round_trip",
    "transport": "transport",
    "shared-memory": "shared_memory",
    "switch": "switch_gap",
    "new-worker": "new_worker",
    "keyed": "keyed_in_process",
    "keyed-beam": "keyed_beam",
    "keyed-deployments": "keyed_deployments",
    "keyed-mixed": "keyed_mixed",
    "model-policies": "model_policies",
    "stream": "stream_memory",
    "watch": "watch_cost",
    "panel": "panel",
    "daemon": "daemon",
    "panel-soak": "panel_soak",
}


def main() -> int:
    """Run the benchmarks named on the command line and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller inputs")
    parser.add_argument(
        "--minutes", type=float, default=harness.minutes, help="how long panel-soak and keyed-mixed run"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    harness.quick, harness.minutes = arguments.quick, arguments.minutes
    _compile()
    figures: list[harness.Figure] = []
    broken = False
    for name in arguments.names or BENCHMARKS:
        began = time.monotonic()
        print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
        try:
            figures += importlib.import_module(f"tests.benchmarks.{BENCHMARKS[name]}").figures()
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(str(error).split())[:200]
            figures.append(harness.Figure(name, "-", "-", "not measured", note=f"{type(error).__name__}: {reason}"))
            broken = True
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(harness.table(figures))
    short = sum(figure.met is False for figure in figures)
    print(f"\n{sum(figure.met is True for figure in figures)} figures met, {short} short.")
    return int(broken)


def _compile() -> None:
    """Give the kit the bytecode that an installed package has, as the peers' have; here it may be a checkout's."""
    compileall.compile_dir(Path(__file__).parents[2] / "kit", quiet=1)


if __name__ == "__main__":
    # Spawned and pickled things refer to modules, never to __main__.
    sys.exit(main())

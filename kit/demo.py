"""The main job in one command: real sentences through MiniLM in every serving mode, a table and a picture.

python -m kit.demo [folder for the picture]
"""

from __future__ import annotations

import sys
from pathlib import Path

import kit
from kit.compare_run import BARE_LOOP
from kit.comparison import Comparison
from kit.sizes import format_bytes

SHARED_PAGES = (
    "MiniLM's weights are read from a file that every process maps, and the kernel keeps its pages once however many\n"
    "workers read them: so `default` takes less than a whole copy a worker here. A model that is converted, quantised\n"
    "or unpickled while it loads takes all of them; lesson 2 serves one."
)


def main(folder: str = "out") -> None:
    """Compare the modes on the demo tickets; prints the table, the best mode and the picture's path."""
    texts = kit.assets.texts("tickets")
    handler = kit.assets.handler("minilm")
    print(f"Embedding {len(texts)} sentences with MiniLM in every serving mode (about a minute) ...", flush=True)
    comparison = kit.compare(handler, texts, seconds=1.0, repeats=3, memory_budget=None)
    table = comparison.table.copy()
    for name in ("peak_pss_bytes", "weights_bytes"):
        table[name.removesuffix("_bytes")] = [format_bytes(value) if value == value else "" for value in table[name]]
        table = table.drop(columns=name)
    if not table["note"].any():
        table = table.drop(columns="note")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"\n{SHARED_PAGES}\n")
    budget = tight_budget(comparison)
    print(f"With {format_bytes(budget)}, a little less than the fastest mode takes:")
    print(comparison.best(memory_budget=budget))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    picture = (target / "comparison.png").resolve()
    comparison.plot(memory_budget=budget, path=picture)
    print(f"\nPicture: {picture}")
    kit.close_all()


def tight_budget(comparison: Comparison) -> int:
    """Bytes just under the peak PSS of the fastest mode, so that there is something to weigh."""
    fastest = max((one for one in comparison.results if one.mode != BARE_LOOP), key=lambda one: one.throughput)
    return int(0.99 * fastest.peak_pss_bytes)


if __name__ == "__main__":
    main(*sys.argv[1:2])

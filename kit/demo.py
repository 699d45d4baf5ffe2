"""The main job in one command: real sentences through MiniLM in every serving mode, a table and a picture.

python -m kit.demo [folder for the picture]
"""

from __future__ import annotations

import sys
from pathlib import Path

import kit
from kit.sizes import format_bytes

BUDGET = "720MB"


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
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print()
    print(comparison.best(memory_budget=BUDGET))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    picture = (target / "comparison.png").resolve()
    comparison.plot(memory_budget=BUDGET, path=picture)
    print(f"\nPicture: {picture}")
    kit.close_all()


if __name__ == "__main__":
    main(*sys.argv[1:2])

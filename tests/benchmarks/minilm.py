"""MiniLM on real text of mixed lengths, against ``SentenceTransformer.encode`` in one thread."""

from __future__ import annotations

import random

import kit
from tests.benchmarks import harness
from tests.benchmarks.harness import Figure

AT_LEAST = 1.0


def figures() -> list[Figure]:
    """Tickets of 5-120 words and articles of 150-400, shuffled."""
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    texts = kit.assets.texts("tickets") + kit.assets.texts("articles")
    random.Random(0).shuffle(texts)
    if harness.quick:
        texts = texts[:100]
    handler = kit.assets.handler("minilm", device="cpu")
    peer = SentenceTransformer(str(kit.assets.path("minilm")), device="cpu")
    ours = np.stack([p.inference for p in texts | kit.RunInference(handler)])
    theirs = peer.encode(texts, show_progress_bar=False)
    pairs = harness.interleave(
        lambda: texts | kit.RunInference(handler),
        lambda: peer.encode(texts, show_progress_bar=False),
        3 if harness.quick else 5,
        warm=0,
    )
    note = f"largest difference of any number: {float(np.abs(ours - theirs).max()):.1e}"
    return [pairs.figure(f"MiniLM, {len(texts)} mixed texts, vs encode()", len(texts), AT_LEAST, note=note)]

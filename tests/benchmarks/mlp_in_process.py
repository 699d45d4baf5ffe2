"""An MLP in batches of 64 through RunInference in one process, against a bare torch loop; and Beam against it."""

from __future__ import annotations

import kit
from tests.benchmarks import beam_peer, harness, models
from tests.benchmarks.harness import Figure

AT_LEAST = 0.97


def figures() -> list[Figure]:
    """Ours against the loop, then Beam's stock and mended handlers against ours."""
    import torch

    torch.set_num_threads(1)
    batches = 30 if harness.quick else 100
    rows, loop, handler = models.mlp_rows(batches), models.mlp_loop(models.mlp_path()), models.mlp_handler()
    pairs = harness.interleave(
        lambda: rows | kit.RunInference(handler), lambda: loop(rows), 4 if harness.quick else 10, warm=2
    )
    found = [pairs.figure("MLP, batches of 64, one process, vs a bare loop", len(rows), AT_LEAST, digits=3)]
    few = rows[: 10 * models.MLP_BATCH]
    for name, mended in (("mended get_num_bytes", True), ("as it is", False)):
        # A short pipeline's own start would count against Beam, so it is left out.
        part = rows if mended else few
        theirs = beam_peer.mlp_handler(models.mlp_path(), models.MLP_BATCH, mended=mended)
        empty = harness.timed(lambda theirs=theirs: _beam(few[:1], theirs))  # type: ignore[misc]
        beam = harness.interleave(
            lambda part=part: part | kit.RunInference(handler),  # type: ignore[misc]
            lambda part=part, theirs=theirs: _beam(part, theirs),  # type: ignore[misc]
            2 if harness.quick else 3,
        )
        beam = harness.Pairs(beam.ours, [max(seconds - empty, 1e-3) for seconds in beam.peer])
        found.append(beam.figure(f"  vs Beam in memory, {name}", len(part), None))
    return found


def _beam(rows: list[object], handler: object) -> None:
    beam_peer.run(rows, handler, beam_peer.IN_MEMORY)

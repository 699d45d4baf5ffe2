"""The batching options of a handler: their names, and whether they can work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from kit.checks import check_function, check_positive, check_whole
from kit.errors import InvalidSetting

BATCHING_OPTIONS = (
    *("min_batch_size", "max_batch_size", "max_batch_duration_secs", "max_batch_weight", "max_batch_tokens"),
    *("element_size_fn", "batch_length_fn", "batch_bucket_boundaries"),
)

#: Those that Beam's ``BatchElements`` has, with its names for them; and back.
BEAMS_NAMES = {name: name for name in BATCHING_OPTIONS if name != "max_batch_tokens"} | {
    "batch_length_fn": "length_fn",
    "batch_bucket_boundaries": "bucket_boundaries",
}
OUR_NAMES = {theirs: ours for ours, theirs in BEAMS_NAMES.items()}


def check_batch_options(options: Mapping[str, Any]) -> None:
    """Raise InvalidSetting for batching options that can't work, naming the value."""
    for name in ("min_batch_size", "max_batch_size", "max_batch_tokens"):
        check_whole(name, options.get(name))
    low, high = options.get("min_batch_size"), options.get("max_batch_size")
    if low is not None and high is not None and low > high:
        raise InvalidSetting(f"min_batch_size={low} is above max_batch_size={high}.")
    for name in ("max_batch_duration_secs", "max_batch_weight"):
        check_positive(name, options.get(name), "a number")
    for name in ("element_size_fn", "batch_length_fn"):
        check_function(name, options.get(name))
    if "max_batch_tokens" in options and "batch_length_fn" not in options:
        raise InvalidSetting(
            f"max_batch_tokens={options['max_batch_tokens']} needs batch_length_fn, an example's length in tokens."
        )
    boundaries = options.get("batch_bucket_boundaries")
    if boundaries is not None:
        if not _ascending(boundaries):
            raise InvalidSetting(f"batch_bucket_boundaries={boundaries!r}: give ascending lengths, such as [16, 64].")
        if "batch_length_fn" not in options:
            raise InvalidSetting("batch_bucket_boundaries needs batch_length_fn, the length of an example.")


def _ascending(boundaries: Any) -> bool:
    if not isinstance(boundaries, Sequence) or not boundaries or not all(isinstance(b, Real) for b in boundaries):
        return False
    return list(boundaries) == sorted(set(boundaries))

"""The encoding of what travels between kernels and named deployments: fixed, checked, not executable.

    body = head | buffers, each at a multiple of 64 bytes

The head is a tagged tree of None, bool, int, float, str, bytes, tuple, list, dict, datetimes, Decimal, numpy and
torch arrays, DataFrames (see `tables`), PredictionResult and Failure. Elements of arrays and large bytes are buffers.
A decoder checks each count and size against the bytes that are there before it makes anything. Nothing is unpickled
unless the owner of the deployment said `allow_pickle=True`.
"""

from __future__ import annotations

import struct

#: How deep values may be nested.
DEPTH = 64
U32, I64, F64 = struct.Struct("<I"), struct.Struct("<q"), struct.Struct("<d")


class Malformed(Exception):
    """Bytes that aren't an encoded value; the connection that they came over is closed."""

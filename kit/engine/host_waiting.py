"""Requests that wait in a model host, and which of them share a batch."""

from __future__ import annotations

from collections import deque
from typing import Any

from kit import batching
from kit.engine.codec import Rows
from kit.engine.host_requests import HostLane, HostRequest


class Waiting:
    """Requests, oldest first; whoever uses it from several threads locks it."""

    def __init__(self) -> None:
        self._requests: deque[HostRequest] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: HostRequest) -> None:
        self._requests.append(request)

    def drop(self, lane: HostLane) -> None:
        """Forget a lane's."""
        self._requests = deque(request for request in self._requests if request.lane is not lane)

    def take(self) -> list[HostRequest]:
        """Take the oldest request and those that may share its batch."""
        first = self._requests.popleft()
        group = [first]
        kind = first.kind
        if kind.never_coalesce or first.alone or not self._requests:
            return group
        total = first.count
        left: deque[HostRequest] = deque()
        for request in self._requests:
            joins = (
                request.kind is kind
                and not request.alone
                and total + request.count <= kind.most
                and request.lane.args == first.lane.args
                and _alike(first.batch, request.batch)
                and kind.curve.pays(total, request.count)
                and _within_limits([*group, request])
            )
            if joins:
                group.append(request)
                total += request.count
            else:
                left.append(request)
        self._requests = left
        return group


def _within_limits(group: list[HostRequest]) -> bool:
    options = group[0].kind.options
    tokens, weight = options.get("max_batch_tokens"), options.get("max_batch_weight")
    if not tokens and not weight and not options.get("batch_bucket_boundaries"):
        return True
    examples = [example for request in group for example in request.batch]
    return len(batching.plan(examples, options)) == 1


def _alike(one: Any, other: Any) -> bool:
    if type(one) is Rows and type(other) is Rows:
        first, second = one.stacked, other.stacked
        return bool(first.shape[1:] == second.shape[1:] and first.dtype == second.dtype)
    return type(one) is list and type(other) is list

"""Channels between two processes of a deployment: what is sent arrives, whatever it is, and slots come back."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from kit.engine.arena import SLOTS
from kit.engine.codec import Rows
from kit.engine.ends import channel_pair
from kit.engine.transport import ChannelClosed


@pytest.fixture
def pair():
    ours, theirs = channel_pair()
    ends = [ours.open(first=True), theirs.open(first=False)]
    yield ends
    for end in ends:
        end.close()
    ends.clear()  # pytest keeps the list a while, and its shared memory with it


def echo(pair, value):
    pair[0].send(1, value)
    return pair[1].recv().value


BIG = 9000  # float32 values: more than fits inline


@pytest.mark.parametrize(
    "rows",
    [
        [np.zeros(BIG, np.float32), np.ones(BIG + 1, np.float32)],
        [np.zeros(BIG, np.float32), np.ones(BIG, np.float64)],
        [np.zeros((2, BIG), np.float32), np.ones((BIG, 2), np.float32)],
        [torch.zeros(BIG), torch.ones(BIG - 1)],
        [torch.zeros(BIG), torch.ones(BIG).to_sparse()],
        [torch.zeros(BIG), torch.ones(BIG, dtype=torch.float64)],
        [torch.zeros(BIG), torch.ones(BIG, requires_grad=True)],
        [torch.zeros(BIG), np.ones(BIG, np.float32)],
    ],
    ids=["lengths", "dtypes", "shapes", "tensor-lengths", "sparse", "tensor-dtypes", "grad", "kinds"],
)
def test_rows_that_do_not_stack_arrive_one_by_one(pair, rows):
    received = echo(pair, rows)
    assert type(received) is list
    for sent, got in zip(rows, received, strict=True):
        assert (type(got), got.dtype, got.shape) == (type(sent), sent.dtype, sent.shape)
        dense = (sent.detach().to_dense(), got.detach().to_dense()) if isinstance(sent, torch.Tensor) else (sent, got)
        assert np.array_equal(*map(np.asarray, dense))


def test_equal_rows_arrive_as_one_block(pair):
    received = echo(pair, [torch.full((BIG,), float(i)) for i in range(3)])
    assert type(received) is Rows
    assert received.stacked[:, 0].tolist() == [0, 1, 2]


def test_a_send_that_fails_leaves_no_slot_taken(pair):
    """More failed sends than there are slots, and the arena still has room."""
    uneven = [np.zeros(BIG, np.float32), np.zeros(BIG + 1, np.float32)]
    gc.freeze()  # or each collection would look through all that other tests have imported
    try:
        for _ in range(2 * SLOTS):
            echo(pair, uneven)
            gc.collect()
            pair[1].send(1, None)  # carries the freed slots back
            pair[0].recv()
    finally:
        gc.unfreeze()
    assert len(pair[0]._out._live) <= 2


def test_a_view_keeps_its_slot_until_it_is_let_go(pair):
    kept = echo(pair, np.arange(BIG))
    for number in range(3 * SLOTS):
        assert echo(pair, np.full(BIG, number))[0] == number
        pair[1].send(1, None)  # carries the freed slots back
        pair[0].recv()
    assert np.array_equal(kept, np.arange(BIG))


def test_an_end_that_is_gone_is_told_apart_from_silence(pair):
    assert pair[1].recv(block=False) is None
    pair[0].close()
    with pytest.raises(ChannelClosed):
        pair[1].recv(spin_s=0.001)

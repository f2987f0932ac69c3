"""The order of samples is a permutation, and a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from outlast.training.data.permutation import epoch_order

samples = st.integers(0, 300)
batch_sizes = st.integers(1, 40)
seeds = st.integers(-(2**65), 2**65)
epochs = st.integers(0, 10**6)
shuffles = st.sampled_from([True, False, "batch"])


@settings(deadline=None)
@given(samples, batch_sizes, shuffles, seeds, epochs)
def test_every_sample_comes_exactly_once(
    samples: int, batch_size: int, shuffle: bool, seed: int, epoch: int
) -> None:
    order = epoch_order(samples, batch_size, shuffle, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(samples))


@settings(deadline=None)
@given(samples, batch_sizes, shuffles, seeds, epochs)
def test_the_order_depends_on_nothing_else(
    samples: int, batch_size: int, shuffle: bool, seed: int, epoch: int
) -> None:
    one = epoch_order(samples, batch_size, shuffle, seed, epoch)
    np.random.random(3)  # the global generator takes no part
    epoch_order(samples, batch_size, shuffle, seed + 1, epoch + 1)
    assert np.array_equal(one, epoch_order(samples, batch_size, shuffle, seed, epoch))


@settings(deadline=None)
@given(samples, batch_sizes, seeds, epochs)
def test_without_shuffling_the_order_is_kept(
    samples: int, batch_size: int, seed: int, epoch: int
) -> None:
    assert np.array_equal(epoch_order(samples, batch_size, False, seed, epoch), np.arange(samples))


@settings(deadline=None)
@given(samples, batch_sizes, seeds, epochs)
def test_shuffling_inside_batches_keeps_the_batches(
    samples: int, batch_size: int, seed: int, epoch: int
) -> None:
    order = epoch_order(samples, batch_size, "batch", seed, epoch)
    assert np.array_equal(order // batch_size, np.arange(samples) // batch_size)


@settings(deadline=None)
@given(st.integers(60, 300), seeds, epochs)
def test_another_epoch_or_seed_gives_another_order(samples: int, seed: int, epoch: int) -> None:
    order = epoch_order(samples, 8, True, seed, epoch)
    assert not np.array_equal(order, epoch_order(samples, 8, True, seed, epoch + 1))
    assert not np.array_equal(order, epoch_order(samples, 8, True, seed + 1, epoch))


def test_the_order_of_a_seed_is_the_same_for_good() -> None:
    """A job created by an older version continues in its original order."""
    assert epoch_order(10, 4, True, 7, 0).tolist() == [6, 3, 9, 1, 2, 0, 5, 7, 8, 4]
    assert epoch_order(10, 4, "batch", 7, 3).tolist() == [0, 3, 1, 2, 5, 4, 7, 6, 8, 9]

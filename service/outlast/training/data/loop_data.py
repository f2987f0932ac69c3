"""The data of a hand-written loop: any kind that `fit` accepts, or none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from keras import tree

from outlast.training.data import make_feed
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import Feed
from outlast.training.data.source import Source
from outlast.training.keras_internals import data_adapters


def make_loop_feed(
    data: Any, *, seed: int, steps_per_epoch: int | None, **options: Any
) -> ArrayFeed | Feed:
    """Return the feed for x, (x,), (x, y), (x, y, sample_weight), or None (no data)."""
    if data is None:
        return Feed(StepNumbers(), steps_per_epoch)
    x, y, weight = (
        data_adapters.unpack(data) if isinstance(data, tuple | list) else (data, None, None)
    )
    options = {**options, "seed": seed, "steps_per_epoch": steps_per_epoch}
    return make_feed(x, y, weight, class_weight=None, **options)


def knows_its_end(feed: ArrayFeed | Feed, steps_per_epoch: int | None) -> bool:
    """Return whether the feed knows, at a batch, whether it is the last one of the epoch."""
    if steps_per_epoch is not None:
        return steps_per_epoch > 0
    return isinstance(feed, ArrayFeed) or feed.source.num_batches is not None


def samples_of(batch: Any) -> float:
    """Return the number of samples in a batch, which is its weight in an epoch's means."""
    for leaf in tree.flatten(batch):
        shape = getattr(leaf, "shape", None)
        if shape is not None and len(shape) > 0 and shape[0] is not None:
            return float(shape[0])
    return 1.0


class StepNumbers(Source):
    """The source of a loop without data, which yields the number of each step."""

    kind = "none"
    num_batches = None
    spec = None

    def open(self, index: int) -> Iterator[Any]:
        return itertools.count()

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        return itertools.count(taken[-1])

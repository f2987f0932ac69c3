"""`Passes`: the passes over one tf.data.Dataset, each opened, ended and passed over like the last.

Training and validation both open their data through it, because what one opens may change what the
other reads: several datasets can share a shuffle or a cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from outlast.training.data.tfdata_graph import Pipeline

Reached = Callable[[int], None]


class Passes:
    """Opens a dataset as often as a training needs, one pass after the other.

    Iterating it opens the next pass.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self.dataset = dataset
        self.pipeline = Pipeline(dataset)
        self._open: Any = None
        self._is_read = self._next_is_read = False

    def __iter__(self) -> Iterator[Any]:
        if self._is_read:
            self.end()
        self._open = iter(self.dataset)
        self._is_read, self._next_is_read = self._next_is_read, False
        return self._open  # type: ignore[no-any-return]

    def expect_reading(self) -> None:
        """Note that the next pass will be read; before another one is opened, it has ended."""
        self._next_is_read = True

    def end(self) -> None:
        """End the open pass, if it was read."""
        if self._open is not None:
            self.pipeline.parts.end(self._open)
        self._open, self._is_read = None, False

    @property
    def must_be_read(self) -> bool:
        """Whether passing over a pass takes reading its batches."""
        return self.pipeline.stateful is not None or self.pipeline.parts.must_be_read

    def begin_unread(self) -> None:
        """Leave the state behind that a pass leaves which is read, but need not be."""
        self.pipeline.parts.begin()

    def pass_over(self, count: int, reached: Reached) -> None:
        """Open a pass of which `count` batches were taken, and leave the same state behind.

        `reached` is called with each number of batches before which others may have read.
        """
        iterator = iter(self)
        if count and self.must_be_read:
            for batch in range(count):
                reached(batch)
                with contextlib.suppress(StopIteration):
                    next(iterator)
            self.end()
        elif count:
            self.begin_unread()
        reached(count)

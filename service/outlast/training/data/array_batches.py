"""Batches of arrays by Keras' rules of epochs: the cursor is a number, however far in."""

from __future__ import annotations

import warnings
from typing import Any

from outlast.training.data.arrays import ArraySource
from outlast.training.data.epoch_batches import RAN_OUT, executed
from outlast.training.data.source import Plain


class ArrayFeed:
    """Hands out indices into the arrays, several batches at a time.

    steps_per_epoch: as in fit. With None or -1 an epoch is one pass, ordered by seed and epoch;
    else a pass goes on over the epochs, ordered by seed and the pass' number. With -1 Keras takes
    every epoch's end for data that ran out. group: Keras' steps_per_execution.
    """

    def __init__(self, data: ArraySource, steps_per_epoch: int | None, group: int = 1) -> None:
        self.data = data
        self.to_the_end = steps_per_epoch == -1
        self.steps_per_epoch = None if self.to_the_end else steps_per_epoch
        self.steps: int = self.steps_per_epoch or data.batches
        self.group = group
        self._limit = executed(self.steps, group)
        self._key = -1  # the epoch, or the number of the pass
        self._seen = 0
        self._short = False  # the data ended within an execution, which Keras does not notice
        self._ran_out = False

    @property
    def spec(self) -> Any:
        """The tf.TypeSpec structure of a batch of any size."""
        return self.data.spec()

    def batch_of(self, lot: Any) -> Any:
        """Return the first batch of the lot that `take` handed out."""
        return self.data.batch(lot[0]) if self.data.outsized is None else lot[0]

    def start(self) -> None:
        """Nothing to do."""

    def begin_epoch(self, epoch: int) -> None:
        self._short = self._ran_out = False
        if self.steps_per_epoch is None:
            self._key, self._seen = epoch, 0
        elif self._key < 0 or self._seen >= self.data.batches:
            self._key, self._seen = self._key + 1, 0

    def within(self, batch: int) -> bool:
        """Whether the epoch has a batch number `batch`."""
        if self.to_the_end:
            return not self._ran_out
        return batch < self._limit and self._seen < self.data.batches

    def more(self, batch: int) -> bool:
        """The same, with Keras' warning when the data ran out before the epoch's end."""
        if self.within(batch):
            return True
        if executed(batch, self.group) < self.steps and not self.to_the_end:
            warnings.warn(RAN_OUT, stacklevel=2)
        return False

    def take(self, batch: int, limit: int) -> Any:
        """Return the indices of up to `limit` batches from `batch` on, shape (k, size).

        Of arrays that are not resident, a list of the batches themselves. None when there are
        none: ask `more` whether to go on.
        """
        if self._seen >= self.data.batches:
            if self._seen % self.group and not self._short:
                self._short = True
            else:
                self._ran_out = True
                warnings.warn(RAN_OUT, stacklevel=2)
            return None
        indices = self.data.indices(self._key, self._seen, min(limit, self._limit - batch))
        self._seen += len(indices)
        if self.data.outsized is None:
            return indices
        batches = []
        for at, rows_of_one in enumerate(indices):
            batches.append(self.data.batch(rows_of_one))
            following = self._following(at, indices)
            if following is not None:
                self.data.outsized.prepare(following)
        return batches

    def _following(self, at: int, indices: Any) -> Any:
        """Return the indices of the batch after number `at` of these; None at the pass' end."""
        if at + 1 < len(indices):
            return indices[at + 1]
        if self._seen >= self.data.batches:
            return None
        return self.data.indices(self._key, self._seen, 1)[0]

    def state(self) -> Plain:
        ends = {"short": self._short, "ran_out": self._ran_out}
        return {"key": self._key, "seen": self._seen, **ends}

    def restore(self, state: Plain) -> None:
        self._key, self._seen = state["key"], state["seen"]
        self._short, self._ran_out = state["short"], state["ran_out"]

    def skip(self, state: Plain) -> None:
        """Nothing is taken from arrays."""

    def describe(self) -> Plain:
        return {
            "kind": "arrays",
            "samples": self.data.samples,
            "batch_size": self.data.batch_size,
            "shuffle": self.data.shuffle,
        }

    def how_resumed(self) -> str:
        return "by cursor"

    def doubts(self) -> list[str]:
        return []

    def close(self) -> None:
        if self.data.outsized is not None:
            self.data.outsized.close()

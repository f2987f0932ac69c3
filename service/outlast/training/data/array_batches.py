"""`ArrayFeed`: batches of arrays by Keras' rules for epochs. A resume costs no replay."""

from __future__ import annotations

import warnings
from typing import Any

from outlast.training.data.arrays import ArraySource
from outlast.training.data.epoch_batches import RAN_OUT, executed
from outlast.training.data.source import Plain


class ArrayFeed:
    """Returns indices into the arrays, several batches at a time.

    With `steps_per_epoch` None or -1, an epoch is one pass, and seed and epoch decide its order.
    Otherwise a pass continues over several epochs, and seed and pass number decide its order. With
    -1, Keras warns at each epoch's end that the data ran out. `group` is Keras'
    steps_per_execution.
    """

    def __init__(self, data: ArraySource, steps_per_epoch: int | None, group: int = 1) -> None:
        self.data = data
        self.to_the_end = steps_per_epoch == -1
        self.steps_per_epoch = None if self.to_the_end else steps_per_epoch
        self.steps: int = self.steps_per_epoch or data.batches
        self.group = group
        self._limit = executed(self.steps, group)
        self._key = -1  # number of the epoch or of the pass
        self._seen = 0
        self._short = False  # the data ended within an execution; Keras does not notice that
        self._ran_out = False

    @property
    def spec(self) -> Any:
        """The `tf.TypeSpec` structure of a batch with any number of samples."""
        return self.data.spec()

    def batch_of(self, taken: Any) -> Any:
        """Return the first batch of what `take` returned."""
        return self.data.batch(taken[0]) if self.data.outsized is None else taken[0]

    def start(self) -> None:
        """Do nothing: arrays have no iterator to reset."""

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch, with a new pass unless `steps_per_epoch` continues the last one."""
        self._short = self._ran_out = False
        if self.steps_per_epoch is None:
            self._key, self._seen = epoch, 0
        elif self._key < 0 or self._seen >= self.data.batches:
            self._key, self._seen = self._key + 1, 0

    def within(self, batch: int) -> bool:
        """Return whether the epoch has a batch with this index."""
        if self.to_the_end:
            return not self._ran_out
        return batch < self._limit and self._seen < self.data.batches

    def more(self, batch: int) -> bool:
        """Return the same as `within`; warn as Keras does if the data ran out early."""
        if self.within(batch):
            return True
        if executed(batch, self.group) < self.steps and not self.to_the_end:
            warnings.warn(RAN_OUT, stacklevel=2)
        return False

    def take(self, batch: int, limit: int) -> Any:
        """Return the indices of up to `limit` batches, starting at `batch`, of shape (k, size).

        For arrays that are not resident, return a list of batches instead. Return None if no batch
        is left in the pass; then `more` says whether the epoch continues.
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
        """Return the indices of the batch after `indices[at]`, or None at the end of the pass."""
        if at + 1 < len(indices):
            return indices[at + 1]
        if self._seen >= self.data.batches:
            return None
        return self.data.indices(self._key, self._seen, 1)[0]

    def state(self) -> Plain:
        """Return the cursor as plain data."""
        ends = {"short": self._short, "ran_out": self._ran_out}
        return {"key": self._key, "seen": self._seen, **ends}

    def place(self) -> tuple[int, int]:
        """Return the same place always: nobody else changes what is read from arrays."""
        return 0, 0

    def restore(self, state: Plain, reached: Any = None) -> None:
        """Restore a cursor that `state` returned."""
        self._key, self._seen = state["key"], state["seen"]
        self._short, self._ran_out = state["short"], state["ran_out"]

    def skip(self, state: Plain, reached: Any = None) -> None:
        """Do nothing: reading arrays does not change them."""

    def describe(self) -> Plain:
        """Return the facts that must be equal for a resume within an epoch."""
        return {
            "kind": "arrays",
            "samples": self.data.samples,
            "batch_size": self.data.batch_size,
            "shuffle": self.data.shuffle,
        }

    def unread(self) -> Plain:
        """Return nothing: arrays draw no random numbers."""
        return {}

    def drawn(self) -> str | None:
        """Return None: the order of arrays depends on the stored seed only."""
        return None

    def content(self) -> str | None:
        """Return None: arrays have a fingerprint among the arguments."""
        return None

    def stale_locks(self, before: float) -> list[str]:
        """Return nothing: arrays have no locks."""
        return []

    def how_resumed(self) -> str:
        """Return how a resume finds its batch, as a text for the log."""
        return "by cursor"

    def inexact_reasons(self) -> list[str]:
        """Return no reasons: a resume on arrays is exact."""
        return []

    def close(self) -> None:
        """Stop the thread that gathers batches ahead."""
        if self.data.outsized is not None:
            self.data.outsized.close()

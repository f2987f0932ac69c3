"""`Feed`: the batches of each epoch by Keras' rules, with a cursor that can be stored.

The rules are those of Keras' `EpochIterator`. Without `steps_per_epoch`, each epoch is a new pass.
With it, one pass continues over several epochs, and if the data runs out, the epoch ends with
Keras' warning. Keras counts in executions of `steps_per_execution` batches. Only the last
execution before the data ends may be smaller, so an epoch of 5 steps with 2 per execution has
6 batches.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

from outlast.training.data.source import Plain, Source

RAN_OUT = (
    "Your input ran out of data; interrupting training. Make sure that your dataset or generator "
    "can generate at least `steps_per_epoch * epochs` batches. You may need to use the "
    "`.repeat()` function when building your dataset."
)

PATIENCE_S = 0.1  # longest wait of a stop request for slow batches
_NOTHING = object()


class Feed:
    """Returns the batches of each epoch in order, several at a time.

    With `steps_per_epoch` None, a pass is an epoch; with -1, an epoch lasts until the data ends.
    `group` is Keras' steps_per_execution.
    """

    def __init__(self, source: Source, steps_per_epoch: int | None, group: int = 1) -> None:
        self.source = source
        self.steps_per_epoch = steps_per_epoch
        self.group = group
        self.num_batches = None if source.num_batches is None else int(source.num_batches)
        self._taken: list[int] = []  # batches taken from each pass
        self._iterator: Iterator[Any] | None = None
        self._limit: int | None = None
        self._short = False  # the data ended within an execution; Keras does not notice that
        self._ended = False  # the iterator is exhausted

    @property
    def steps(self) -> int | None:
        """Steps per epoch, or None while the number is unknown."""
        steps = self.steps_per_epoch or self.num_batches
        return steps if steps is not None and steps > 0 else None

    @property
    def spec(self) -> Any:
        """The `tf.TypeSpec` structure of a batch."""
        return self.source.spec

    def batch_of(self, lot: Any) -> Any:
        """Return the first batch of a lot that `take` returned."""
        return lot[0]

    def start(self) -> None:
        """Begin a new training. Keras resets its iterator here, and so calls the adapter's hook."""
        self.source.on_epoch_end()

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch from its first batch. A resume within an epoch does not call this."""
        self.source.on_epoch_begin()
        self._limit = self.steps
        if self._limit is None or self._iterator is None or self.steps_per_epoch is None:
            self._open()

    def within(self, batch: int) -> bool:
        """Return whether the epoch has, or may have, a batch with this index."""
        if self._iterator is None or self.steps_per_epoch == -1:
            return self._iterator is not None
        if self._used_up:
            return False
        if self._short:
            batch = executed(batch, self.group)
        return self._limit is None or batch < executed(self._limit, self.group)

    def more(self, batch: int) -> bool:
        """Return the same as `within`; without a batch, end the epoch's data as Keras does."""
        if self.within(batch):
            return True
        if self._iterator is None:
            return False  # the data ran out, and `take` ended the epoch
        reached = executed(batch, self.group)
        if self._limit is not None and reached < self._limit and self.steps_per_epoch:
            warnings.warn(RAN_OUT, stacklevel=2)
        if self._used_up:
            # Keras already opens the next pass here, and another one when the epoch begins. Data
            # that counts its passes, such as a seeded shuffle, must see the same count.
            self._open()
        self.source.on_epoch_end()
        return False

    def take(self, batch: int, limit: int) -> list[Any] | None:
        """Return up to `limit` batches from `batch` on; fewer if the data is slow.

        Return None if no batch is left in the pass; then `more` says whether the epoch continues.
        """
        first = self._next()
        if first is _NOTHING:
            self._end()
            return None
        lot, started = [first], time.monotonic()
        while (
            len(lot) < limit
            and self.within(batch + len(lot))
            and time.monotonic() - started < PATIENCE_S
        ):
            data = self._next()
            if data is _NOTHING:
                self._ended = True  # the next call handles the end, as it does with limit 1
                break
            lot.append(data)
        return lot

    def _next(self) -> Any:
        assert self._iterator is not None
        if self._ended:
            return _NOTHING
        data = next(self._iterator, _NOTHING)
        if data is not _NOTHING:
            self._taken[-1] += 1
        return data

    def _end(self) -> None:
        """Handle data that ended before the epoch."""
        self._ended = False
        if self._seen % self.group and not self._short:
            self._short = True
            return
        if self.num_batches is None:  # Keras counts the execution that found no data
            self.num_batches = executed(self._seen, self.group) + self.group
        warnings.warn(RAN_OUT, stacklevel=3)
        self._iterator = None
        self.source.on_epoch_end()

    def state(self) -> Plain:
        """Return the cursor as plain data."""
        return {
            "taken": list(self._taken),
            "open": self._iterator is not None,
            "limit": self._limit,
            "num_batches": self.num_batches,
            "short": self._short,
            "position": self.source.position() if self._iterator is not None else None,
            "own": self.source.state(),
        }

    def restore(self, state: Plain) -> None:
        """Restore a cursor that `state` returned."""
        self._taken = list(state["taken"])
        self._limit = state["limit"]
        self.num_batches = state["num_batches"]
        self._short = state["short"]
        self.source.restore(state["own"])
        if state["open"]:
            self._iterator = self.source.reopen(self._taken, state["position"])
        elif self._taken:
            self.source.skip_passes(self._taken)

    def skip(self, state: Plain) -> None:
        """Skip the batches of a finished training, for the next phase that uses the same data."""
        self.source.restore(state["own"])
        self.source.skip_passes(list(state["taken"]))

    def describe(self) -> Plain:
        """Return the facts that must be equal for a resume within an epoch."""
        return {"kind": self.source.kind}

    def how_resumed(self) -> str:
        """Return how a resume finds its batch, as a text for the log."""
        return self.source.how_resumed()

    def doubts(self) -> list[str]:
        """Return the reasons why a resume may be inexact, each with a remedy."""
        return self.source.doubts()

    def close(self) -> None:
        """Stop the threads and processes of the source."""
        self._iterator = None
        self.source.close()

    @property
    def _used_up(self) -> bool:
        seen = executed(self._seen, self.group) if self._short else self._seen
        return bool(self.num_batches) and seen >= (self.num_batches or 0)

    @property
    def _seen(self) -> int:
        return self._taken[-1] if self._taken else 0

    def _open(self) -> None:
        self._iterator = self.source.open(len(self._taken))
        self._taken.append(0)
        self._short = self._ended = False


def executed(batches: int, group: int) -> int:
    """Round a number of batches up to whole executions, as Keras counts steps."""
    return -(-batches // group) * group

"""The batches of an epoch, by Keras' rules, with a cursor that can be stored.

The rules are those of Keras' `EpochIterator`: without
`steps_per_epoch` each epoch is a new pass; with it one pass goes on over the epochs, and data that
runs out ends the epoch with Keras' warning. Keras counts in executions of `steps_per_execution`
batches, of which only the last one before the data ends may have fewer; an epoch of 5 steps at 2
an execution has 6 batches.
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

PATIENCE_S = 0.1  # a stop request waits at most this long for batches to be gathered
_NOTHING = object()


class Feed:
    """Hands out the batches of the epochs in order, several at a time.

    steps_per_epoch: as in fit; None: a pass is an epoch; -1: until the data ends. group: Keras'
    steps_per_execution.
    """

    def __init__(self, source: Source, steps_per_epoch: int | None, group: int = 1) -> None:
        self.source = source
        self.steps_per_epoch = steps_per_epoch
        self.group = group
        self.num_batches = None if source.num_batches is None else int(source.num_batches)
        self._taken: list[int] = []  # batches taken of each pass opened
        self._iterator: Iterator[Any] | None = None
        self._limit: int | None = None
        self._short = False  # the data ended within an execution, which Keras does not notice
        self._ended = False  # the iterator has said that it has no more

    @property
    def steps(self) -> int | None:
        """Steps of an epoch, None while that is not known."""
        steps = self.steps_per_epoch or self.num_batches
        return steps if steps is not None and steps > 0 else None

    @property
    def spec(self) -> Any:
        """The tf.TypeSpec structure of a batch."""
        return self.source.spec

    def batch_of(self, lot: Any) -> Any:
        """Return the first batch of the lot that `take` handed out."""
        return lot[0]

    def start(self) -> None:
        """Begin a training anew: Keras resets its iterator, which tells the data adapter so."""
        self.source.on_epoch_end()

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch anew (not one that a restore put us in the middle of)."""
        self.source.on_epoch_begin()
        self._limit = self.steps
        if self._limit is None or self._iterator is None or self.steps_per_epoch is None:
            self._open()

    def within(self, batch: int) -> bool:
        """Whether the epoch has, or may have, a batch number `batch`."""
        if self._iterator is None or self.steps_per_epoch == -1:
            return self._iterator is not None
        if self._used_up:
            return False
        if self._short:
            batch = executed(batch, self.group)
        return self._limit is None or batch < executed(self._limit, self.group)

    def more(self, batch: int) -> bool:
        """The same, and when it has none: end the epoch's data as Keras does."""
        if self.within(batch):
            return True
        if self._iterator is None:
            return False  # the data ran out, and `take` has ended the epoch
        reached = executed(batch, self.group)
        if self._limit is not None and reached < self._limit and self.steps_per_epoch:
            warnings.warn(RAN_OUT, stacklevel=2)
        if self._used_up:
            # Keras opens the next pass here already (and another one when the epoch begins), so
            # data that counts its passes, as a seeded shuffle does, has to see the same count.
            self._open()
        self.source.on_epoch_end()
        return False

    def take(self, batch: int, limit: int) -> list[Any] | None:
        """Return up to `limit` batches from number `batch` on, fewer where they come slowly.

        None when there are none: ask `more` whether to go on.
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
                self._ended = True  # dealt with when the next one is asked for, as with limit 1
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
        """The data ended before the epoch did."""
        self._ended = False
        if self._seen % self.group and not self._short:
            self._short = True
            return
        if self.num_batches is None:  # Keras counts the execution that found nothing
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
        """Go to where `state` was taken."""
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
        """Count what a finished training took as taken, for whoever uses the same data next."""
        self.source.restore(state["own"])
        self.source.skip_passes(list(state["taken"]))

    def describe(self) -> Plain:
        return {"kind": self.source.kind}

    def how_resumed(self) -> str:
        return self.source.how_resumed()

    def doubts(self) -> list[str]:
        return self.source.doubts()

    def close(self) -> None:
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
    """Return how many steps Keras counts for so many batches: whole executions."""
    return -(-batches // group) * group

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
from collections.abc import Callable, Iterator
from typing import Any

from outlast.training.data.fingerprint import of_tensors
from outlast.training.data.source import Plain, Source

RAN_OUT = (
    "Your input ran out of data; interrupting training. Make sure that your dataset or generator "
    "can generate at least `steps_per_epoch * epochs` batches. You may need to use the "
    "`.repeat()` function when building your dataset."
)

NOT_AGAIN = (
    "a resume read the data again up to its batch, and the last one that it skipped is not the one "
    "that was trained on: something that the data depends on is not as it was, for example a "
    "variable that a callback sets, a file, or the time; make the data depend on its index alone"
)

Reached = Callable[[int, int], None]

PATIENCE_S = 0.1  # longest wait of a stop request for slow batches
_NOTHING = object()


def _alone(index: int, taken: int) -> None:
    """Do nothing: nobody else reads the data."""


class Feed:
    """Returns the batches of each epoch in order, several at a time.

    With `steps_per_epoch` None, a pass is an epoch; with -1, an epoch lasts until the data ends.
    `group` is Keras' steps_per_execution.

    Attributes:
        extra_pass: Whether a new training opens one pass before the first epoch, as Keras does
            under a strategy to build the model.
    """

    def __init__(self, source: Source, steps_per_epoch: int | None, group: int = 1) -> None:
        self.source = source
        self.steps_per_epoch = steps_per_epoch
        self.group = group
        self.extra_pass = False
        self.num_batches = None if source.num_batches is None else int(source.num_batches)
        self._taken: list[int] = []  # batches taken from each pass
        self._iterator: Iterator[Any] | None = None
        self._limit: int | None = None
        self._short = False  # the data ended within an execution; Keras does not notice that
        self._ended = False  # the iterator is exhausted
        self._last: Any = None  # the last batch taken from the open pass by this process
        self._digest: str | None = None  # of the last batch that an earlier process took
        self._differs = False  # whether a resume has read another one in its place

    @property
    def steps(self) -> int | None:
        """Steps per epoch, or None while the number is unknown."""
        steps = self.steps_per_epoch or self.num_batches
        return steps if steps is not None and steps > 0 else None

    @property
    def spec(self) -> Any:
        """The `tf.TypeSpec` structure of a batch."""
        return self.source.spec

    def batch_of(self, taken: Any) -> Any:
        """Return the first batch of what `take` returned."""
        return taken[0]

    def start(self) -> None:
        """Begin a new training. Keras resets its iterator here, and so calls the adapter's hook."""
        if self.extra_pass:
            self._open()
            self._iterator = None
        self.source.on_epoch_end()

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch from its first batch. A resume within an epoch does not call this."""
        self.source.on_epoch_begin()
        self._limit = self.steps
        if self._limit is None or self._iterator is None or self.steps_per_epoch is None:
            self._open()
        self._expect(0)

    def _expect(self, done: int) -> None:
        limit = self._limit
        self.source.expect(None if limit is None else executed(limit, self.group) - done)

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
            self.source.end()
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
        batches, started = [first], time.monotonic()
        while (
            len(batches) < limit
            and self.within(batch + len(batches))
            and time.monotonic() - started < PATIENCE_S
        ):
            data = self._next()
            if data is _NOTHING:
                self._ended = True  # the next call handles the end, as it does with limit 1
                break
            batches.append(data)
        return batches

    def _next(self) -> Any:
        assert self._iterator is not None
        if self._ended:
            return _NOTHING
        data = next(self._iterator, _NOTHING)
        if data is not _NOTHING:
            self._taken[-1] += 1
            self._last = data
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
        self.source.end()
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
            "last": self._digest if self._last is None else of_tensors(self._last),
        }

    def place(self) -> tuple[int, int]:
        """Return the number of the open pass, from 0, and how many batches were taken from it."""
        return len(self._taken) - 1, self._seen

    def restore(self, state: Plain, reached: Reached = _alone) -> None:
        """Restore a cursor that `state` returned.

        A replay calls `reached` with each `place` that it comes to.
        """
        self.source.reached = reached
        self._taken = list(state["taken"])
        self._limit = state["limit"]
        self.num_batches = state["num_batches"]
        self._short = state["short"]
        self.source.restore(state["own"])
        if state["open"]:
            self._iterator = self.source.reopen(self._taken, state["position"])
            self._digest, skipped = state["last"], self.source.last_skipped
            if self._digest is not None and skipped is not None:
                self._differs = of_tensors(skipped) != self._digest
            self._expect(self._seen % executed(self._limit or 1, self.group))
        elif self._taken:
            self.source.skip_passes(self._taken)

    def skip(self, state: Plain, reached: Reached = _alone) -> None:
        """Skip the batches of a finished training, for the next phase that uses the same data."""
        self.source.reached = reached
        self.source.restore(state["own"])
        self.source.skip_passes(list(state["taken"]))

    def describe(self) -> Plain:
        """Return the facts that must be equal for a resume within an epoch."""
        return {"kind": self.source.kind}

    def unread(self) -> Plain:
        """Return global random generators, as they were before batches that are not taken yet."""
        return self.source.unread()

    def drawn(self) -> str | None:
        """Return a digest of what each process draws anew, such as seeds, or None."""
        return self.source.drawn()

    def content(self) -> str | None:
        """Return a digest of data that is no array, or None if it cannot be known."""
        return self.source.content()

    def stale_locks(self, before: float) -> list[str]:
        """Remove what killed attempts left locked before a time, and return the paths."""
        return self.source.stale_locks(before)

    def how_resumed(self) -> str:
        """Return how a resume finds its batch, as a text for the log."""
        return self.source.how_resumed()

    def inexact_reasons(self) -> list[str]:
        """Return the reasons why a resume may be inexact, each with a remedy."""
        return [*([NOT_AGAIN] if self._differs else []), *self.source.inexact_reasons()]

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
        self._last = self._digest = None
        self._short = self._ended = False


def executed(batches: int, group: int) -> int:
    """Round a number of batches up to whole executions, as Keras counts steps."""
    return -(-batches // group) * group

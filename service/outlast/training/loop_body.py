"""`LoopBody`: the attributes and methods that the body of a hand-written loop uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.loop_data import knows_its_end
from outlast.training.phase import Phase
from outlast.training.state.epoch_means import Means, numbers
from outlast_checkpoints.errors import UsageError


class LoopBody:
    """Base class of `Loop`, with everything that the loop's body reads, logs and requests."""

    epoch: int
    batch: int
    _data: Any
    _feed: Any
    _phase: Phase
    _steps_per_epoch: int | None

    def __init__(self) -> None:
        self._means = Means()
        self._logs: dict[str, float] = {}  # of the current step
        self._iterated = False
        self._in_body = False
        self._stopped = False

    @property
    def step(self) -> int:
        """Number of steps done before the current one, over all epochs and attempts."""
        return self._phase.step if self._iterated else 0

    @property
    def last_batch(self) -> bool:
        """Whether the epoch ends after the current batch.

        Raises:
            UsageError: the loop cannot know that, because the data has no known size and
                `steps_per_epoch` is not given; or this was read outside of the loop's body.
        """
        self._require_body("last_batch")
        if self._stopped:
            return True
        if not knows_its_end(self._feed, self._steps_per_epoch):
            raise UsageError(
                field="last_batch",
                problem="the data does not say how many batches it has",
                hint="Give steps_per_epoch.",
            )
        return not self._feed.within(self.batch + 1)

    def log(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Record values of the current step.

        An epoch's value is the mean over its steps, weighted by the samples in each batch.

        Args:
            values: Dict from names to numbers, or to arrays and tensors with one element.
            **more: The same as keyword arguments.

        Raises:
            UsageError: a value is not a number, or this was called outside of the loop's body.

        Example:

        ```python
        loop.log(loss=loss, accuracy=accuracy)
        ```
        """
        self._require_body("log")
        self._logs.update(numbers({**(values or {}), **more}))

    def log_epoch(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Record values of the current epoch, for example a validation loss, without averaging.

        Args:
            values: Dict from names to numbers, or to arrays and tensors with one element.
            **more: The same as keyword arguments.

        Raises:
            UsageError: a value is not a number, or this was called outside of the loop's body.

        Example:

        ```python
        if loop.last_batch:
            loop.log_epoch(val_loss=model.evaluate(x_val, y_val, verbose=0))
        ```
        """
        self._require_body("log_epoch")
        self._means.fix(numbers({**(values or {}), **more}))

    def stop(self) -> None:
        """End the epoch and the training after the current step; the phase counts as finished."""
        self._stopped = True

    def _batch_of(self, taken: Any) -> Any:
        if self._data is None:
            return self._phase.step
        batch = self._feed.batch_of(taken)
        alone = isinstance(self._data, tuple | list) and len(self._data) == 1
        # Keras treats (x,) and x alike; a caller who passed a 1-tuple expects 1-tuples.
        return (batch,) if alone and isinstance(self._feed, ArrayFeed) else batch

    def _require_body(self, field: str) -> None:
        if not self._in_body:
            raise UsageError(
                field=field,
                problem="it is only available inside the loop's body",
                hint="Move it into the body of `for batch in loop:`.",
            )

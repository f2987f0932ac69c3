"""In-memory arrays as training data: Keras' own conversion, our own order.

Conversion, class weights, cardinality checks and the validation split are Keras' (the same code
that `Model.fit` runs); the order of samples comes from `permutation`, so that any batch of any
epoch can be named without replaying the ones before.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.training.data import gather
from outlast.training.data.memory_mapped import Outsized, is_outsized
from outlast.training.data.permutation import Shuffle, epoch_order
from outlast.training.keras_internals import data_adapters
from outlast_checkpoints.errors import UsageError


class ArraySource:
    """Batches of resident arrays, by index.

    tensors: the structure that the model's train_step receives, whole, as `rows` keeps it; None
    for arrays that are too large, whose batches `outsized` gathers.
    samples, batch_size, batches: counts; the last batch of an epoch may be shorter.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        *,
        batch_size: int | None,
        class_weight: dict[int, float] | None,
        shuffle: Shuffle,
        seed: int,
        steps: int | None = None,
    ) -> None:
        arrays = data_adapters.convert_arrays(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            class_weight=class_weight,
            shuffle=shuffle,
            steps=steps,
        )
        self.samples: int = arrays.samples
        if self.samples == 0:
            raise UsageError(field="x", problem="it has no samples", hint="Give at least one.")
        self.batch_size: int = arrays.batch_size
        self.batches: int = math.ceil(self.samples / self.batch_size)
        self.fixed_batch = self.batch_size if self.samples % self.batch_size == 0 else None
        self.shuffle = shuffle
        self.seed = seed
        self.outsized = Outsized(arrays.inputs) if is_outsized(arrays.inputs) else None
        self.tensors = None if self.outsized else gather.resident(arrays.inputs)
        self._epoch: int | None = None
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def spec(self, size: int | None = None) -> Any:
        """Return the tf.TypeSpec structure of a batch; size None: of any size."""
        if self.outsized is not None:
            return self.outsized.spec(size)
        return gather.spec_of_rows(self.tensors, size)

    def batch(self, indices: Any) -> Any:
        """Return the batch of these samples, int64 of shape (size,)."""
        if self.outsized is not None:
            return self.outsized.batch(indices)
        return gather.gather(self.tensors, indices)

    def indices(self, epoch: int, batch: int, count: int) -> npt.NDArray[np.int64]:
        """Return the sample indices of up to `count` batches from `batch` on, shape (k, size).

        k may be smaller than count: a shorter last batch comes in a call of its own.
        """
        if epoch != self._epoch:
            self._order = epoch_order(self.samples, self.batch_size, self.shuffle, self.seed, epoch)
            self._epoch = epoch
        full = self.samples // self.batch_size
        if batch >= full:
            return self._order[batch * self.batch_size :].reshape(1, -1)
        end = min(batch + count, full)
        indices = self._order[batch * self.batch_size : end * self.batch_size]
        return indices.reshape(end - batch, self.batch_size)


def split_validation(
    x: Any, y: Any, sample_weight: Any, fraction: float
) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Cut off the last samples for validation, before any shuffling, as Keras' fit does."""
    train, validation = data_adapters.split_validation(
        (x, y, sample_weight), validation_split=fraction
    )
    return train, validation

"""`ArraySource`: arrays as training data, converted by Keras and ordered by `permutation`.

Keras' own code converts arrays, checks cardinality, applies class weights and splits off the
validation data. The order of samples comes from `permutation`, so a resume finds any batch of any
epoch without a replay.
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
    """Batches of arrays, by index.

    Attributes:
        tensors: All samples, in the structure that train_step receives; see `gather.resident`.
            None if the arrays are too large to copy; then `outsized` gathers the batches.
        samples: Number of samples.
        batch_size: Samples per batch. The last batch of an epoch may be shorter.
        batches: Batches per pass.
        fixed_batch: `batch_size` if all batches have that size, else None.
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
            raise UsageError(field="x", problem="it has no samples", hint="Pass at least one.")
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
        """Return the `tf.TypeSpec` structure of a batch of `size` samples; None is any number."""
        if self.outsized is not None:
            return self.outsized.spec(size)
        return gather.spec_of_rows(self.tensors, size)

    def batch(self, indices: Any) -> Any:
        """Return the batch of these samples. `indices` is int64 of shape (size,)."""
        if self.outsized is not None:
            return self.outsized.batch(indices)
        return gather.gather(self.tensors, indices)

    def indices(self, epoch: int, batch: int, count: int) -> npt.NDArray[np.int64]:
        """Return the sample indices of up to `count` batches from `batch` on, of shape (k, size).

        k may be smaller than `count`: a shorter last batch needs a separate call.
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
    """Split off the last samples for validation, before any shuffling, as Keras' fit does."""
    train, validation = data_adapters.split_validation(
        (x, y, sample_weight), validation_split=fraction
    )
    return train, validation

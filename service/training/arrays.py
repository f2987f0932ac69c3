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
import tensorflow as tf
from keras import tree
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.trainers.data_adapters.array_data_adapter import (
    ArrayDataAdapter,
    can_convert_arrays,
)

from service.training.errors import NotSupported
from service.training.permutation import Shuffle, epoch_order

NEXT = "Pass arrays (numpy or tensors), or call model.fit for this data."


class ArraySource:
    """Batches of resident arrays, by index.

    tensors: the structure that the model's train_step receives, whole. samples, batch_size,
    batches: counts; the last batch of an epoch may be shorter.
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
        adapter = ArrayDataAdapter(
            x,
            y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            class_weight=class_weight,
            shuffle=shuffle,
            steps=steps,
        )
        self.samples: int = adapter._num_samples
        self.batch_size: int = adapter._batch_size
        self.batches: int = math.ceil(self.samples / self.batch_size)
        self.fixed_batch = self.batch_size if self.samples % self.batch_size == 0 else None
        self.shuffle = shuffle
        self.seed = seed
        inputs = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
        self.tensors = tree.map_structure(_resident, tree.lists_to_tuples(inputs))
        self._epoch: int | None = None
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

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
        rows = self._order[batch * self.batch_size : end * self.batch_size]
        return rows.reshape(end - batch, self.batch_size)


def check_arrays(x: Any, y: Any, sample_weight: Any) -> None:
    """Raise `NotSupported` when the data is anything but arrays."""
    if x is None:
        raise NotSupported(field="x", problem="no data was given", hint=NEXT)
    if not can_convert_arrays((x, y, sample_weight)):
        raise NotSupported(
            field="x", problem=f"data of type {type(x).__name__} cannot be resumed yet", hint=NEXT
        )
    for leaf in tree.flatten((x, y, sample_weight)):
        if (
            isinstance(leaf, tf.SparseTensor | tf.RaggedTensor)
            or data_adapter_utils.is_scipy_sparse(leaf)
            or data_adapter_utils.is_jax_sparse(leaf)
        ):
            raise NotSupported(
                field="x", problem=f"{type(leaf).__name__} data cannot be resumed yet", hint=NEXT
            )


def split_validation(
    x: Any, y: Any, sample_weight: Any, fraction: float
) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Cut off the last samples for validation, before any shuffling, as Keras' fit does."""
    train, validation = array_slicing.train_validation_split(
        (x, y, sample_weight), validation_split=fraction
    )
    return train, validation


def _resident(value: Any) -> Any:
    return None if value is None else tf.convert_to_tensor(value)

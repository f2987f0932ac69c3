"""What a kind of training data has to offer: passes over it, and a way back to any batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from outlast.training.keras_internals import data_adapters

Plain = dict[str, Any]


class Source(ABC):
    """One kind of data. A pass is one iterator over it; Keras makes one an epoch, or goes on with
    the same one when `steps_per_epoch` is given.

    kind: for logs and errors. num_batches: batches of a pass, None when it is not known or
    endless. spec: structure of tf.TypeSpec of one batch.
    """

    kind: str
    num_batches: int | None
    spec: Any

    @abstractmethod
    def open(self, index: int) -> Iterator[Any]:
        """Begin pass `index` (they are opened in order, from 0) and return its batches."""

    @abstractmethod
    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        """Return the rest of the last pass opened, in a new process.

        taken: batches taken of each pass so far. position: what `position` returned there, None
        if it had nothing to say.
        """

    def skip_passes(self, taken: list[int]) -> None:
        """Go past the passes used up so far, in a new process, with none open."""
        self.reopen(taken, None)

    def position(self) -> Any:
        """Return plain data that `reopen` needs beside the count of batches, None for nothing."""
        return None

    def state(self) -> Any:
        """Return plain data of the data object's own state, None for nothing."""
        return None

    def restore(self, state: Any) -> None:
        """Put back what `state` returned, before `reopen`."""

    def on_epoch_begin(self) -> None:
        """Keras' hook of data adapters, before an epoch's first batch."""

    def on_epoch_end(self) -> None:
        """Keras' hook of data adapters, after an epoch's last batch."""

    def close(self) -> None:
        """Stop threads and processes."""

    def how_resumed(self) -> str:
        """Say, for the log, how a resume finds its batch."""
        return "by cursor"

    def doubts(self) -> list[str]:
        """Return reasons why a resume may not be exact, each with what to change; mostly none."""
        return []


def as_tensors(batch: Any, spec: Any) -> Any:
    """Return a batch of arrays as tensors of the spec's dtypes; None stays None.

    Raises `TypeError` when a shape does not fit, as Keras' GeneratorDataAdapter does.
    """

    def convert(expected: Any, value: Any) -> Any:
        if value is None:
            return None
        value = data_adapters.dense_or_tf_sparse(value)
        if hasattr(value, "detach"):  # a torch tensor
            value = value.detach().cpu().numpy()
        composite = isinstance(value, tf.SparseTensor | tf.RaggedTensor)
        tensor = value if composite else tf.convert_to_tensor(value, dtype=expected.dtype)
        if not expected.shape.is_compatible_with(tensor.shape):
            raise TypeError(
                f"The data yielded an element of shape {tensor.shape} where an element of shape "
                f"{expected.shape} was expected. Keras takes the shape from the first two "
                "batches: make sure that they do not have the same size wherever it varies."
            )
        return tensor

    if spec is None:
        return None
    return tree.map_structure_up_to(spec, convert, spec, batch)


def without_optionals(structure: Any) -> Any:
    """Return a batch or its spec with None for what tf.data calls an Optional, as Keras does."""
    kinds = tf.OptionalSpec | tf.experimental.Optional
    return tree.map_structure(lambda v: None if isinstance(v, kinds) else v, structure)


def an_empty_batch(spec: Any, size: int = 1) -> Any:
    """Return a batch of zeros; `size` stands where the spec leaves a dimension open."""

    def zeros(spec: Any) -> Any:
        if spec is None:
            return None
        shape = [size if given is None else given for given in spec.shape]
        dense = tf.zeros(shape, spec.dtype)
        if isinstance(spec, tf.SparseTensorSpec):
            return tf.sparse.from_dense(dense)
        if isinstance(spec, tf.RaggedTensorSpec) and spec.ragged_rank:
            return tf.RaggedTensor.from_tensor(dense, ragged_rank=spec.ragged_rank)
        return dense

    return tree.map_structure(zeros, spec)


def to_tuple(batch: Any) -> Any:
    return tuple(batch) if isinstance(batch, list) else batch


def spec_of(batches: list[Any]) -> Any:
    """Return the common tf.TypeSpec structure of a few batches, as Keras finds it."""
    return data_adapters.spec_of(batches)


def of_numpy(batch: Any) -> Any:
    """Return a batch with arrays in place of tensors, and tuples in place of lists, as Keras."""

    def convert(value: Any) -> Any:
        if hasattr(value, "detach"):  # a torch tensor
            return np.asarray(value.detach().cpu())
        return np.asarray(value) if hasattr(value, "__array__") else value

    return tree.lists_to_tuples(tree.map_structure(convert, batch, none_is_leaf=False))

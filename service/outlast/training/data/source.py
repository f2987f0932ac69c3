"""The protocol of data sources: passes over one kind of data, and a way back to any batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from outlast.training.keras_internals import data_adapters

Plain = dict[str, Any]


class Source(ABC):
    """One kind of training data.

    A pass is one iterator over the data. Keras opens one pass per epoch; with `steps_per_epoch`,
    one pass continues over several epochs. A resume calls `restore`, and then `reopen` if a pass
    was open, or else `skip_passes`.

    Attributes:
        kind: Name of the kind, for logs and errors.
        num_batches: Integer or `None`. Batches per pass. `None` if the number is unknown or
            infinite.
        spec: Structure of `tf.TypeSpec` of one batch.

    Example:

    ```python
    class Squares(Source):
        kind = "squares"
        num_batches = 100
        spec = (tf.TensorSpec([], tf.float32),)

        def open(self, index):
            return self._from(0)

        def reopen(self, taken, position):
            return self._from(taken[-1])

        def _from(self, first):
            return ((tf.constant(float(i * i)),) for i in range(first, 100))
    ```
    """

    kind: str
    num_batches: int | None
    spec: Any
    reached: Callable[[int, int], None] = staticmethod(lambda index, taken: None)
    """Called by a replay with each place (pass, batches taken) that it reaches, so that others who
    read the same data, such as validation, read it again in the same order."""

    last_skipped: Any = None
    """The last batch that `reopen` read again and skipped, if it read any."""

    @abstractmethod
    def open(self, index: int) -> Iterator[Any]:
        """Open a pass.

        Args:
            index: Integer. Number of the pass. Passes are opened in order, from 0.

        Returns:
            An iterator over the batches of the pass, as tensors that match `spec`.
        """

    @abstractmethod
    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        """Reopen the last pass in a new process.

        Args:
            taken: List of integers. Batches taken from each pass so far.
            position: Return value of `position` when the checkpoint was taken, or `None`.

        Returns:
            An iterator over the remaining batches of the last pass.
        """

    def skip_passes(self, taken: list[int]) -> None:
        """Skip the passes taken so far, in a new process, when no pass was open.

        Args:
            taken: List of integers. Batches taken from each pass so far.
        """
        self.reopen(taken, None)

    def end(self) -> None:
        """End the open pass, of which all batches were taken."""

    def expect(self, count: int | None) -> None:
        """Note that an epoch will take `count` further batches; None if that is unknown."""

    def unread(self) -> Plain:
        """Return global random generators, as they were before batches that are not taken yet."""
        return {}

    def position(self) -> Any:
        """Return the position in the open pass.

        Returns:
            Plain data that `reopen` needs besides the number of batches, or `None`.
        """
        return None

    def state(self) -> Any:
        """Return the state of the data object that outlives a pass.

        Returns:
            Plain data for `restore`, or `None`.
        """
        return None

    def restore(self, state: Any) -> None:
        """Restore the state of the data object. A resume calls it before `reopen`.

        Args:
            state: Return value of `state`.
        """

    def on_epoch_begin(self) -> None:
        """Run the hook that Keras' data adapters have before the first batch of an epoch."""

    def on_epoch_end(self) -> None:
        """Run the hook that Keras' data adapters have after the last batch of an epoch."""

    def close(self) -> None:
        """Stop the threads and processes of the source."""

    def content(self) -> str | None:
        """Return a digest of the data, equal in each process, or None if it cannot be known."""
        return None

    def drawn(self) -> str | None:
        """Return a digest of what each process draws anew, such as seeds, or None."""
        return None

    def stale_locks(self, before: float) -> list[str]:
        """Remove what killed attempts left locked before a time, and return the paths."""
        return []

    def how_resumed(self) -> str:
        """Return how a resume finds its batch, as a text for the log."""
        return "by cursor"

    def inexact_reasons(self) -> list[str]:
        """Return the reasons why a resume may be inexact, each with a remedy; usually none."""
        return []


def as_tensors(batch: Any, spec: Any) -> Any:
    """Convert a batch of arrays to tensors with the dtypes of `spec`. None stays None.

    Raises `TypeError` if a shape does not match, as Keras' GeneratorDataAdapter does.
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
                "batches: if a size varies, make sure that it differs between these two."
            )
        return tensor

    if spec is None:
        return None
    return tree.map_structure_up_to(spec, convert, spec, batch)


def without_optionals(structure: Any) -> Any:
    """Replace the Optionals of tf.data in a batch or spec with None, as Keras does."""
    kinds = tf.OptionalSpec | tf.experimental.Optional
    return tree.map_structure(lambda v: None if isinstance(v, kinds) else v, structure)


def empty_batch(spec: Any, size: int = 1) -> Any:
    """Return a batch of zeros. `size` replaces the dimensions that the spec leaves open."""

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
    """Convert a list to a tuple, and return anything else unchanged."""
    return tuple(batch) if isinstance(batch, list) else batch


def spec_of(batches: list[Any]) -> Any:
    """Return the common `tf.TypeSpec` structure of a few batches, computed as in Keras."""
    return data_adapters.spec_of(batches)


def of_numpy(batch: Any) -> Any:
    """Convert the tensors of a batch to arrays and its lists to tuples, as Keras does."""

    def convert(value: Any) -> Any:
        if hasattr(value, "detach"):  # a torch tensor
            return np.asarray(value.detach().cpu())
        return np.asarray(value) if hasattr(value, "__array__") else value

    return tree.lists_to_tuples(tree.map_structure(convert, batch, none_is_leaf=False))

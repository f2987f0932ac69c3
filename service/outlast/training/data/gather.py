"""Batches gathered from the rows of resident arrays, which are dense, ragged or sparse."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import tree

from outlast.training.keras_internals import data_adapters
from outlast.training.keras_internals.data_adapters import Sparse


def resident(arrays: Any) -> Any:
    """Convert a structure of arrays to tensors. A missing part stays None."""
    sliceable = data_adapters.sliceable(arrays)
    return _map(_as_tensor, tree.lists_to_tuples(sliceable))


def gather(arrays: Any, indices: Any) -> Any:
    """Return the batch of these rows of a `resident` structure. `indices` is int64, (size,)."""

    def rows(array: Any) -> Any:
        if isinstance(array, Sparse):
            return data_adapters.rows_of_sparse(array, indices)
        return tf.gather(array, indices)

    return _map(rows, arrays)


def spec_of_rows(arrays: Any, size: int | None = None) -> Any:
    """Return the `tf.TypeSpec` structure of a batch of `size` samples; None is any number."""

    def spec(array: Any) -> Any:
        if isinstance(array, Sparse):
            return tf.SparseTensorSpec([size, *array.sparse.shape[1:]], array.sparse.dtype)
        if isinstance(array, tf.RaggedTensor):
            return tf.RaggedTensorSpec(
                [size, *array.shape[1:]], array.dtype, array.ragged_rank, array.row_splits.dtype
            )
        return tf.TensorSpec([size, *array.shape[1:]], array.dtype)

    return _map(spec, arrays)


def _map(function: Any, arrays: Any) -> Any:
    def visit(array: Any) -> Any:
        if array is None or (tree.is_nested(array) and not isinstance(array, Sparse)):
            return None  # makes `traverse` descend
        return function(array)

    return tree.traverse(visit, arrays)


def _as_tensor(array: Any) -> Any:
    composite = isinstance(array, Sparse | tf.RaggedTensor)
    return array if composite else tf.convert_to_tensor(array)

"""How a global batch is shared between replicas: by whole rows, as evenly as possible."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import tree


def rows_of(size: int, replicas: int, replica: int) -> tuple[int, int]:
    """Return the first row of a replica and its number of rows, of a batch of `size` rows.

    The first replicas have one row more where the division leaves a remainder.
    """
    each, left = divmod(size, replicas)
    return replica * each + min(replica, left), each + (replica < left)


def divides(size: int, replicas: int) -> bool:
    """Return whether all replicas get the same number of rows."""
    return size % replicas == 0


def size_of(batch: Any) -> Any:
    """Return the number of rows of a batch: an integer if it is known, else a scalar tensor."""
    first = next(part for part in tree.flatten(batch) if part is not None and part.shape.rank)
    known = first.shape[0]
    if known is not None:
        return int(known)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32)
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32)
    return tf.shape(first)[0]


def share_of(batch: Any, replicas: int, replica: Any) -> Any:
    """Return the rows of a replica of a batch of tensors. A missing part stays None."""
    size = size_of(batch)
    if isinstance(size, int) and isinstance(replica, int):
        first, count = rows_of(size, replicas, replica)
    else:
        each, left = size // replicas, size % replicas
        first = replica * each + tf.minimum(replica, left)
        count = each + tf.cast(replica < left, tf.int32)
    return tree.map_structure(lambda part: _rows(part, first, count), batch)


def _rows(part: Any, first: Any, count: Any) -> Any:
    if part is None or part.shape.rank == 0:
        return part
    if isinstance(part, tf.SparseTensor):
        rest = part.dense_shape[1:]
        start = tf.concat([[tf.cast(first, tf.int64)], tf.zeros_like(rest)], 0)
        size = tf.concat([[tf.cast(count, tf.int64)], rest], 0)
        return tf.sparse.slice(part, start, size)
    return part[first : first + count]

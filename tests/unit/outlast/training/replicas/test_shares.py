"""Rows of a batch for each replica: all of them, each once, as evenly as possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from outlast.training.replicas.shares import divides, rows_of, share_of, size_of

X = np.arange(14.0).reshape(7, 2)


@pytest.mark.parametrize(
    ("size", "replicas", "expected"),
    [
        (8, 4, [(0, 2), (2, 2), (4, 2), (6, 2)]),
        (7, 3, [(0, 3), (3, 2), (5, 2)]),
        (3, 4, [(0, 1), (1, 1), (2, 1), (3, 0)]),
        (5, 1, [(0, 5)]),
    ],
)
def test_the_first_replicas_have_one_row_more(
    size: int, replicas: int, expected: list[tuple[int, int]]
) -> None:
    assert [rows_of(size, replicas, replica) for replica in range(replicas)] == expected
    assert divides(size, replicas) == (len({rows for _, rows in expected}) == 1)


def joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], tf.SparseTensor):
        return tf.sparse.to_dense(tf.sparse.concat(0, parts)).numpy().tolist()
    together = tf.concat(parts, 0)
    return (
        together.to_list() if isinstance(together, tf.RaggedTensor) else together.numpy().tolist()
    )


@pytest.mark.parametrize("known", [True, False], ids=["known size", "unknown size"])
@pytest.mark.parametrize(
    "whole",
    [
        tf.constant(X),
        tf.ragged.constant([[1], [2, 3], [], [4], [5, 6, 7], [8], [9]]),
        tf.sparse.from_dense(X * (X % 3 == 0)),
    ],
    ids=["dense", "ragged", "sparse"],
)
def test_shares_are_the_batch_in_its_order(whole: Any, known: bool) -> None:
    spec = tf.type_spec_from_value(whole)
    if not known:
        kinds = {tf.SparseTensorSpec: tf.SparseTensorSpec([None, 2], tf.float64)}
        kinds[tf.RaggedTensorSpec] = tf.RaggedTensorSpec([None, None], tf.int32, 1)
        kinds[tf.TensorSpec] = tf.TensorSpec([None, 2], tf.float64)
        spec = kinds[type(spec)]

    @tf.function(input_signature=[spec])
    def share(batch: Any) -> Any:
        return [share_of((batch, None), 3, replica) for replica in range(3)]

    shares = share(whole)
    assert [missing for _, missing in shares] == [None] * 3
    parts = [part for part, _ in shares]
    assert joined(parts) == joined([whole])
    assert [int(size_of(part)) for part in parts] == [3, 2, 2]

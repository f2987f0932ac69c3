"""Streamed batches, stacked for a call of several steps: those that follow and are alike."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import tree


def can_be_stacked(spec: Any) -> bool:
    """Return whether batches of this spec can be stacked: all parts are dense tensors."""
    return all(isinstance(part, tf.TensorSpec) for part in tree.flatten(spec))


def stacked_spec(part: Any) -> Any:
    return tf.TensorSpec([None, *part.shape], part.dtype)


def alike(batches: list[Any]) -> list[list[Any]]:
    """Group consecutive batches of equal shapes. The last batch may be shorter."""
    parts: list[list[Any]] = []
    before: Any = None
    for batch in batches:
        shapes = [tensor.shape for tensor in tree.flatten(batch)]
        if shapes != before:
            parts.append([])
        parts[-1].append(batch)
        before = shapes
    return parts


def stack(batches: list[Any]) -> Any:
    if len(batches) == 1:
        return tree.map_structure(lambda tensor: tensor[None], batches[0])
    return tree.map_structure(lambda *tensors: tf.stack(tensors), *batches)

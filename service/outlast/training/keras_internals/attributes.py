"""The attributes of layers and optimizers that a script may set, without Keras' bookkeeping."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

# The setter of `trainable` also changes all inner layers and variables, so read what it stores.
_TRAINABLE = "_trainable"
_OF_TRACKING = ("_self_", "_compile")
# Set on a model by fit, by its callbacks, or when the model is first called.
_OF_FIT = frozenset(
    {
        "history",
        "optimizer",
        "stop_training",
        "stop_evaluating",
        "stop_predicting",
        "built",
        "_eval_epoch_iterator",
    }
)


def attributes(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each attribute that may affect what the part computes.

    `part` is a model, layer, optimizer or `tf.Module`.
    """
    of_keras = type(part).__module__.startswith("keras.")
    for name, value in list(vars(part).items()):
        if name == _TRAINABLE:
            yield name, value
        elif name.startswith("_" if of_keras else _OF_TRACKING) or name in _bookkeeping():
            continue
        else:
            yield name, value


@functools.cache
def _bookkeeping() -> frozenset[str]:
    # Automatic names are counted, so unnamed objects would rename the layers of the script.
    layer, model = keras.layers.Layer(name="any"), keras.Model(name="any")
    optimizer = keras.optimizers.Optimizer(0.1, name="any")
    private = {name for name in vars(optimizer) if name.startswith("_")}
    return _OF_FIT.union(vars(layer), vars(model), vars(tf.Module(name="any")), private)

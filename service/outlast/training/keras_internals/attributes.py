"""The attributes of layers and optimizers that a script may set, apart from Keras' bookkeeping."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras

_TRAINABLE = "_trainable"  # the property's setter also changes all layers and variables below
_OF_TRACKING = ("_self_", "_compile")
# What fit, its callbacks and the first call of a model set on the model.
_OF_FIT = frozenset(
    {"history", "optimizer", "stop_training", "stop_evaluating", "stop_predicting", "built"}
)


def attributes(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of the attributes that say how this layer or optimizer computes."""
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
    # Named, since an automatic name would change those of the script's own layers.
    layer, model = keras.layers.Layer(name="any"), keras.Model(name="any")
    optimizer = keras.optimizers.Optimizer(0.1, name="any")
    private = {name for name in vars(optimizer) if name.startswith("_")}
    return _OF_FIT.union(vars(layer), vars(model), private)

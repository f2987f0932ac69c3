"""The global random generators of Python, numpy, TensorFlow and Keras."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import tensorflow as tf

from outlast.training.keras_internals import generators


def enable_determinism() -> None:
    """Enable op determinism, and seed TensorFlow's global generator if it has no seed.

    With op determinism, an unseeded random op raises. The seed is derived from Python's generator
    without consuming from it.
    """
    if generators.tensorflow_seed() is None:
        tf.random.set_seed(derived_seed() % 2**31)
    tf.config.experimental.enable_op_determinism()


def derived_seed() -> int:
    """Derive a seed from Python's generator without consuming from it."""
    twin = random.Random()
    twin.setstate(random.getstate())
    return twin.getrandbits(53)


def capture() -> dict[str, Any]:
    """Return the states of the generators as plain data.

    Keras' global seed generator and TensorFlow's global generator are created at their first use,
    possibly in the middle of a training. Until then their state is None.
    """
    eager = generators.tensorflow_eager()
    keras_global = generators.keras_global()
    tf_global = generators.tensorflow_global()
    return {
        "python": _pack(random.getstate()),
        "numpy": np.random.get_state(legacy=False),
        "tensorflow": _pack(eager.getstate()) if eager is not None else None,
        "keras": None if keras_global is None else keras_global.state.numpy(),
        "tensorflow_global": None
        if tf_global is None
        else {"algorithm": int(tf_global.algorithm), "state": tf_global.state.numpy()},
    }


def restore(state: dict[str, Any]) -> None:
    """Restore states that `capture` returned."""
    random.setstate(_unpack(state["python"]))
    np.random.set_state(state["numpy"])
    eager = generators.tensorflow_eager()
    if state["tensorflow"] is not None and eager is not None:
        eager.setstate(_unpack(state["tensorflow"]))
    if state["keras"] is not None:
        keras_global = generators.keras_global()
        if keras_global is None:
            keras_global = generators.make_keras_global()
        keras_global.state.assign(state["keras"])
    if state["tensorflow_global"] is not None:
        stored = state["tensorflow_global"]
        tf_global = generators.tensorflow_global()
        if tf_global is not None and int(tf_global.algorithm) == stored["algorithm"]:
            tf_global.state.assign(stored["state"])
        else:
            made = tf.random.Generator.from_state(stored["state"], stored["algorithm"])
            tf.random.set_global_generator(made)


def _pack(state: tuple[Any, ...]) -> dict[str, Any]:
    version, words, gauss = state
    return {"version": version, "words": np.array(words, np.uint32), "gauss": gauss}


def _unpack(state: dict[str, Any]) -> tuple[Any, ...]:
    return (state["version"], tuple(int(w) for w in state["words"]), state["gauss"])

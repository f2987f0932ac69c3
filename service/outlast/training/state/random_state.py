"""The random generators outside the model: python, numpy, TensorFlow's and Keras' global ones."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import tensorflow as tf

from outlast.training.keras_internals import generators


def enable_determinism() -> None:
    """Make TensorFlow's ops deterministic, seeding its global generator first when nobody has.

    With op determinism on, an unseeded random op raises; so the seed is drawn from python's
    generator without disturbing it.
    """
    if generators.tensorflow_seed() is None:
        tf.random.set_seed(derived_seed() % 2**31)
    tf.config.experimental.enable_op_determinism()


def derived_seed() -> int:
    """Return a seed drawn from python's generator, which is left as it was."""
    twin = random.Random()
    twin.setstate(random.getstate())
    return twin.getrandbits(53)


def capture() -> dict[str, Any]:
    """Return the state of python's, numpy's, TensorFlow's and Keras' generators as plain data.

    Keras' global seed generator and TensorFlow's global generator come into being at their first
    use, which may be in the middle of a training; until then they are None here.
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
    """Put back what `capture` returned."""
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

"""The process-wide random generators of Keras and TensorFlow."""

from __future__ import annotations

import random
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context
from tensorflow.python.ops import stateful_random_ops

# Keras has a constant for this name since 3.13; the name itself is older.
_KERAS_GLOBAL = "global_seed_generator"


def keras_global() -> Any:
    """Return Keras' global SeedGenerator, or None before its first use."""
    return global_state.get_global_attribute(_KERAS_GLOBAL)


def make_keras_global() -> Any:
    """Create and return Keras' global SeedGenerator. The caller sets its state."""
    made = keras.random.SeedGenerator(seed=0)
    global_state.set_global_attribute(_KERAS_GLOBAL, made)
    return made


def share_keras_global(made: Any) -> None:
    """Make this thread use the global SeedGenerator of another thread; Keras keeps one for each."""
    if made is not None:
        global_state.set_global_attribute(_KERAS_GLOBAL, made)


def tensorflow_global() -> tf.random.Generator | None:
    """Return TensorFlow's global generator, or None before its first use."""
    return stateful_random_ops.global_generator


def tensorflow_seed() -> int | None:
    """Return the seed that `tf.random.set_seed` set, or None."""
    seed: int | None = context.global_seed()
    return seed


def tensorflow_eager() -> random.Random | None:
    """Return the generator from which eager TensorFlow draws op seeds.

    It makes a program repeatable after `tf.random.set_seed`, and has no public accessor.
    """
    return getattr(context.context(), "_rng", None)

"""Random generators that Keras and TensorFlow keep for a whole process."""

from __future__ import annotations

import random
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context
from tensorflow.python.ops import stateful_random_ops

# Keras 3.13 gave this name a constant; the name is older.
_KERAS_GLOBAL = "global_seed_generator"


def keras_global() -> Any:
    """Return Keras' global SeedGenerator, None before its first use."""
    return global_state.get_global_attribute(_KERAS_GLOBAL)


def make_keras_global() -> Any:
    """Make Keras' global SeedGenerator and return it; the caller sets its state."""
    made = keras.random.SeedGenerator(seed=0)
    global_state.set_global_attribute(_KERAS_GLOBAL, made)
    return made


def tensorflow_global() -> tf.random.Generator | None:
    """Return TensorFlow's global generator, None before its first use."""
    return stateful_random_ops.global_generator


def tensorflow_seed() -> int | None:
    """Return what `tf.random.set_seed` was given, None where it was not called."""
    seed: int | None = context.global_seed()
    return seed


def tensorflow_eager() -> random.Random | None:
    """Return the generator from which eager TensorFlow draws op seeds.

    It makes a program with a global seed repeatable (tf.random.set_seed); it has no public
    accessor.
    """
    return getattr(context.context(), "_rng", None)

"""The global random generators of Python, numpy, TensorFlow and Keras, and TensorFlow's ops."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import tensorflow as tf

from outlast.attempt import fresh_seeds
from outlast.training.keras_internals import auto_names, generators, random_streams
from outlast.training.state import generator_states
from outlast_checkpoints.errors import FormatError

_own_seed: int | None = None  # of this module, for a script that sets none


def enable_determinism() -> None:
    """Enable op determinism, and seed TensorFlow's global generator if it has no seed.

    With op determinism, an unseeded random op raises. The seed is derived from Python's generator
    without consuming from it.
    """
    global _own_seed
    if generators.tensorflow_seed() is None:
        _own_seed = derived_seed() % 2**31
        tf.random.set_seed(_own_seed)
    tf.config.experimental.enable_op_determinism()


def seed_of_script() -> int | None:
    """Return the seed that the script gave to TensorFlow, as `set_random_seed` does."""
    seed = generators.tensorflow_seed()
    return None if seed == _own_seed else seed


def derived_seed() -> int:
    """Derive a seed from Python's generator without consuming from it."""
    twin = random.Random()  # nosec B311  # no secret
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
        "fresh": fresh_seeds.drawn(),
        "streams": random_streams.capture(),
        "tensorflow": _pack(eager.getstate()) if eager is not None else None,
        "keras": None if keras_global is None else keras_global.state.numpy(),
        "tensorflow_global": None
        if tf_global is None
        else {"algorithm": int(tf_global.algorithm), "state": tf_global.state.numpy()},
    }


def capture_all() -> dict[str, Any]:
    """Return what decides the next model: the generators, and Keras' numbers for names."""
    return {**capture(), "names": auto_names.capture()}


def restore_all(state: dict[str, Any]) -> None:
    """Restore what `capture_all` returned."""
    restore(state)
    auto_names.restore(state["names"])


def restore(state: dict[str, Any]) -> None:
    """Restore the generators' states that `capture` returned, all or some of them.

    Raises `FormatError` for a state that Python or numpy must not get.
    """
    try:
        if "python" in state:
            random.setstate(generator_states.python_state(**state["python"]))
        if "numpy" in state:
            np.random.set_state(generator_states.numpy_state(state["numpy"]))
    except (ValueError, TypeError, LookupError) as error:
        reason = f"the state of a random generator is wrong ({error})"
        raise FormatError(path="state.h5", reason=reason) from error
    fresh_seeds.go_on(state.get("fresh"))
    if "streams" in state:
        random_streams.restore(state["streams"])
    eager = generators.tensorflow_eager()
    if state.get("tensorflow") is not None and eager is not None:
        eager.setstate(generator_states.python_state(**state["tensorflow"]))
    if state.get("keras") is not None:
        keras_global = generators.keras_global()
        if keras_global is None:
            keras_global = generators.make_keras_global()
        keras_global.state.assign(state["keras"])
    if state.get("tensorflow_global") is not None:
        stored = state["tensorflow_global"]
        tf_global = generators.tensorflow_global()
        if tf_global is not None and int(tf_global.algorithm) == stored["algorithm"]:
            tf_global.state.assign(stored["state"])
        else:
            made = tf.random.Generator.from_state(stored["state"], stored["algorithm"])
            tf.random.set_global_generator(made)


def differing(one: dict[str, Any], two: dict[str, Any]) -> set[str]:
    """Return the names of the generators whose states differ, apart from those of the step."""
    return {k for k, state in one.items() if k != "streams" and not _is_same(state, two[k])}


def _is_same(one: Any, two: Any) -> bool:
    if one is None or two is None:
        return one is two
    if isinstance(one, dict) and isinstance(two, dict):
        return all(_is_same(state, two[name]) for name, state in one.items())
    return bool(np.array_equal(one, two)) if isinstance(one, np.ndarray) else bool(one == two)


def _pack(state: tuple[Any, ...]) -> dict[str, Any]:
    version, words, gauss = state
    return {"version": version, "words": _as_array(words), "gauss": gauss}


@functools.lru_cache(maxsize=4)  # because most trainings never draw from Python's generator
def _as_array(words: tuple[int, ...]) -> Any:
    found = np.fromiter(words, np.uint32, len(words))
    found.setflags(write=False)
    return found

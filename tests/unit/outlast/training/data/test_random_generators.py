"""Python data that draws from shared random generators is read on exactly, or named."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.data_epochs import assert_exact, read
from tests.support.data_samples import BATCH, SAMPLES, Batches, X, Y

pytestmark = pytest.mark.filterwarnings("ignore:.*ran out of data")
STEPS = 5
Draw = Callable[[], Any]


def batches(draw: Draw) -> Iterator[Any]:
    while True:
        chosen = np.asarray(draw()) % SAMPLES
        yield X[chosen], Y[chosen]


def of_numpy() -> Any:
    return np.random.randint(0, SAMPLES, BATCH)


def of_python() -> Any:
    return [random.randrange(SAMPLES) for _ in range(BATCH)]


def of_tensorflow() -> Any:
    return tf.random.uniform([BATCH], 0, SAMPLES, tf.int32)


def of_tensorflow_global() -> Any:
    return tf.random.get_global_generator().uniform([BATCH], 0, SAMPLES, tf.int32)


def with_tensorflow_global() -> dict[str, Any]:
    tf.random.set_global_generator(tf.random.Generator.from_seed(5))
    return {"x": batches(of_tensorflow_global), "steps_per_epoch": STEPS}


def of_keras() -> Any:
    return keras.random.randint([BATCH], 0, SAMPLES)


DRAWS = {
    "numpy": of_numpy,
    "python": of_python,
    "tensorflow": of_tensorflow,
    "keras": of_keras,
}


def shuffled_at_the_end() -> Iterator[Any]:
    """Draws for the first time after its first pass, long after its first batches."""
    order = np.arange(SAMPLES)
    while True:
        for at in range(0, SAMPLES, BATCH):
            yield X[order[at : at + BATCH]], Y[order[at : at + BATCH]]
        np.random.shuffle(order)


def of_one_generator() -> dict[str, Any]:
    rng = np.random.default_rng(3)

    def drawn() -> Any:
        return rng.integers(0, SAMPLES, BATCH)

    return {
        "x": batches(drawn),
        "steps_per_epoch": STEPS,
        "validation_data": batches(drawn),
        "validation_steps": 3,
    }


SHARED: dict[str, Callable[[], dict[str, Any]]] = {
    **{
        name: lambda draw=draw: {"x": batches(draw), "steps_per_epoch": STEPS}
        for name, draw in DRAWS.items()
    },
    "tensorflow global": with_tensorflow_global,
    "shuffled at the end": lambda: {"x": shuffled_at_the_end(), "steps_per_epoch": STEPS},
    "validation draws too": lambda: {
        "x": batches(of_numpy),
        "steps_per_epoch": STEPS,
        "validation_data": batches(of_numpy),
        "validation_steps": 3,
    },
    "one generator for both": of_one_generator,
    "a callback draws between epochs": lambda: {
        "x": batches(of_numpy),
        "steps_per_epoch": STEPS,
        "at_epoch_end": lambda: np.random.rand(3),
    },
}


@pytest.mark.parametrize("name", SHARED)
def test_a_generator_is_read_on_exactly(name: str) -> None:
    untouched = assert_exact(SHARED[name])
    assert untouched.doubts == []
    assert read(SHARED[name]).batches == untouched.batches


def test_a_reader_ahead_does_not_move_the_saved_generators() -> None:
    """A state that is held while the thread has read as far as it may."""

    def make() -> dict[str, Any]:
        return {"x": batches(of_numpy), "steps_per_epoch": 30}

    untouched = read(make, epochs=1)
    held = read(make, epochs=1, kill=7)
    _, _, state, _ = held.states[7]
    assert repr(state["generators"]["numpy"]) == repr(
        read(make, epochs=1, kill=7, patience=0.2).states[7][2]["generators"]["numpy"]
    )
    resumed = read(make, epochs=1, after=held.states[7])
    assert resumed.batches == untouched.batches[held.states[7][3] :]


def test_what_draws_beside_the_generator_within_an_epoch_is_named() -> None:
    def make() -> dict[str, Any]:
        return {"x": batches(of_numpy), "steps_per_epoch": 40}

    found = read(make, epochs=2, at_batch=lambda: np.random.rand())
    assert any("draw from np.random within an epoch" in why for why in found.doubts)


class Noisy(Batches):
    """Draws in each batch, from NumPy's generator or from its own."""

    def __init__(self, own: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.random = np.random.default_rng(3) if own else None

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        draw = np.random.random if self.random is None else self.random.random
        return x + draw(x.shape).astype("float32"), y


def test_training_and_validation_draw_from_one_generator() -> None:
    def make(own: bool) -> dict[str, Any]:
        train, validation = Noisy(own), Noisy(own)
        train.random = validation.random
        return {"x": train, "validation_data": validation}

    for own in (False, True):
        assert assert_exact(lambda own=own: make(own)).doubts == []


def test_validation_data_that_draws_beside_data_that_does_not() -> None:
    for own in (False, True):
        assert_exact(lambda own=own: {"x": Batches(), "validation_data": Noisy(own)})
    found = read(lambda: {"x": Batches(), "validation_data": Noisy(workers=2)}, epochs=1)
    assert any("changes random generators" in why for why in found.doubts)


@pytest.mark.parametrize("own", [False, True])
def test_a_pydataset_that_draws(own: bool) -> None:
    assert assert_exact(lambda: {"x": Noisy(own)}).doubts == []
    (doubt,) = read(lambda: {"x": Noisy(own, workers=2)}, epochs=1).doubts
    assert doubt.startswith("__getitem__ of the PyDataset changes random generators")
    assert read(lambda: {"x": Batches(workers=2)}, epochs=1).doubts == []

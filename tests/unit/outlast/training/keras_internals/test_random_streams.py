"""`tf.random` in functions: TensorFlow's own numbers, with a state that a checkpoint contains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast.training.keras_internals import random_streams
from tests.support.loop_harness import MakeLoop, assert_as_plain, assert_same_loop, run, run_plain
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    begin_process,
    dying_at,
    keras_fit,
    train,
)
from tests.support.training_zoo import ARRAYS, X, Y

Draw = Callable[..., Any]
FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)

# What `tf.random` calls, and the op with the hidden state. `tf.raw_ops` is TensorFlow's own.
OURS_AND_RAW: dict[str, tuple[Draw, Draw, tuple[Any, ...]]] = {
    "normal": (
        lambda n, t: tf.random.normal([n], dtype=t),
        lambda n, t: tf.raw_ops.RandomStandardNormal(shape=[n], dtype=t, seed=7, seed2=0),
        FLOATS,
    ),
    "uniform": (
        lambda n, t: tf.random.uniform([n], dtype=t),
        lambda n, t: tf.raw_ops.RandomUniform(shape=[n], dtype=t, seed=7, seed2=0),
        FLOATS,
    ),
    "truncated": (
        lambda n, t: tf.random.truncated_normal([n], dtype=t),
        lambda n, t: tf.raw_ops.TruncatedNormal(shape=[n], dtype=t, seed=7, seed2=0),
        FLOATS,
    ),
    "integers": (
        lambda n, t: tf.random.uniform([n], 2, 9000, dtype=t),
        lambda n, t: tf.raw_ops.RandomUniformInt(
            shape=[n], minval=tf.cast(2, t), maxval=tf.cast(9000, t), seed=7, seed2=0
        ),
        (tf.int32, tf.int64),
    ),
}


@pytest.mark.parametrize("name", OURS_AND_RAW)
def test_the_numbers_are_tensorflows(name: str) -> None:
    ours, raw, kinds = OURS_AND_RAW[name]
    size = tf.TensorSpec([], tf.int32)
    for kind in kinds:
        begin_process(7)
        one = tf.function(lambda n, k=kind: ours(n, k), input_signature=[size])
        other = tf.function(lambda n, k=kind: raw(n, k), input_signature=[size])
        for count in (3, 1, 0, 2000, 5):
            assert one(count).numpy().tobytes() == other(count).numpy().tobytes()
        assert len(random_streams.capture()) == 1


def drawing(make: MakeLoop) -> Any:
    """Functions of one name, of several shapes, nested and eager with a seed; one is used before
    the loop, and one is first used in the second epoch."""
    value = tf.Variable(tf.zeros(4))

    def one_of(size: int) -> Any:
        @tf.function
        def step(x: Any) -> Any:
            for _ in tf.range(2):
                x += tf.random.normal([size])
            return tf.nn.dropout(x, 0.5) + tf.random.uniform([1]) * tf.random.normal([], seed=size)

        return step

    first, second = one_of(4), one_of(1)

    @tf.function
    def nested(x: Any) -> Any:
        image = tf.image.random_brightness(tf.reshape(x, [2, 2, 1]), 0.3)
        grow = tf.random.uniform([]) < 0.5
        return tf.cond(grow, lambda: tf.random.truncated_normal([4]), lambda: image[0, 0] * x)

    value.assign(first(value))
    state = {"value": value}
    loop = make(state, steps_per_epoch=4, epochs=3)
    for i in loop:
        value.assign(first(value) + nested(value) + tf.random.normal([], seed=9))
        value.assign(second(value[: 1 + i % 4])[0] + value)
        if i >= 4:
            value.assign_add(tf.function(lambda: tf.random.normal([4], dtype=tf.float32))())
        value.assign_add(tf.random.normal([4]))  # without a seed
        loop.log(mean=tf.reduce_mean(value))
    return loop, state


def test_a_loop_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    whole = run(drawing, tmp_path / "whole")
    for step in (1, 3, 6, 9):
        with pytest.raises(Death), dying_at(step):
            run(drawing, tmp_path / "killed", save_every=2)
    assert_same_loop(whole, run(drawing, tmp_path / "killed", save_every=2))
    assert "inexact" not in log_of(tmp_path / "whole")


def dcgan(make: MakeLoop) -> Any:
    """Noise in a compiled function, as in TensorFlow's DCGAN tutorial."""
    value = tf.Variable(tf.zeros(3))

    @tf.function
    def train_step() -> Any:
        value.assign_add(tf.random.normal([3]) * tf.random.uniform([]))
        return tf.reduce_sum(value)

    state = {"value": value}
    loop = make(state, steps_per_epoch=3, epochs=2)
    for _ in loop:
        loop.log(loss=train_step())
    return loop, state


def test_a_loop_draws_what_a_plain_one_draws(tmp_path: Path) -> None:
    assert_as_plain(run(dcgan, tmp_path), run_plain(dcgan))


class Noisy(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return tf.nn.dropout(x + tf.random.normal(tf.shape(x)), 0.2)


class Predicting(keras.callbacks.Callback):  # type: ignore[misc]
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["predicted"] = float(self.model.predict(X[:2], verbose=0).sum())


def noisy() -> Any:
    model = keras.Sequential([layers.Input((6,)), Noisy(), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("jit_compile", [None, True])
def test_a_layer_with_noise_ends_as_in_keras(tmp_path: Path, jit_compile: Any) -> None:
    """So do its validation, and a prediction in a callback."""
    script = Script(noisy, {**ARRAYS, "validation_data": (X[:4], Y[:4])}, lambda: [Predicting()])
    ours = script.but(jit_compile=jit_compile, save_every=1)
    whole = train(ours, tmp_path / "whole")
    if jit_compile is None:
        assert_same_end(keras_fit(script), whole, rows=False)
    for step in (2, 4):
        with pytest.raises(Death), dying_at(step):
            train(ours, tmp_path / "killed")
    assert_same_end(whole, train(ours, tmp_path / "killed"))
    assert "inexact" not in log_of(tmp_path / "whole")


HIDDEN: dict[str, Callable[[], Any]] = {
    "RandomShuffle (step)": lambda: tf.random.shuffle([1, 2, 3]),
    "Multinomial (step)": lambda: tf.random.categorical([[0.1, 0.2]], 1),
    "RandomGamma (step)": lambda: tf.random.gamma([], 0.3),
    "RandomPoissonV2 (step)": lambda: tf.random.poisson([], 0.3),
    "RandomStandardNormal (step)": lambda: tf.vectorized_map(
        lambda x: x + tf.random.normal([]), tf.zeros(2)
    ),
    "LogUniformCandidateSampler (step)": lambda: tf.random.log_uniform_candidate_sampler(
        tf.constant([[1]], tf.int64), 1, 2, True, 9
    )[0],
    "RandomShuffle (called with seed=3)": lambda: None,
}


def test_what_stays_hidden_is_named_after_the_first_step(tmp_path: Path) -> None:
    def program(make: MakeLoop) -> Any:
        state = {"value": tf.Variable(0.0)}

        @tf.function
        def step() -> Any:
            return [draw() for draw in HIDDEN.values()]

        loop = make(state, steps_per_epoch=3, epochs=2)
        for _ in loop:
            tf.random.shuffle([1, 2, 3])  # each call has a seed of its own
            tf.random.shuffle([1, 2, 3], seed=3)
            step()
        return loop, state

    run(program, tmp_path)
    events = [json.loads(line) for line in log_of(tmp_path).splitlines()]
    named = [event["ops"] for event in events if event["event"] == "inexact_ops_found"]
    assert [sorted(ops) for ops in named] == [sorted(HIDDEN)]


def test_functions_of_pipelines_and_files_keep_tensorflows_ops(tmp_path: Path) -> None:
    """A variable that nobody tracks would make an export fail."""
    begin_process()
    data = tf.data.Dataset.range(3).map(lambda _: tf.random.normal([]))
    assert len({float(x) for x in data}) == 3
    model = noisy()
    model.export(tmp_path / "exported", verbose=False)
    assert random_streams.new_hidden_ops() == []
    again = tf.saved_model.load(tmp_path / "exported")
    assert np.asarray(again.serve(X[:2])).shape == (2, 3)
    assert random_streams.capture() == {}
    named = random_streams.new_hidden_ops()  # their state is in kernels that nobody can read
    assert named
    assert all(op.endswith(" (in a SavedModel)") for op in named)


def test_a_seed_begins_the_numbers_again() -> None:
    begin_process(7)
    step = tf.function(lambda: tf.random.normal([]))
    first = [float(step()), float(step())]
    tf.random.set_seed(7)
    assert [float(step()), float(step())] == first


def log_of(folder: Path) -> str:
    return (folder / "attempts" / "0001" / "log.jsonl").read_text()

"""Variables and attributes that Keras does not track are restored, however a step is run."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.support.loop_harness import MakeLoop, assert_as_plain, assert_same_loop, run, run_plain
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    train,
)

X = np.random.default_rng(3).normal(size=(12, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


class Warmup(layers.Layer):
    """Grows from 0 to 1 over its first calls, which variables in its attributes count."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0.0, trainable=False)
        self.more = {"list": [tf.Variable(0.0, trainable=False)]}
        self.own = SimpleNamespace(calls=tf.Variable(0.0, trainable=False))

    def counters(self) -> list[Any]:
        return [self.calls, self.more["list"][0], self.own.calls]

    def call(self, x: Any, training: bool | None = None) -> Any:
        if training:
            for counter in self.counters():
                counter.assign_add(1.0)
        return x * (1 - tf.exp(-sum(self.counters()) / 30))


def build(eager: bool = True) -> Any:
    model = keras.Sequential([layers.Input((4,)), Warmup(), layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=eager)
    return model


@pytest.mark.parametrize("eager", [True, False])
def test_they_are_restored_in_fit(eager: bool, tmp_path: Path) -> None:
    arguments = {"x": X, "y": Y, "batch_size": 4, "epochs": 3, "save_every": 2}
    script = Script(lambda: build(eager), arguments)
    untouched = train(script, tmp_path / "a")
    with pytest.raises(Death), dying_at(5):
        train(script, tmp_path / "b")
    resumed = train(script, tmp_path / "b")
    assert_same_end(untouched, resumed)
    found = [[float(v) for v in e.model.layers[0].counters()] for e in (untouched, resumed)]
    assert found[0] == found[1] == [9, 9, 9]


def by_hand(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
    model = build(eager=False)
    loop = make({"model": model}, (X, Y), batch_size=4, epochs=3, shuffle=False)
    for x, y in loop:
        loop.log(model.train_on_batch(x, y, return_dict=True))
    return loop, {"model": model, "calls": [v.numpy() for v in model.layers[0].counters()]}


def test_they_are_restored_in_a_loop(tmp_path: Path) -> None:
    whole = run(by_hand, tmp_path / "whole")
    assert_as_plain(whole, run_plain(by_hand))
    with pytest.raises(Death), dying_at(5):
        run(by_hand, tmp_path / "parts", save_every="2")
    assert_same_loop(whole, run(by_hand, tmp_path / "parts", save_every="2"))


class Rising(layers.Layer):
    """Keeps all its state in Python: what a compiled step reads once and an eager one each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.by = 0, 1.0
        self.seen: list[float] = []
        self.memory: Any = None
        self.random, self.sums = np.random.default_rng(1), np.zeros(1)
        self.own = SimpleNamespace(calls=0, last=deque(maxlen=2))

    def call(self, x: Any, training: bool | None = None) -> Any:
        if training:
            self.calls += 1
            self.own.calls += 1
            self.own.last.append(self.calls)
        if training and tf.executing_eagerly():
            self.seen.append(float(np.asarray(x)[0, 0]))
            self.memory = x[:1] * self.random.random()
            self.sums += self.random.random()
        if not tf.executing_eagerly():  # Keras traces more often, and a trace counts as a call
            return x * self.by
        shift = 0.0 if self.memory is None else self.memory
        return x * self.by * (1 - tf.exp(-(self.calls + self.own.calls) / 9.0)) + shift


class Counting(keras.metrics.Metric):
    def __init__(self) -> None:
        super().__init__(name="counting")
        self.updates = 0

    def update_state(self, *args: Any, **options: Any) -> None:
        self.updates += int(tf.executing_eagerly())

    def result(self) -> Any:
        return float(self.updates)


class Fading(keras.losses.Loss):
    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, float] = {"now": 1.0}

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self.weights["now"] *= 0.9 if tf.executing_eagerly() else 1.0
        return keras.ops.mean((y_true - y_pred) ** 2) * self.weights["now"]


class Steps(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that a callback changes."""

    def __init__(self) -> None:
        self.scale = 0.1

    def __call__(self, step: Any) -> Any:
        return self.scale / (1 + keras.ops.cast(step, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {}


class InAStep(layers.Layer):
    """Python code in a compiled step, with a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def _scale(self, x: Any) -> Any:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)

    def call(self, x: Any) -> Any:
        scaled = tf.numpy_function(self._scale, [x], tf.float32, stateful=True)
        return tf.stop_gradient(tf.ensure_shape(scaled, x.shape))


class Rates(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.layers[2].rate = 0.0
            self.model.layers[1].by = 2.0
            self.model.layers[3].trainable = False
            self.model.optimizer._learning_rate.scale = 0.2


def in_python(eager: bool) -> Any:
    parts = [InAStep(), Rising(), layers.Dropout(0.5), layers.Dense(4), layers.Dense(1)]
    model = keras.Sequential([layers.Input((4,)), *parts])
    model.compile(keras.optimizers.SGD(Steps()), Fading(), metrics=[Counting()], run_eagerly=eager)
    return model


def python_state(model: Any) -> list[Any]:
    rising = model.layers[1]
    memory = None if rising.memory is None else np.asarray(rising.memory).tolist()
    held = [rising.calls, rising.by, list(rising.seen), memory, vars(rising.own), rising.sums]
    return [*held, model.layers[2].rate, model.layers[3].trainable, model.loss.weights]


@pytest.mark.parametrize("eager", [True, False])
def test_attributes_go_on_in_fit_where_they_count(eager: bool, tmp_path: Path) -> None:
    arguments = {"x": X, "y": Y, "batch_size": 4, "epochs": 3, "shuffle": False}
    script = Script(lambda: in_python(eager), arguments, lambda: [Rates()])
    theirs = keras_fit(script)
    for step in (1, 2, 5, 7):
        with pytest.raises(Death), dying_at(step):
            train(script.but(save_every=1), tmp_path)
    resumed = train(script.but(save_every=1), tmp_path)
    assert_same_end(theirs, resumed, rows=False)
    if eager:
        assert python_state(resumed.model) == python_state(theirs.model)


def eager_loop(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
    """A GradientTape, two layers and a metric in Python, and a change in the second epoch."""
    model, counting = in_python(eager=False), Counting()
    loop = make({"model": model, "m": counting}, (X, Y), batch_size=4, epochs=3, shuffle=False)
    for x, y in loop:
        if loop.epoch == 1 and loop.batch == 0:
            model.layers[2].rate, model.layers[1].by = 0.0, 2.0
        with tf.GradientTape() as tape:
            loss = model.loss(y, model(x, training=True))
        weights = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, weights), weights)
        counting.update_state()
        loop.log(loss=loss, counted=counting.result())
    return loop, {"model": model, "python": [repr(python_state(model)), counting.updates]}


def compiled_loop(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
    """What the body sets after the trace does not count; what it sets before that does."""
    model = in_python(eager=False)
    loop = make({"model": model}, (X, Y), batch_size=4, epochs=3, shuffle=False)
    for x, y in loop:
        if loop.step in (0, 4):
            model.layers[2].rate, model.layers[1].by = 0.1, 3.0 + loop.step
        loop.log(model.train_on_batch(x, y, return_dict=True))
    return loop, {"model": model}


@pytest.mark.parametrize("program", [eager_loop, compiled_loop])
def test_attributes_go_on_in_a_loop_where_they_count(program: Any, tmp_path: Path) -> None:
    whole = run(program, tmp_path / "whole")
    assert_as_plain(whole, run_plain(program))
    for step in (1, 2, 5, 7):
        with pytest.raises(Death), dying_at(step):
            run(program, tmp_path / "parts", save_every="1")
    assert_same_loop(whole, run(program, tmp_path / "parts", save_every="1"))


class Lookup(layers.Layer):
    """Looks up in a table that the model's build gives to it, as retrieval layers do."""

    table: Any = None

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(self.table))


class Sharing(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lookup = layers.Dense(3), Lookup()

    def build(self, input_shape: Any) -> None:
        self.embed.build(input_shape)
        self.lookup.table = self.embed.kernel
        self.lookup.build((None, 3))
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        return self.lookup(self.embed(x))


def test_a_variable_that_the_first_step_shares_stays_shared(tmp_path: Path) -> None:
    def build() -> Any:
        model = Sharing()
        model.compile("adam", "mse")
        return model

    script = Script(build, {"x": X, "y": X, "batch_size": 4, "epochs": 2, "shuffle": False})
    whole = keras_fit(script)
    for step in (2, 5):
        with pytest.raises(Death), dying_at(step):
            train(script, tmp_path, save_every=1)
    end = train(script, tmp_path, save_every=1)
    assert_same_end(whole, end, rows=False)
    assert end.model.lookup.table is end.model.embed.kernel

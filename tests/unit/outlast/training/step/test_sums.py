"""Sums whose order TensorFlow leaves to a race are found, and are added in one order instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import context

from outlast.training.keras_internals.summation import one_by_one
from outlast.training.step.compiled_steps import CompiledSteps
from outlast.training.step.sums import racy_sums
from tests.support.training_harness import Script, assert_same_end, train

A = tf.constant(np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4))


def found_in(function: Callable[..., Any], *arguments: Any) -> list[str]:
    traced = tf.function(function, autograph=False).get_concrete_function(*arguments)
    return racy_sums(traced.graph.as_graph_def())


def parts(a: Any) -> tuple[Any, Any, Any]:
    return tf.tanh(a), tf.sinh(a), tf.cosh(a)


def test_add_n_whose_addends_nobody_else_reads_has_one_order() -> None:
    assert found_in(lambda a: tf.add_n(parts(a)), A) == []


def test_another_reader_of_a_late_addend_may_decide() -> None:
    def total(a: Any) -> Any:
        x, y, z = parts(a)
        # x and y are read elsewhere: z may be the first buffer that is free, or x is
        return tf.add_n([x, y, z]), tf.matmul(x, a), tf.matmul(y, a)

    assert len(found_in(total, A)) == 1


def test_between_the_first_two_addends_the_order_is_the_same() -> None:
    def total(a: Any) -> Any:
        x, y, z = parts(a)
        return tf.add_n([x, y, z]), tf.matmul(x, a)  # y is free at any rate

    assert found_in(total, A) == []


def test_a_reader_that_the_sum_waits_for_has_finished() -> None:
    def total(a: Any) -> Any:
        x, y, _ = parts(a)
        return tf.add_n([tf.matmul(x, a), tf.matmul(y, a), x])

    assert found_in(total, A) == []


def test_an_addend_that_is_returned_as_well_counts_as_read() -> None:
    def total(a: Any) -> Any:
        x, y, z = parts(a)
        return tf.add_n([x, y, z]), x, y

    assert len(found_in(total, A)) == 1


def test_constants_and_variables_are_never_added_into() -> None:
    variable = tf.Variable(A)

    def total(a: Any) -> Any:
        held = variable.read_value()
        return tf.add_n([held, tf.constant(np.ones((4, 4), np.float32)), tf.tanh(a)]), held

    assert found_in(total, A) == []


def test_nested_additions_may_become_one_sum() -> None:
    def total(a: Any) -> Any:
        x, y, z = parts(a)
        return x + (y + z), tf.matmul(y, a)

    assert len(found_in(total, A)) == 1


def test_an_addition_that_is_used_elsewhere_stays_one() -> None:
    def total(a: Any) -> Any:
        x, y, z = parts(a)
        two = y + z
        return x + two, tf.matmul(two, a), tf.matmul(y, a)

    assert found_in(total, A) == []


def test_sums_in_functions_are_seen() -> None:
    @tf.function(autograph=False)
    def inner(a: Any) -> Any:
        x, y, z = parts(a)
        return tf.add_n([x, y, z]), tf.matmul(x, a), tf.matmul(y, a)

    assert len(found_in(lambda a: inner(a), A)) == 1


# -- what is done about them ----------------------------------------------------------------------


def most_added(function: Callable[[], Any]) -> int:
    """Return how many addends the largest AddN has, in the graphs that TensorFlow runs."""
    here = context.context()
    here.enable_run_metadata()
    try:
        function()
        found = here.export_run_metadata()
    finally:
        here.disable_run_metadata()
    graphs = [one.post_optimization_graph for one in found.function_graphs]
    nodes = [
        n for g in graphs for n in [*g.node, *(x for f in g.library.function for x in f.node_def)]
    ]
    assert nodes
    return max((len(node.input) for node in nodes if node.op == "AddN"), default=0)


def gradient_of_three(a: Any) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(a)
        total = tf.reduce_sum(tf.tanh(a)) + tf.reduce_sum(tf.sinh(a)) + tf.reduce_sum(tf.cosh(a))
    return tape.gradient(total, a)


def nested(a: Any) -> Any:
    x, y, z = parts(a)
    return x + (y + z)


@pytest.mark.parametrize("function", [gradient_of_three, nested])
def test_one_by_one_leaves_no_sum_to_add_n(function: Callable[[Any], Any]) -> None:
    plain = tf.function(function, autograph=False)
    assert most_added(lambda: plain(A)) == 3
    ordered = tf.function(function, autograph=False)

    def call() -> Any:
        with one_by_one():
            return ordered(A)

    assert most_added(call) == 0
    np.testing.assert_allclose(call(), plain(A), rtol=1e-6)
    again = tf.function(function, autograph=False)
    assert most_added(lambda: again(A)) == 3  # outside of the block all is as before


class Trackers(keras.Model):  # type: ignore[misc]
    """A VAE's train step in small: a sum of losses whose parts have trackers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(4)
        self.trackers = [keras.metrics.Mean(name=name) for name in ("loss", "first", "second")]

    @property
    def metrics(self) -> list[Any]:
        return self.trackers

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y = self.dense(x)
            first, second = tf.reduce_mean(y * y), tf.reduce_mean(tf.exp(y))
            loss = first + second
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for tracker, value in zip(self.trackers, (loss, first, second), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def tracked() -> Any:
    model = Trackers()
    model.compile("adam")
    return model


X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
SCRIPT = Script(tracked, {"x": X, "batch_size": 8, "epochs": 2})


def test_steps_with_racy_sums_add_one_by_one(tmp_path: Path) -> None:
    model = tracked()
    model(X[:1])
    steps = CompiledSteps(model, (tf.constant(X), None, None), 8)
    steps.trace()
    order = np.arange(16).reshape(2, 8)
    assert most_added(lambda: steps.run(order)) < 3
    ends = [train(SCRIPT, tmp_path / name) for name in ("one", "two")]
    assert_same_end(ends[0], ends[1])

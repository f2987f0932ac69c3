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

from outlast.training.keras_internals.tracing import changing_graphs
from outlast.training.step.compiled_steps import CompiledSteps
from outlast.training.step.sums import RacySum, put_in_order, racy_sums
from tests.support.training_harness import Script, assert_same_end, train

A = tf.constant(np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4))


def found_in(function: Callable[..., Any], *arguments: Any) -> list[RacySum]:
    traced = tf.function(function, autograph=False).get_concrete_function(*arguments)
    return racy_sums(traced.graph.as_graph_def())


def parts(a: Any) -> tuple[Any, Any, Any]:
    return tf.tanh(a), tf.sinh(a), tf.cosh(a)


def test_add_n_without_other_readers_has_one_order() -> None:
    assert found_in(lambda a: tf.add_n(parts(a)), A) == []


def test_another_reader_of_an_addend_may_decide() -> None:
    def total(a: Any) -> Any:
        x, y, z = parts(a)
        return tf.add_n([x, y, z]), tf.matmul(x, a)  # z may be the first buffer that is free, or x

    assert len(found_in(total, A)) == 1


def test_a_reader_that_needs_the_sum_comes_after_it() -> None:
    def total(a: Any) -> Any:
        x, y, z = parts(a)
        return tf.matmul(x, tf.add_n([x, y, z]))

    assert found_in(total, A) == []


def test_an_addend_that_counts_twice_is_never_free() -> None:
    def total(a: Any) -> Any:
        x, y, _ = parts(a)
        return tf.add_n([x, x, y]), tf.matmul(x, a)

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


def run_graphs(function: Callable[[], Any]) -> list[Any]:
    """Return the graphs that TensorFlow runs, as Grappler has left them."""
    here = context.context()
    here.enable_run_metadata()
    try:
        function()
        found = here.export_run_metadata()
    finally:
        here.disable_run_metadata()
    graphs = [one.post_optimization_graph for one in found.function_graphs]
    assert any(graph.node for graph in graphs)
    return graphs


def racing(function: Callable[[], Any]) -> int:
    """Return how many sums race in the graphs that TensorFlow runs."""
    return sum(len(racy_sums(graph)) for graph in run_graphs(function))


def gradient_of_three(a: Any) -> Any:
    b = tf.sin(a)
    with tf.GradientTape() as tape:
        tape.watch(b)
        total = tf.reduce_sum(tf.tanh(b)) + tf.reduce_sum(tf.sinh(b) * a) + tf.reduce_sum(b * b)
        parts = tape.gradient(total, b)
    one, two = tf.cosh(a), tf.exp(a)
    return tf.add_n([one, two, parts]), tf.matmul(one, a), tf.matmul(two, a)


def nested(a: Any) -> Any:
    x, y, z = parts(a)
    return x + (y + z), tf.matmul(x, a), tf.matmul(y, a), tf.matmul(z, a)


def with_a_gradient_inside(a: Any) -> Any:
    """The gradient of a function is a function, too, and no tape adds it up."""

    @tf.function(autograph=False)
    def inner(a: Any) -> Any:
        x = tf.sin(a)
        one, two, three = tf.tanh(x), tf.sinh(x), tf.cosh(x)
        return one @ a, two @ a, three * x

    with tf.GradientTape() as tape:
        tape.watch(a)
        total = tf.add_n([tf.reduce_sum(part**3) for part in inner(a)])
    return tape.gradient(total, a)


def in_a_loop(a: Any) -> Any:
    return tf.while_loop(lambda i, _: i < 3, lambda i, b: (i + 1, added_twice(b)), (0, a))[1]


def added_twice(a: Any) -> Any:
    x, y, z = parts(a / 3)
    total = tf.add_n([x, y, z]) / 9
    return total @ (tf.matmul(x, a) @ tf.matmul(y, a)) @ tf.matmul(z, a)


@pytest.mark.parametrize("function", [gradient_of_three, nested, in_a_loop])
def test_sums_that_race_get_an_order(function: Callable[[Any], Any]) -> None:
    plain = tf.function(function, autograph=False)
    assert racing(lambda: plain(A)) > 0
    ordered = tf.function(function, autograph=False)
    with changing_graphs(put_in_order):
        ordered.get_concrete_function(A)
    assert racing(lambda: ordered(A)) == 0
    for one, two in zip(tf.nest.flatten(ordered(A)), tf.nest.flatten(plain(A)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    again = tf.function(function, autograph=False)
    assert racing(lambda: again(A)) > 0  # outside of the block all is as before


def test_branches_bodies_and_gradients_of_functions_are_seen() -> None:
    seen: list[str] = []
    with changing_graphs(lambda graph: seen.append(graph.name)):
        tf.function(in_a_loop, autograph=False).get_concrete_function(A)
        tf.function(with_a_gradient_inside, autograph=False).get_concrete_function(A)
    assert any("while_body" in name for name in seen)
    assert any("backward_inner" in name for name in seen)
    before = len(seen)
    tf.function(in_a_loop, autograph=False).get_concrete_function(A)
    assert len(seen) == before


def test_two_sums_that_each_read_what_the_other_adds_do_not_wait_in_a_circle() -> None:
    def both(a: Any) -> Any:
        x, y, z = parts(a)
        p, q, r = parts(a + 1)
        one, two = tf.add_n([z, x, y]), tf.add_n([r, p, q])
        # each sum's result is used by a reader of the other's addend
        return tf.matmul(x, two), tf.matmul(p, one), tf.matmul(z, a), tf.matmul(r, a)

    ordered = tf.function(both, autograph=False)
    with changing_graphs(put_in_order):
        assert racing(lambda: ordered(A)) == 0


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


def test_steps_with_racy_sums_add_in_one_order(tmp_path: Path) -> None:
    model = tracked()
    model(X[:1])
    steps = CompiledSteps(model, (tf.constant(X), None, None), 8)
    order = np.arange(16).reshape(2, 8)
    with changing_graphs(put_in_order):
        steps.trace()
        assert racing(lambda: steps.run(order)) == 0
    ends = [train(SCRIPT, tmp_path / name) for name in ("one", "two")]
    assert_same_end(ends[0], ends[1])

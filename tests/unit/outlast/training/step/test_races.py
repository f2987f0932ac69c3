"""What a phase traces: sums get one order everywhere, and other ops that race are named."""

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

from outlast import Loop, fit
from outlast.training.keras_internals import tracing
from outlast.training.step.sums import racy_sums
from tests.support.loop_harness import run
from tests.support.training_harness import begin_process, process

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def racing_sum(a: Any) -> Any:
    x, y, z = tf.tanh(a), tf.sinh(a), tf.cosh(a)
    read = tf.reduce_sum(tf.matmul(x, y, transpose_b=True) + tf.matmul(z, z, transpose_b=True))
    return tf.reduce_sum(tf.add_n([x, y, z])) + read


def counted(a: Any) -> Any:
    ids = tf.cast(tf.reshape(a, [-1]) > 0, tf.int32)
    return tf.reduce_sum(tf.math.bincount(ids, weights=tf.reshape(a, [-1]), minlength=2))


class OwnTest(keras.Model):  # type: ignore[misc]
    """Only its test_step has a sum that races, and an op that does."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def test_step(self, data: Any) -> dict[str, Any]:
        return {"sum": racing_sum(data[0]) + counted(data[0])}


def of_fit(folder: Path) -> None:
    begin_process()
    model = OwnTest()
    model.compile("sgd", "mse")
    y = X[:, :1]
    with process(folder):
        fit(model, X, y, validation_data=(X, y), epochs=1, verbose=0, job_dir=folder)


def of_a_loop(folder: Path) -> None:
    step = tf.function(lambda x: racing_sum(x) + counted(x))

    def program(make: Callable[..., Loop]) -> tuple[Loop, dict[str, Any]]:
        total = tf.Variable(0.0)
        loop = make({"total": total}, X, batch_size=4, epochs=1)
        for x in loop:
            total.assign_add(step(x))
        return loop, {"total": total}

    run(program, folder)


@pytest.mark.parametrize("train", [of_fit, of_a_loop])
def test_sums_in_functions_of_the_user_are_ordered_and_other_races_named(
    train: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    racing: list[int] = []
    make = tracing._make

    def counting(name: str, graph: Any, *arguments: Any, **options: Any) -> Any:
        nodes = [node for node in graph.as_graph_def().node if node.op == "AddN"]
        if len(nodes) == 1:
            racing.append(len(racy_sums(graph.as_graph_def())))
        return make(name, graph, *arguments, **options)

    monkeypatch.setattr(tracing, "_make", counting)
    train(tmp_path / "job")
    assert racing
    assert not any(racing)
    log = next((tmp_path / "job/attempts").glob("*/log.jsonl")).read_text().splitlines()
    warnings = [one for one in map(json.loads, log) if one["event"] == "racing_ops_found"]
    assert len(warnings) == 1
    assert "DenseBincount" in warnings[0]["ops"][0]


def test_counts_without_weights_do_not_race(tmp_path: Path) -> None:
    def program(make: Callable[..., Loop]) -> tuple[Loop, dict[str, Any]]:
        count = tf.function(lambda x: tf.math.bincount(tf.cast(x > 0, tf.int32)))
        total = tf.Variable([0, 0])
        loop = make({"total": total}, X[:, 0], batch_size=8, epochs=1)
        for x in loop:
            total.assign_add(count(x))
        return loop, {"total": total}

    run(program, tmp_path / "job")
    assert "racing_ops_found" not in (tmp_path / "job/attempts/0001/log.jsonl").read_text()

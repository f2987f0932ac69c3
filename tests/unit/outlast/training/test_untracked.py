"""Variables that Keras does not track go on over a death, however the step is run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.support.loop_harness import MakeLoop, assert_as_plain, assert_same_loop, run, run_plain
from tests.support.training_harness import Death, Script, assert_same_end, dying_at, train

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
def test_they_go_on_in_fit(eager: bool, tmp_path: Path) -> None:
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


def test_they_go_on_in_a_loop(tmp_path: Path) -> None:
    whole = run(by_hand, tmp_path / "whole")
    assert_as_plain(whole, run_plain(by_hand))
    with pytest.raises(Death), dying_at(5):
        run(by_hand, tmp_path / "parts", save_every="2")
    assert_same_loop(whole, run(by_hand, tmp_path / "parts", save_every="2"))

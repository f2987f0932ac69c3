"""Models that run eagerly: a step may do anything in Python, and makes its variables itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    train,
)
from tests.support.training_zoo import ARRAYS, TRACED, Own, X, Y, own


def eagerly(script: Script) -> Script:
    def build() -> Any:
        model = script.build()
        model.run_eagerly = True
        return model

    return script.with_build(build)


def ends_as_in_keras(script: Script, folder: Path) -> None:
    """Over deaths before the second step, in the first epoch and in the second one."""
    theirs = keras_fit(script)
    for step in (1, 2, 4):
        with pytest.raises(Death), dying_at(step):
            train(script.but(save_every=1), folder)
    assert_same_end(theirs, train(script.but(save_every=1), folder), rows=False)


EAGER = [name for name in TRACED if name != "xla"]


@pytest.mark.parametrize("name", EAGER)
def test_every_kind_of_training_ends_as_in_keras(tmp_path: Path, name: str) -> None:
    ends_as_in_keras(eagerly(TRACED[name]), tmp_path)


def share_of_hits(y_true: Any, y_pred: Any) -> Any:
    """A metric in NumPy, which fails for what it never sees in a training."""
    hits = np.asarray(y_true).reshape(-1) == np.argmax(np.asarray(y_pred), 1)
    assert len(hits) in (8, 3)
    return tf.constant(np.mean(hits), tf.float32)


class InPython(Own):
    """A call that branches on values, with a layer that it makes in its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.late: Any = None

    def call(self, x: Any, training: bool = False) -> Any:
        if self.late is None:
            self.late = layers.Dense(6, kernel_initializer="ones")
        if float(np.asarray(x).sum()) > 0:
            x = self.late(x) + np.float32(len(x))
        return super().call(self.late(x), training=training)


def counted() -> Any:
    model = keras.Sequential([layers.Input((6,)), layers.Dropout(0.2), layers.Dense(3)])
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[share_of_hits, "accuracy"],
        run_eagerly=True,
    )
    return model


PYTHON: dict[str, Script] = {
    "metric in numpy": Script(counted, ARRAYS),
    "call in python": Script(own(InPython, run_eagerly=True), ARRAYS),
    "validated": Script(counted, {**ARRAYS, "validation_data": (X[:8], Y[:8])}),
}


@pytest.mark.parametrize("name", PYTHON)
def test_a_step_may_call_numpy_and_branch_on_values(tmp_path: Path, name: str) -> None:
    ends_as_in_keras(PYTHON[name], tmp_path)


def batches() -> Iterator[Any]:
    while True:
        for first in (0, 8, 16):
            yield X[first : first + 8], Y[first : first + 8]


def test_a_step_in_numpy_trains_a_stream(tmp_path: Path) -> None:
    """Its metric refuses the zeros with which a resume would make the variables."""

    def script() -> Script:
        data = {"x": batches(), "epochs": 2, "steps_per_epoch": 3, "shuffle": False}
        return Script(counted, data)

    theirs = keras_fit(script())
    for step in (1, 2, 5):
        with pytest.raises(Death), dying_at(step):
            train(script().but(save_every=1), tmp_path)
    assert_same_end(theirs, train(script().but(save_every=1), tmp_path), rows=False)

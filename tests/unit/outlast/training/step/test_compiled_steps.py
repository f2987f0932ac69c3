"""The number of steps per compiled call changes no weight, no log and no history row."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

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
    steps_per_call,
    train,
)
from tests.support.training_zoo import ARRAYS, SAMPLES, TRACED, Raw, X, Y, model_of, own, tiny


def longer(script: Script) -> Script:
    """Return the script with ten batches per epoch (nine of 8 and one of 4) and two epochs."""
    size = script.arguments["batch_size"]
    part: dict[str, Any] = {}
    for name in ("x", "y", "sample_weight"):
        if name in script.arguments:
            part[name] = keras.tree.map_structure(
                lambda a: np.concatenate([a] * 5)[: 9 * size + 4], script.arguments[name]
            )
    return script.but(**part, shuffle=True, save_every=6)


@pytest.mark.parametrize(
    "name",
    [
        "mlp with dropout",
        "cnn, normalized and augmented",
        "two optimizers",
        "mixed_float16",
        "xla",
        "steps_per_execution",
    ],
)
def test_the_number_of_steps_per_call_and_a_kill_change_no_byte(tmp_path: Path, name: str) -> None:
    script = longer(TRACED[name])
    with steps_per_call(lambda step: 1) as sizes:
        one = train(script, tmp_path / "one")
    assert set(sizes) == {1}
    with steps_per_call(lambda step: 7) as sizes:
        assert_same_end(one, train(script, tmp_path / "seven"))
    assert max(sizes) == 6  # up to the next save
    with steps_per_call(lambda step: 1 + step % 4) as sizes:
        with pytest.raises(Death), dying_at(9):
            train(script, tmp_path / "mixed")
        assert_same_end(one, train(script, tmp_path / "mixed"))
    assert {1, 2, 3} <= set(sizes)


def test_each_batch_loss_is_the_loss_of_that_batch(tmp_path: Path) -> None:
    """It equals Keras' loss of the same batch with the same weights.

    The step is compiled and the comparison is eager, so float32 rounding is allowed.
    """
    expected: list[float] = []

    class Compute(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            part = slice(batch * 8, batch * 8 + 8)
            x, y, weight = X[part], Y[part], WEIGHTS[part]
            answer = self.model(x, training=True)
            expected.append(float(self.model.compute_loss(x, y, answer, weight, training=True)))

    def build() -> Any:
        return model_of(lambda: layers.Dense(3, kernel_regularizer="l2"))()

    WEIGHTS = np.linspace(0.1, 2, SAMPLES)
    script = Script(build, {**ARRAYS, "sample_weight": WEIGHTS})
    end = train(script.with_callbacks(lambda: [Compute()]), tmp_path / "a")
    told = [row["batch_loss"] for row in end.rows if row["kind"] == "step"]
    np.testing.assert_allclose(told, expected, rtol=1e-6)
    unwatched = train(script, tmp_path / "b")
    assert unwatched.rows == end.rows


def test_the_running_mean_is_the_mean_of_the_batch_losses(tmp_path: Path) -> None:
    end = train(TRACED["mlp with dropout"], tmp_path)
    steps = [row for row in end.rows if row["kind"] == "step"]
    assert steps[0]["logs"]["loss"] == steps[0]["batch_loss"]  # to the bit
    assert steps[3]["logs"]["loss"] == steps[3]["batch_loss"]  # a new epoch
    own_losses = np.array([row["batch_loss"] for row in steps[:3]])
    np.testing.assert_allclose(
        steps[2]["logs"]["loss"], np.average(own_losses, weights=[8, 8, 3]), rtol=1e-6
    )


def test_the_train_step_of_keras_is_traced_once(tmp_path: Path) -> None:
    """Tracing dominates the cost of a restart, and a trace that creates variables runs twice."""
    traced: list[Any] = []
    step = keras.Model.train_step

    def counted(self: Any, data: Any) -> Any:
        traced.append(self)
        return step(self, data)

    with mock.patch.object(keras.Model, "train_step", counted):
        train(Script(tiny(run_eagerly=False), ARRAYS), tmp_path)
    assert len(traced) == 1


def test_a_custom_train_step_that_reads_its_tracker_is_not_changed(tmp_path: Path) -> None:
    class Reading(keras.Model):
        """Its training depends on its running mean, so a reset of the mean changes the result."""

        def __init__(self) -> None:
            super().__init__()
            self.out = layers.Dense(3)
            self.tracker = keras.metrics.Mean(name="loss")

        @property
        def metrics(self) -> list[Any]:
            return [self.tracker]

        def call(self, x: Any) -> Any:
            return self.out(x)

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            scale = 1.0 + self.tracker.result()
            self.optimizer.apply([g * scale for g in gradients], self.trainable_variables)
            self.tracker.update_state(loss)
            return {"loss": self.tracker.result()}

    def build() -> Any:
        model = Reading()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    script = Script(build, ARRAYS)
    ours = train(script, tmp_path)
    assert_same_end(keras_fit(script), ours, rows=False)
    steps = [row for row in ours.rows if row["kind"] == "step"]
    # Here the own loss is a difference of float32 sums.
    means = np.cumsum([row["batch_loss"] for row in steps[:3]]) / [1, 2, 3]
    np.testing.assert_allclose([row["logs"]["loss"] for row in steps[:3]], means, rtol=1e-5)


def test_a_train_step_set_on_the_object_is_not_changed_either(tmp_path: Path) -> None:
    def build() -> Any:
        model = model_of(lambda: layers.Dense(3))()
        stock = model.train_step

        def train_step(data: Any) -> Any:
            before = model.metrics[0].result()
            logs = stock(data)
            return {**logs, "before": before}

        model.train_step = train_step
        return model

    script = Script(build, ARRAYS)
    assert keras_fit(script).history == train(script, tmp_path).history


def test_a_model_without_any_loss_log_has_no_batch_loss(tmp_path: Path) -> None:
    class Silent(Raw):
        def train_step(self, data: Any) -> dict[str, Any]:
            return {"other": super().train_step(data)["loss"]}

    end = train(Script(own(Silent), ARRAYS), tmp_path)
    steps = [row for row in end.rows if row["kind"] == "step"]
    assert all("batch_loss" not in row and "other" in row["logs"] for row in steps)

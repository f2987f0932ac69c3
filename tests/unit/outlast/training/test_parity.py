"""`fit` equals Keras' `Model.fit` on samples in the same order: every byte at the end of an
uninterrupted training, and of one that crashed on the way.

If floats differ for a reason, the test states it and the tolerance is float32 rounding.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast import fit
from outlast.training.data.permutation import epoch_order
from tests.support.training_harness import (
    Death,
    End,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    train,
)
from tests.support.training_zoo import (
    ARRAYS,
    MORE_TRACED,
    SAMPLES,
    TRACED,
    OwnTest,
    X,
    Y,
    cross_entropy,
    listed_outputs,
    own,
    tiny,
)

WEIGHTS = np.linspace(0, 2, SAMPLES)
HELD_OUT = (X[:7], Y[:7])

TWO_DIMENSIONS = np.linspace(0, 1, 3 * SAMPLES).reshape(SAMPLES, 3)


def of_sequences() -> Any:
    model = keras.Sequential([layers.Input((3, 2)), layers.Dense(4), layers.Dense(2)])
    model.compile("sgd", cross_entropy(), weighted_metrics=["accuracy"], run_eagerly=True)
    return model


EAGER: dict[str, Script] = {
    "own test_step": Script(
        own(OwnTest, run_eagerly=True), {**ARRAYS, "validation_data": HELD_OUT}
    ),
    "losses and metrics as lists": Script(listed_outputs, {**ARRAYS, "y": [Y, X[:, :1]]}),
    "run_eagerly": Script(tiny(), ARRAYS),
    "own train_step, eager": Script(own(run_eagerly=True), ARRAYS),
    "class_weight": Script(tiny(), {**ARRAYS, "class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}),
    "class_weight of one-hot targets": Script(
        tiny(loss="categorical_hinge"),
        {**ARRAYS, "y": np.eye(3)[Y], "class_weight": dict(enumerate(np.array([1, 2, 0.5])))},
    ),
    "sample_weight": Script(
        tiny(weighted_metrics=["accuracy"]), {**ARRAYS, "sample_weight": WEIGHTS}
    ),
    "temporal sample_weight": Script(
        of_sequences,
        {
            **ARRAYS,
            "x": X.reshape(SAMPLES, 3, 2),
            "y": (X.reshape(SAMPLES, 3, 2)[..., 0] > 0).astype("int32"),
            "sample_weight": TWO_DIMENSIONS,
        },
    ),
    "validation_split": Script(tiny(), {**ARRAYS, "validation_split": 0.25}),
    "validation_freq": Script(
        tiny(), {**ARRAYS, "epochs": 4, "validation_data": HELD_OUT, "validation_freq": 2}
    ),
    "validation_freq as a list": Script(
        tiny(), {**ARRAYS, "epochs": 4, "validation_data": HELD_OUT, "validation_freq": [1, 4]}
    ),
    "validation_steps and batch size": Script(
        tiny(),
        {
            **ARRAYS,
            "validation_data": (*HELD_OUT, np.arange(7.0)),
            "validation_batch_size": 2,
            "validation_steps": 2,
        },
    ),
    "validation of a dataset": Script(
        tiny(),
        {**ARRAYS, "validation_data": tf.data.Dataset.from_tensor_slices(HELD_OUT).batch(3)},
    ),
    "validation_data before validation_split": Script(
        tiny(), {**ARRAYS, "validation_data": HELD_OUT, "validation_split": 0.5}
    ),
    "initial_epoch": Script(tiny(), {**ARRAYS, "epochs": 3, "initial_epoch": 1}),
    "no epoch left": Script(tiny(), {**ARRAYS, "initial_epoch": 2}),
    "no epochs": Script(tiny(), {**ARRAYS, "epochs": 0}),
    "one batch": Script(tiny(), {**ARRAYS, "batch_size": 100}),
    "whole batches": Script(tiny(), {**ARRAYS, "x": X[:16], "y": Y[:16]}),
    "no batch_size": Script(tiny(), {**ARRAYS, "batch_size": None}),
    "tensors": Script(tiny(), {**ARRAYS, "x": tf.constant(X), "y": tf.constant(Y)}),
    "float64 and column targets": Script(
        tiny(), {**ARRAYS, "x": X.astype("float64"), "y": Y.reshape(-1, 1)}
    ),
    "the learning rate in the logs": Script(
        tiny(),
        ARRAYS,
        lambda: [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / (epoch + 1))],
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def trained_by_keras(script: Script) -> tuple[End, int]:
    """Return the end of a training by Keras, and its number of steps."""
    end = keras_fit(script)
    return end, int(end.model.optimizer.iterations)


def died_and_resumed(script: Script, folder: Path, steps: int) -> End:
    """Train with a crash on the way, after a step that was not saved."""
    if steps:
        with pytest.raises(Death), dying_at(min(3, steps)):
            train(script.but(save_every=2), folder)
    return train(script.but(save_every=2), folder)


@pytest.mark.parametrize("name", [*TRACED, *MORE_TRACED])
def test_compiled_training_ends_as_keras_does(tmp_path: Path, name: str) -> None:
    """With a crash; test_training_steps compares an uninterrupted one."""
    script = (TRACED | MORE_TRACED)[name]
    theirs, steps = trained_by_keras(script)
    assert len(theirs.epoch) == 2
    assert_same_end(theirs, died_and_resumed(script, tmp_path, steps), rows=False)


@pytest.mark.parametrize("name", EAGER)
def test_arguments_mean_what_they_mean_in_keras(tmp_path: Path, name: str) -> None:
    script = EAGER[name]
    theirs, steps = trained_by_keras(script)
    untouched = train(script, tmp_path / "untouched")
    resumed = died_and_resumed(script, tmp_path / "died", steps)
    assert_same_end(untouched, resumed)
    if not steps:
        # Keras has not traced anything, so metrics are not made; ours are, and untouched.
        resumed.state = {name: resumed.state[name] for name in theirs.state}
    assert_same_end(theirs, resumed, rows=False)


def test_the_loss_scale_falls_and_grows(tmp_path: Path) -> None:
    """So "loss scaling" has steps that change no weight, and crashes between two growths."""
    scales: list[float] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            scales.append(float(self.model.optimizer.dynamic_scale))

    train(MORE_TRACED["loss scaling"].with_callbacks(lambda: [Watch()]), tmp_path)
    assert {-1.0, 0.0, 1.0} == set(np.sign(np.diff(scales)))


class Permuted(keras.utils.PyDataset):
    """The samples of each epoch, in the order of `fit`."""

    def __init__(self, shuffle: Any) -> None:
        super().__init__()
        self._shuffle, self._epoch = shuffle, 0
        self._begun = False

    def __len__(self) -> int:
        return -(-SAMPLES // 8)

    def __getitem__(self, i: int) -> Any:
        chosen = epoch_order(SAMPLES, 8, self._shuffle, 5, self._epoch)[8 * i : 8 * i + 8]
        return X[chosen], Y[chosen]

    def on_epoch_end(self) -> None:
        # Keras calls it when it has made its iterator, too.
        self._epoch += self._begun
        self._begun = True


@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_shuffled_samples_are_trained_as_keras_trains_them_in_that_order(
    tmp_path: Path, shuffle: Any
) -> None:
    """The order differs from that of Keras, which no seed reproduces after a crash."""
    ordered = {"x": Permuted(shuffle), "y": None, "batch_size": None, "epochs": 3}
    theirs = keras_fit(Script(tiny(), {**ARRAYS, **ordered}))
    script = Script(tiny(), {**ARRAYS, "epochs": 3, "shuffle": shuffle, "seed": 5, "save_every": 2})
    for step in (2, 4, 7):
        with pytest.raises(Death), dying_at(step):
            train(script, tmp_path)
    assert_same_end(theirs, train(script, tmp_path), rows=False)
    assert theirs.history != keras_fit(script.but(shuffle=False)).history


def test_the_history_rows_are_keras_logs(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append((batch, dict(logs)))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append((epoch, dict(logs)))

    script = TRACED["many inputs and outputs"]
    theirs = keras_fit(script.with_callbacks(lambda: [Watch()]))
    ours = train(script, tmp_path)
    rows = [row for row in ours.rows if row["kind"] != "phase"]
    told = [(r["batch"] if r["kind"] == "step" else r["epoch"], r["logs"]) for r in rows]
    assert told == seen
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4]
    assert theirs.history == ours.history


def test_the_arguments_are_those_of_keras_in_the_same_order() -> None:
    def told(function: Any) -> list[tuple[str, Any]]:
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert told(fit)[1:] == told(keras.Model.fit)[1:]

"""Trainings whose data depends on what was read before: killed, they end with the right losses.

The right values are those of TensorFlow 2.21 and Keras 3.15 on a CPU, untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from outlast import fit
from outlast.training.phase import Phase
from tests.support.training_harness import (
    Death,
    Script,
    all_state,
    assert_same_end,
    begin_process,
    dying_at,
    process,
    train,
)

D = tf.data.Dataset


def samples() -> Any:
    x = tf.random.normal((400, 4))
    return D.from_tensor_slices((x, tf.reduce_sum(x, 1, keepdims=True)))


def shuffled_before_cache() -> dict[str, Any]:
    return {"x": samples().shuffle(400, seed=1).batch(16).cache(), "epochs": 6}


def taken_and_skipped() -> dict[str, Any]:
    ds = samples().shuffle(400, seed=9)
    train, validation = ds.take(300).batch(16), ds.skip(300).batch(16)
    return {"x": train, "validation_data": validation, "epochs": 6}


def drawn_from_numpy() -> dict[str, Any]:
    x = np.random.normal(size=(60, 4)).astype("float32")
    y = x.sum(1, keepdims=True)

    def batches() -> Iterator[Any]:
        while True:
            i = np.random.randint(0, 60, 10)
            yield x[i], y[i]

    return {"x": batches(), "steps_per_epoch": 6, "epochs": 4}


def script_of(make: Callable[[], dict[str, Any]], seed: int, optimizer: str) -> Script:
    arguments: dict[str, Any] = {}

    def build() -> Any:
        keras.utils.set_random_seed(seed)
        arguments.update({**make(), "save_every": 5})
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
        return model

    return Script(build, arguments)


CASES_OF_DATA = {
    "shuffle before cache": (shuffled_before_cache, 2, "adam", 60, [4.6469, 4.5010]),
    "take and skip": (taken_and_skipped, 2, "adam", 60, [4.6865, 4.5571]),
    "numpy's generator": (drawn_from_numpy, 1, "sgd", 15, [1.993, 1.8473]),
}


@pytest.mark.parametrize("name", CASES_OF_DATA)
def test_it_ends_with_the_right_losses(name: str, tmp_path: Path) -> None:
    make, seed, optimizer, step, right = CASES_OF_DATA[name]
    script = script_of(make, seed, optimizer)
    untouched = train(script, tmp_path / "untouched")
    for at in (3, step):
        with dying_at(at), pytest.raises(Death):
            train(script, tmp_path / "job")
    touched = train(script, tmp_path / "job")
    assert_same_end(touched, untouched)
    assert [round(v, 4) for v in touched.history["loss"][2:4]] == pytest.approx(right, abs=2e-4)


def test_the_next_phase_reads_on_where_a_finished_one_has_left_its_data(tmp_path: Path) -> None:
    """Also the validation data of the finished phase, and what filled its cache."""

    def run(folder: Path) -> Any:
        begin_process()
        ds = samples().shuffle(400, seed=9)
        data, validation = ds.take(300).batch(50), ds.skip(300).batch(50).cache()
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        histories = []
        with process(folder):
            for epochs in (2, 3):
                history = fit(
                    model,
                    data,
                    validation_data=validation,
                    epochs=epochs,
                    verbose=0,
                    job_dir=folder,
                    save_every=2,
                )
                histories.append(history.history)
        return histories, all_state(model)

    untouched = run(tmp_path / "untouched")
    with dying_in_phase(1, 8), pytest.raises(Death):
        run(tmp_path / "job")
    assert run(tmp_path / "job") == untouched


@contextmanager
def dying_in_phase(phase: int, step: int) -> Iterator[None]:
    record = Phase.record_steps

    def record_and_die(self: Phase, *args: Any) -> None:
        record(self, *args)
        if self.index == phase and self.step >= step:
            raise Death(step)

    with mock.patch.object(Phase, "record_steps", record_and_die):
        yield

"""Validation data of every kind: seen as Keras sees it, and again as before after any death.

What an evaluation leaves behind (a shuffle's next order, a generator's place) decides about the
next one, so the validation of a resumed epoch has to find the data as the untouched one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import pytest
import tensorflow as tf

from outlast.training.validation import StopProbe
from tests.support.data_models import compiled, nested_inputs, plain_model
from tests.support.data_samples import (
    BATCH,
    EPOCHS,
    Batches,
    Reshuffled,
    W,
    X,
    Y,
    augmented,
    finite,
    grain_dataset,
    nested_arrays,
    noisy,
    passes,
    slices,
    torch_loader,
    torch_noisy,
    torch_seeded,
)
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    keras_fit,
    stopping_at,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*ran out of data")


def weighted_model() -> Any:
    model = plain_model()
    return compiled(model, weighted_metrics=["mae"], run_eagerly=True)


def eager_model() -> Any:
    return compiled(plain_model(), run_eagerly=True)


def eager_nested() -> Any:
    model = nested_inputs()
    return compiled(model, loss={"sum": "mse", "mean": "mae"}, metrics=None, run_eagerly=True)


def nested() -> dict[str, Any]:
    arrays = nested_arrays()
    data = tuple(keras.tree.map_structure(lambda v: v[:20], arrays[name]) for name in ("x", "y"))
    return {"x": arrays["x"], "y": arrays["y"], "validation_data": data}


def of(make: Callable[[], Any], **rest: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"validation_data": make(), **rest}


def random_filter() -> tf.data.Dataset:
    return slices().filter(lambda x, y: tf.random.uniform([]) < 0.7).batch(BATCH)


VALIDATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": of(lambda: (X[:20], Y[:20]), validation_batch_size=BATCH),
    "arrays weighted": of(lambda: (X[:20], Y[:20], W[:20]), validation_batch_size=BATCH),
    "nested": nested,
    "split": lambda: {"validation_split": 0.3, "validation_batch_size": 5},
    "split weighted": lambda: {"validation_split": 0.3, "sample_weight": W},
    "every other epoch": of(passes, validation_steps=2, validation_freq=2, epochs=5),
    "chosen epochs": of(passes, validation_steps=2, validation_freq=[1, 3], epochs=5),
    "tf.data endless": of(lambda: slices().repeat().batch(BATCH), validation_steps=3),
    "tf.data shuffle": of(
        lambda: slices().shuffle(20, seed=3).repeat().batch(BATCH), validation_steps=3
    ),
    "tf.data of unknown size": of(
        lambda: slices().shuffle(20, seed=3).filter(lambda x, y: y[0] < 0.5).batch(BATCH)
    ),
    "tf.data random map": of(lambda: noisy().batch(BATCH), validation_steps=2),
    "tf.data random filter": of(random_filter),
    "tf.data layer map": of(lambda: augmented().batch(BATCH)),
    "PyDataset": of(Batches),
    "PyDataset reshuffled": of(Reshuffled, validation_steps=5),
    "PyDataset threads": of(lambda: Reshuffled(workers=2, max_queue_size=3)),
    "PyDataset threads, left over": of(
        lambda: Batches(workers=2, max_queue_size=3), validation_steps=5
    ),
    "generator": of(passes, validation_steps=5),
    "generator finite": of(finite),
    "torch shuffle": of(lambda: torch_loader(shuffle=True, seed=4)),
    "torch noise": of(torch_noisy, validation_steps=3),
    "torch beside torch": lambda: {
        "x": torch_seeded(),
        "y": None,
        "batch_size": None,
        "validation_data": torch_seeded(),
    },
    "grain": of(lambda: grain_dataset().batch(BATCH)),
}
MODELS = {
    "nested": eager_nested,
    "arrays weighted": weighted_model,
    "split weighted": weighted_model,
}


def script_of(name: str) -> Script:
    arguments: dict[str, Any] = {}

    def build() -> Any:
        model = MODELS.get(name, eager_model)()
        arguments.clear()
        arguments.update({"x": X, "y": Y, "batch_size": 16, "epochs": EPOCHS, "shuffle": False})
        arguments.update({"save_every": "2,epoch"})
        arguments.update(VALIDATIONS[name]())
        return model

    return Script(build, arguments)


@contextmanager
def during(validation: int, act: Callable[[StopProbe], None]) -> Iterator[None]:
    """Act after the first batch of the validation with this number in the process, from 1."""
    begun = [0]
    told = StopProbe.on_test_batch_end

    def on_test_batch_end(self: StopProbe, batch: int, logs: Any = None) -> None:
        begun[0] += batch == 0
        if (begun[0], batch) == (validation, 0):
            act(self)
        told(self, batch, logs)

    with mock.patch.object(StopProbe, "on_test_batch_end", on_test_batch_end):
        yield


def die(probe: StopProbe) -> None:
    raise Death


def ask_to_leave(probe: StopProbe) -> None:
    probe._ctx.stop.request("SIGTERM")


@pytest.mark.parametrize("name", VALIDATIONS)
def test_it_validates_as_keras_does_and_resumes(
    name: str, tmp_path: Path, require_package: Callable[[str], None]
) -> None:
    for package in ("torch", "grain"):
        if name.startswith(package):
            require_package(package)
    script, job = script_of(name), tmp_path / "job"
    untouched = train(script, tmp_path / "untouched")
    assert any(key.startswith("val_") for key in untouched.history)
    assert_same_end(keras_fit(script), untouched, rows=False)

    with during(1, die), pytest.raises(Death):
        train(script, job)
    with during(2, ask_to_leave), pytest.raises(SystemExit):
        train(script, job)
    steps = [row["step"] for row in untouched.rows if row["kind"] == "step"]
    with stopping_at(steps[-2]), pytest.raises(SystemExit):
        train(script, job)
    assert_same_end(train(script, job), untouched)

"""With several steps per execution, epochs, hooks and warnings are as in Keras for all data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    train,
)
from tests.support.training_zoo import SAMPLES, X, Y, quick

BATCHES = 7
SIZE = 3
assert -(-SAMPLES // SIZE) == BATCHES


class Calls(keras.callbacks.Callback):
    """Records the name and index of each training hook call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(("epoch begin", epoch))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(("epoch end", epoch, logs))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("begin", batch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("end", batch, logs))


def known() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(SIZE)


def endless() -> Any:
    return known().repeat()


def unknown() -> Any:
    return known().filter(lambda x, y: True)


def growing() -> Any:
    """A dataset whose first pass has 7 batches, and each later one 10."""
    passes = [0]

    def batches() -> Iterator[Any]:
        passes[0] += 1
        for i in range(BATCHES if passes[0] == 1 else 10):
            rows = np.arange(i, i + SIZE) % SAMPLES
            yield X[rows], Y[rows]

    spec = (tf.TensorSpec([None, 6], tf.float32), tf.TensorSpec([None], tf.int64))
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


class Sequence(keras.utils.PyDataset):
    @property
    def num_batches(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> Any:
        rows = slice(index * SIZE, (index + 1) * SIZE)
        return X[rows], Y[rows]


class Endless(keras.utils.PyDataset):
    """Infinite data, fetched by two threads. The end of each epoch changes what is fetched next."""

    def __init__(self) -> None:
        super().__init__(workers=2)
        self.epochs = 0

    @property
    def num_batches(self) -> None:
        return None

    def __getitem__(self, index: int) -> Any:
        rows = np.arange(index, index + SIZE) % SAMPLES
        return X[rows] + self.epochs, Y[rows]

    def on_epoch_end(self) -> None:
        self.epochs += 1


def generator() -> Iterator[Any]:
    for i in range(2 * BATCHES):
        rows = np.arange(i, i + SIZE) % SAMPLES
        yield X[rows], Y[rows]


KINDS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: X,
    "known": known,
    "endless": endless,
    "unknown": unknown,
    "growing": growing,
    "sequence": Sequence,
    "generator": generator,
}


def script(kind: str, execution: int, steps: int | None, epochs: int = 3) -> Script:
    options: dict[str, Any] = {"epochs": epochs, "steps_per_epoch": steps, "shuffle": False}
    if kind == "arrays":
        options |= {"y": Y, "batch_size": SIZE}
    return Script(quick(steps_per_execution=execution), options, lambda: [Calls()])


def cases() -> Iterator[tuple[str, int, int | None]]:
    yield "arrays", 2, 5
    for kind in KINDS:
        for execution in (1, 3):
            for steps in (None, 5, 10, -1):
                if kind != "endless" or steps in (5, 10):
                    yield kind, execution, steps


@pytest.mark.parametrize(("kind", "execution", "steps"), list(cases()))
def test_hooks_and_warnings_are_those_of_keras(
    tmp_path: Path, kind: str, execution: int, steps: int | None
) -> None:
    told, ends = [], []
    for theirs in (True, False):
        run = script(kind, execution, steps).but(x=KINDS[kind]())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ends.append(keras_fit(run) if theirs else train(run, tmp_path))
        told.append([str(w.message) for w in caught if "ran out" in str(w.message)])
    theirs, ours = ends
    assert ours.callbacks[0].seen == theirs.callbacks[0].seen
    assert told[1] == told[0]
    if steps == -1:  # which Keras' progress bar shows as the number of steps
        theirs.params["steps"] = ours.params["steps"]
    assert_same_end(theirs, ours, rows=False)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("kind", "execution", "steps"),
    [
        ("arrays", 3, 5),
        ("arrays", 2, -1),
        ("unknown", 3, None),
        ("known", 3, 10),
        ("sequence", 2, 5),
        ("generator", 3, 10),
        ("workers", 1, 5),
        ("workers", 3, 5),
    ],
)
def test_a_kill_within_an_execution_changes_nothing(
    tmp_path: Path, kind: str, execution: int, steps: int | None
) -> None:
    make = {**KINDS, "workers": Endless}[kind]
    run = script(kind, execution, steps).but(save_every=1)
    untouched = train(run, tmp_path / "untouched", x=make())
    for step in (4, 7, 8, 11):
        with pytest.raises(Death), dying_at(step):
            train(run, tmp_path / "killed", x=make())
    resumed = train(run, tmp_path / "killed", x=make())
    assert_same_end(untouched, resumed)
    assert resumed.callbacks[0].seen == untouched.callbacks[0].seen


def test_threads_that_read_ahead_change_no_batch(tmp_path: Path) -> None:
    ends = []
    for workers in (1, 2):
        data = Endless()
        data.workers = workers
        ends.append(train(script("endless", 1, 5).but(x=data), tmp_path / str(workers)))
    assert_same_end(*ends)

"""Two generators that change one object, and data that something else changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from outlast.training.data.shared_objects import shares
from tests.support.training_harness import Death, Script, assert_same_end, dying_at, train

X = np.random.default_rng(2).normal(size=(40, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


class Pool:
    def __init__(self) -> None:
        self.rows = list(range(40))

    def next(self) -> list[int]:
        taken, self.rows = self.rows[:4], [*self.rows[5:], *self.rows[:5]]
        return taken


def batches_of(draw: Callable[[], list[int]]) -> Iterator[Any]:
    while True:
        rows = draw()
        yield X[rows], Y[rows]


def from_pool() -> tuple[Any, Any]:
    pool = Pool()
    return batches_of(pool.next), batches_of(pool.next)


def from_queue() -> tuple[Any, Any]:
    queue = deque(range(40))

    def draw() -> list[int]:
        queue.rotate(-3)
        return [queue[i] for i in range(4)]

    return batches_of(draw), batches_of(draw)


def from_iterator() -> tuple[Any, Any]:
    numbers = iter(range(10_000))
    draw = lambda: [next(numbers) % 40 for _ in range(4)]  # noqa: E731
    return batches_of(draw), batches_of(draw)


def alone() -> tuple[Any, Any]:
    return batches_of(Pool().next), batches_of(Pool().next)


MADE = [from_pool, from_queue, from_iterator]


def test_shared_objects_are_found() -> None:
    assert all(shares(*make()) for make in MADE)
    assert not shares(*alone())


def script_of(make: Callable[[], dict[str, Any]]) -> Script:
    arguments: dict[str, Any] = {}

    def build() -> Any:
        arguments.update(make())
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    return Script(build, arguments)


@pytest.mark.parametrize("make", MADE)
def test_two_generators_of_one_object_are_read_on_exactly(
    make: Callable[[], tuple[Any, Any]], tmp_path: Path
) -> None:
    def data() -> dict[str, Any]:
        x, validation = make()
        steps = {"steps_per_epoch": 5, "validation_steps": 3, "epochs": 4}
        return {"x": x, "validation_data": validation, "save_every": 2, **steps}

    script = script_of(data)
    whole = train(script, tmp_path / "whole")
    for step in (4, 13):
        with dying_at(step), pytest.raises(Death):
            train(script, tmp_path / "killed")
    assert_same_end(train(script, tmp_path / "killed"), whole)


@pytest.mark.parametrize("kind", ["generator", "pipeline"])
@pytest.mark.parametrize("depends", [False, True])
def test_data_that_is_not_as_it_was_is_named(kind: str, depends: bool, tmp_path: Path) -> None:
    processes = 0

    def shifted(rows: Any) -> Any:
        return rows + np.float32(processes if depends else 0)

    def make() -> dict[str, Any]:
        nonlocal processes
        processes += 1
        if kind == "generator":
            x: Any = ((shifted(X[:4]), Y[:4]) for _ in range(10_000))
        else:
            x = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat()
            x = x.map(lambda x, y: (tf.numpy_function(shifted, [x], tf.float32), y))
            x = x.map(lambda x, y: (tf.ensure_shape(x, (None, 4)), y))
        return {"x": x, "steps_per_epoch": 4, "epochs": 3, "save_every": 3}

    script = script_of(make)
    with dying_at(7), pytest.raises(Death):
        train(script, tmp_path)
    train(script, tmp_path)
    log = (tmp_path / "attempts" / "0002" / "log.jsonl").read_text()
    assert ("is not the one that was trained on" in log) == depends

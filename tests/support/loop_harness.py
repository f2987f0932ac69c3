"""Hand-written trainings that can die and restart, compared with the same ones without Outlast.

A `Program` is what a user's file does: it builds its state, makes a loop of it, and runs a body
over the batches. `run` gives it our `Loop`, in a "process" of its own (see training_harness);
`run_plain` gives it `PlainLoop`, which is all that one would write by hand: two `for`s, a list of
what was logged, and means at the end of an epoch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast import Loop
from outlast.training.data.permutation import epoch_order
from outlast.training.state import trees
from tests.support.training_harness import all_state, begin_process, generators, process, rows

MakeLoop = Callable[..., Any]
Program = Callable[[MakeLoop], tuple[Any, dict[str, Any]]]


@dataclass
class LoopEnd:
    """Everything that a hand-written training leaves behind, as bytes and plain values."""

    state: dict[str, Any]
    history: dict[str, list[float]]
    epoch: list[int]
    generators: dict[str, Any]
    steps: int
    rows: list[dict[str, Any]] = field(default_factory=list)


class PlainLoop:
    """Batches of arrays in the simplest way, with the methods of `Loop`."""

    def __init__(
        self,
        state: Any,
        data: Any = None,
        *,
        batch_size: int = 32,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        **ignored: Any,
    ) -> None:
        self.epochs, self.epoch, self.batch, self.step = epochs, 0, 0, 0
        self.history = keras.callbacks.History()
        self.history.on_train_begin()
        self.last_batch = False
        self._data, self._size, self._steps = data, batch_size, steps_per_epoch
        self._shuffle, self._seed = shuffle, seed
        self._logged: list[tuple[dict[str, float], int]] = []
        self._fixed: dict[str, float] = {}
        self._stopped = False

    def __iter__(self) -> Iterator[Any]:
        for epoch in range(self.epochs):
            self.epoch = epoch
            self._logged, self._fixed = [], {}
            batches = self._batches()
            for self.batch, (batch, size) in enumerate(batches):
                self.last_batch = self.batch == len(batches) - 1
                self._logged.append(({}, size))
                yield batch
                self.step += 1
                if self._stopped:
                    break
            self._end_epoch()
            if self._stopped:
                break

    def _batches(self) -> list[tuple[Any, int]]:
        if self._data is None:
            assert self._steps is not None
            first = self.epoch * self._steps
            return [(step, 1) for step in range(first, first + self._steps)]
        if isinstance(self._data, tf.data.Dataset):
            found = list(self._data)
            return [(batch, len(keras.tree.flatten(batch)[0])) for batch in found]
        samples = len(keras.tree.flatten(self._data)[0])
        order = epoch_order(samples, self._size, self._shuffle, self._seed, self.epoch)
        chosen = [order[i : i + self._size] for i in range(0, samples, self._size)]
        return [(keras.tree.map_structure(lambda a, c=c: a[c], self._data), len(c)) for c in chosen]

    def _end_epoch(self) -> None:
        names = list(dict.fromkeys(name for logs, _ in self._logged for name in logs))
        means = {}
        for name in names:
            pairs = [(logs[name], size) for logs, size in self._logged if name in logs]
            values, sizes = zip(*pairs, strict=True)
            means[name] = float(np.average(values, weights=sizes))
        self.history.epoch.append(self.epoch)
        for name, value in {**means, **self._fixed}.items():
            self.history.history.setdefault(name, []).append(value)

    def log(self, values: Any = None, /, **more: Any) -> None:
        found = {name: float(value) for name, value in {**(values or {}), **more}.items()}
        self._logged[-1][0].update(found)

    def log_epoch(self, **values: Any) -> None:
        self._fixed.update({name: float(value) for name, value in values.items()})

    def stop(self) -> None:
        self._stopped = True


def run(program: Program, folder: Path, **changes: Any) -> LoopEnd:
    """Run the program with our `Loop`, as one process, to its end or its death."""
    begin_process()
    with process(folder):

        def make(state: Any, data: Any = None, **options: Any) -> Loop:
            return Loop(state, data, job_dir=folder, **{"verbose": 0, **options, **changes})

        loop, state = program(make)
        end = end_of(loop, state)
    end.rows = rows(folder)
    return end


def run_plain(program: Program) -> LoopEnd:
    """Run the program without Outlast."""
    begin_process()
    return end_of(*program(PlainLoop))


def end_of(loop: Any, state: dict[str, Any]) -> LoopEnd:
    return LoopEnd(
        state={name: of_part(part) for name, part in state.items()},
        history=loop.history.history,
        epoch=loop.history.epoch,
        generators=generators(),
        steps=loop.step,
    )


def of_part(part: Any) -> Any:
    """Return the exact bytes of a part of the state."""
    if isinstance(part, keras.Model):
        return all_state(part)
    if isinstance(part, keras.Variable | tf.Variable):
        return part.numpy().tobytes()
    if isinstance(part, keras.random.SeedGenerator | tf.random.Generator):
        return part.state.numpy().tobytes()
    if hasattr(part, "variables"):
        return [variable.numpy().tobytes() for variable in part.variables]
    if isinstance(part, random.Random):
        return part.getstate()
    if isinstance(part, np.random.Generator):
        return repr(part.bit_generator.state)
    try:
        return trees.fingerprint(part)
    except trees.NotPlain:
        pass
    if isinstance(part, dict):
        return {name: of_part(child) for name, child in part.items()}
    if isinstance(part, list | tuple):
        return [of_part(child) for child in part]
    return {name: of_part(child) for name, child in vars(part).items()}


def assert_same_loop(one: LoopEnd, two: LoopEnd, *, rows: bool = True) -> None:
    """Assert that two trainings ended with the same bytes everywhere."""
    assert list(one.state) == list(two.state)
    different = [name for name in one.state if one.state[name] != two.state[name]]
    assert different == []
    assert repr(one.history) == repr(two.history)
    assert list(one.history) == list(two.history)
    assert one.epoch == two.epoch
    assert one.generators == two.generators
    assert one.steps == two.steps
    if rows:
        assert one.rows == two.rows


def assert_as_plain(ours: LoopEnd, plain: LoopEnd) -> None:
    """Assert that our loop gave the plain loop's result: equal bytes, means equal to the last bits.

    The means are sums in another order of operations than numpy's average.
    """
    different = [name for name in plain.state if ours.state[name] != plain.state[name]]
    assert different == []
    assert ours.epoch == plain.epoch
    assert ours.steps == plain.steps
    assert list(ours.history) == list(plain.history)
    for name, values in plain.history.items():
        np.testing.assert_allclose(ours.history[name], values, rtol=1e-14, err_msg=name)
    assert ours.generators == plain.generators

"""Iterator-like data is unpacked into x, y and sample_weight as in Keras.

Keras documents for `Model.fit` that a tuple of one to three parts is (x, y, sample_weight), and
anything else is x. It does not specify lists and namedtuples; here they mean the same as in Keras.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.utils import unpack_x_y_sample_weight

from tests.support.training_harness import Script, keras_fit, train

X = np.arange(24, dtype="float32").reshape(8, 3)
Y = np.arange(8, dtype="float32").reshape(8, 1)
W = np.linspace(0.5, 1.5, 8, dtype="float32")

Reversed = namedtuple("Reversed", ["y", "x"])
Named = namedtuple("Named", ["x", "y", "z"])

FORMS: dict[str, Callable[[slice], Any]] = {
    "array": lambda at: X[at],
    "one": lambda at: (X[at],),
    "two": lambda at: (X[at], Y[at]),
    "three": lambda at: (X[at], Y[at], W[at]),
    "four": lambda at: (X[at], Y[at], W[at], W[at]),
    "dict": lambda at: {"a": X[at], "b": Y[at]},
    "dict of the names": lambda at: {"x": X[at], "y": Y[at]},
    "dict and targets": lambda at: ({"a": X[at], "b": Y[at]}, Y[at]),
    "nested": lambda at: ({"pair": (X[at], Y[at])}, {"p": Y[at], "q": W[at]}),
    "list": lambda at: [X[at], Y[at]],
    "list of inputs": lambda at: ([X[at], Y[at]], Y[at]),
    "namedtuple of two": lambda at: Reversed(Y[at], X[at]),
    "namedtuple of three": lambda at: Named(X[at], Y[at], W[at]),
}
BATCHES = [slice(0, 3), slice(3, 6), slice(6, 8)]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    def __init__(self, form: Callable[[slice], Any]) -> None:
        super().__init__()
        self.form = form

    def __len__(self) -> int:
        return len(BATCHES)

    def __getitem__(self, i: int) -> Any:
        return self.form(BATCHES[i])


def generator(form: Callable[[slice], Any]) -> Iterator[Any]:
    yield from map(form, BATCHES)


def dataset(form: Callable[[slice], Any]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(form(slice(0, 8))).batch(3)


def torch_loader(form: Callable[[slice], Any]) -> Any:
    import torch

    class Samples(torch.utils.data.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            return keras.tree.map_structure(lambda v: v[0], form(slice(i, i + 1)))

    return torch.utils.data.DataLoader(Samples(), batch_size=3)


def grain_dataset(form: Callable[[slice], Any]) -> Any:
    import grain

    return grain.MapDataset.source(BATCHES).map(form)


MAKERS: dict[str, Callable[[Callable[[slice], Any]], Any]] = {
    "tf.data": dataset,
    "PyDataset": Batches,
    "generator": generator,
    "torch": torch_loader,
    "grain": grain_dataset,
}


class Telling(keras.Model):
    """Records the structure of its input. Its loss is a sum over all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def call(self, x: Any) -> Any:
        return keras.tree.flatten(x)[0]

    def train_step(self, data: Any) -> dict[str, Any]:
        parts = [part for part in unpack_x_y_sample_weight(data) if part is not None]
        self.seen.add(repr(keras.tree.map_structure(lambda v: v.dtype.name, parts)))
        leaves = keras.tree.flatten(parts)
        return {"sum": tf.add_n([(i + 1) * tf.reduce_sum(v) for i, v in enumerate(leaves)])}


def script_of(kind: str, form: str) -> Script:
    arguments: dict[str, Any] = {}

    def build() -> Any:
        model = Telling()
        model.compile(run_eagerly=True)
        arguments.update({"x": MAKERS[kind](FORMS[form]), "epochs": 1, "shuffle": False})
        return model

    return Script(build, arguments)


def outcome(run: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        end = run()
    except Exception as error:  # noqa: BLE001 - which one it is is compared
        return ("refused", type(error).__name__)
    return ("taken", end.history, end.model.seen)


# Keras fails on these; here a list is a tuple, and a list of inputs one.
ONLY_HERE = {
    "PyDataset": {"list of inputs"},
    "generator": {"list", "list of inputs"},
    "torch": {"nested", "list of inputs"},
    "grain": {"list", "list of inputs"},
}


@pytest.mark.filterwarnings("ignore:.*ran out of data", "ignore:`shuffle=True`")
@pytest.mark.parametrize("kind", MAKERS)
def test_it_is_unpacked_as_in_keras(
    kind: str, tmp_path: Path, require_package: Callable[[str], None]
) -> None:
    if kind in ("torch", "grain"):
        require_package(kind)
    ours, theirs = {}, {}
    for form in FORMS:
        script = script_of(kind, form)
        theirs[form] = outcome(partial(keras_fit, script))
        ours[form] = outcome(partial(train, script, tmp_path / form))
    assert theirs["two"][0] == "taken"
    assert theirs["four"][0] == "refused"
    for form in ONLY_HERE.get(kind, ()):
        assert theirs.pop(form)[0] == "refused"
        assert ours.pop(form)[0] == "taken"
    assert ours == theirs

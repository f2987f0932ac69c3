"""A checkpoint that others have written sets no file, address or hook, and makes nothing large."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress
from typing import Any

import keras
import numpy as np
import pytest

from outlast.training.state import document, trees
from outlast.training.state.callback_state import CallbackStates
from outlast_checkpoints.errors import FormatError

CALLBACKS = [
    lambda: keras.callbacks.ModelCheckpoint("mine.weights.h5", save_weights_only=True),
    lambda: keras.callbacks.EarlyStopping(),
    lambda: keras.callbacks.ReduceLROnPlateau(),
    lambda: keras.callbacks.CSVLogger("mine.csv"),
    lambda: keras.callbacks.RemoteMonitor(root="http://localhost:1"),
    lambda: keras.callbacks.TensorBoard("mine"),
    lambda: keras.callbacks.BackupAndRestore("mine"),
    lambda: keras.callbacks.LambdaCallback(on_epoch_end=None),
    lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
    lambda: keras.callbacks.TerminateOnNaN(),
    lambda: Subclass("mine.weights.h5", save_weights_only=True),
]
HOSTILE: dict[str, Any] = {
    **dict.fromkeys(
        ["filepath", "_filepath", "filename", "root", "path", "field", "log_dir", "_train_dir"],
        "/etc/elsewhere",
    ),
    "headers": 7, "append": False, "save_freq": 1, "_model": 1, "model": 1, "_params": 1,
    "on_epoch_end": 1, "on_train_end": 1, "monitor": "x", "mode": "x", "__class__": 1,
    "nothing_of_this_name": 1, "send_as_json": 1, "double_checkpoint": 1, "backup_dir": "/",
}  # fmt: skip


class Subclass(keras.callbacks.ModelCheckpoint):
    """A user's class, whose own attributes are state, and Keras' are not."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.stage = "warm"


@pytest.mark.parametrize("make", CALLBACKS)
def test_settings_of_keras_callbacks_are_never_restored(make: Any) -> None:
    callback = make()
    states = CallbackStates([callback], {}, None)
    if isinstance(callback, Subclass):
        callback.on_train_begin()
    states.begin({})
    saved, objects = states.capture({}, {}, finished=False)
    name = f"{type(callback).__name__}#0"
    kept = {"stage": "hot"} if isinstance(callback, Subclass) else {}
    content = {"kind": "object", "attributes": {**HOSTILE, **kept}}
    of = objects["begun"]["known"].get(name, {}).get("of")
    objects["begun"]["known"][name] = {**content, **({"of": of} if of else {})}
    before = dict(vars(callback))
    lost = states.restore(saved, objects, {}, finished=False)
    after = dict(vars(callback))
    if isinstance(callback, Subclass):
        assert after.pop("stage") == "hot"
        before.pop("stage")
        for name in ("root", "path", "field", "filename", "log_dir", "_train_dir", "backup_dir"):
            after.pop(name, None)  # they are nothing to this class
    assert {name: after[name] for name in before} == before
    made = {name: after[name] for name in after.keys() - before.keys()}
    assert all(isinstance(value, int) for value in made.values()), made
    assert not any(name.startswith("on_") for name in made)
    assert any("callbacks[0].filepath" in one for one in lost)


def test_what_is_state_is_restored() -> None:
    values = {"best": 0.25, "wait": 3, "stopped_epoch": 7, "best_epoch": 2}
    callback = keras.callbacks.EarlyStopping()
    states = CallbackStates([callback], {}, None)
    callback.on_train_begin()
    states.begin({})
    for name, value in values.items():
        setattr(callback, name, value)
    saved, objects = states.capture({}, {}, finished=False)
    other = keras.callbacks.EarlyStopping()
    again = CallbackStates([other], {}, None)
    other.on_train_begin()
    again.begin({})
    assert again.restore(saved, objects, {}, finished=False) == []
    assert {name: getattr(other, name) for name in values} == values


def arrays(value: Any, **more: Any) -> dict[str, Any]:
    return {document.DOCUMENT: np.frombuffer(json.dumps(value).encode(), np.uint8), **more}


def test_an_array_is_used_once() -> None:
    big = np.zeros(1 << 20, np.uint8)
    hostile = arrays({"a": [{"$array": "tree/0", "scalar": False}] * 2000}, **{"tree/0": big})
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="twice"):
            document.unpack(hostile, "state.h5")
        assert tracemalloc.get_traced_memory()[1] < 3 * big.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "value",
    [
        {"$generator": {"bit_generator": name}}
        for name in ("test", "seed", "Nope", "Generator", "default_rng", 7, None, [])
    ]
    + [{form: value} for value in (None, 7, "x", [], {}, [[]], [1])
       for form in ("$int", "$float", "$bytes", "$floats", "$random", "$generator", "$randomstate",
                    "$array", "$deque", "$dict", "$ordered", "$counter", "$default", "$set")],
)  # fmt: skip
def test_a_wrong_document_is_a_format_error_or_harmless(value: Any) -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    with suppress(FormatError):
        document.unpack(arrays({"a": value}), "state.h5")
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index, union-attr]
    assert trees.decode({"a": 1}, {}) == {"a": 1}

"""The state of callbacks over a resume, and which callbacks need every batch.

A callback with `get_state` and `set_state` defines its state. For any other callback, the state
consists of the plain attributes (numbers, strings, arrays, and lists and dicts of them) that
changed since `on_train_begin`. So a resume restores EarlyStopping's patience, ModelCheckpoint's
best value, or a list to which a callback appends. It does not overwrite configuration with old
values, and does not touch functions and open files.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import callbacks as keras_callbacks

from outlast.training.errors import NotSupported
from outlast.training.keras_internals.callbacks import flush_events, is_hook_overridden, is_state
from outlast.training.state import trees
from outlast.training.state.callback_files import rows_written

Plain = dict[str, Any]


class CallbackStates:
    """The states of the callbacks of one `fit` call, identified by class and order.

    Create it right after `on_train_begin`. Attributes that keep the values they have then are
    configuration.
    """

    def __init__(self, callbacks: list[Any]) -> None:
        self.callbacks = callbacks
        self._baselines = [
            {} if _speaks(c) else {name: mark for name, _, mark in _plain_attributes(c)}
            for c in callbacks
        ]

    def capture(self) -> list[Plain]:
        """Return the class name and state of each callback. The arrays are not copied."""
        states = []
        for i, callback in enumerate(self.callbacks):
            state: Plain = {"class": type(callback).__name__}
            flush_events(callback)
            rows = rows_written(callback)
            if rows is not None:
                state["rows"] = rows
            if _speaks(callback):
                state["own"] = _spoken(callback)
            else:
                state["changed"] = {
                    name: value
                    for name, value, mark in _plain_attributes(callback)
                    if mark != self._baselines[i].get(name)
                }
            states.append(state)
        return states

    def restore(self, states: list[Plain]) -> list[str]:
        """Restore states that `capture` returned. Return the class names without a callback."""
        lost = []
        for state, callback in matched(states, self.callbacks):
            if callback is None:
                lost.append(state["class"])
            elif "own" in state:
                callback.set_state(state["own"])
            else:
                for name, value in state["changed"].items():
                    _put_back(callback, name, value)
        return lost


def matched(states: list[Plain], callbacks: list[Any]) -> Iterator[tuple[Plain, Any]]:
    """Yield each state with its callback, found by class and order, or with None."""
    left: dict[str, deque[Any]] = {}
    for callback in callbacks:
        left.setdefault(type(callback).__name__, deque()).append(callback)
    for state in states:
        of_class = left.get(state["class"])
        yield state, of_class.popleft() if of_class else None


def files_before(states: list[Plain], callbacks: list[Any]) -> list[tuple[Any, int | None]]:
    """Return the callbacks with a state, each with its file size in bytes at the checkpoint."""
    return [(c, state.get("rows")) for state, c in matched(states, callbacks) if c is not None]


def wants_batches(callback: Any) -> bool:
    """Return whether a callback has hooks for batches, so that it must be called at each one."""
    if type(callback) in (keras_callbacks.History, keras_callbacks.ProgbarLogger):
        return False
    if type(callback) is keras_callbacks.ModelCheckpoint and callback.save_freq == "epoch":
        return False
    hooks = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    return any(is_hook_overridden(getattr(callback, hook)) for hook in hooks)


def _put_back(callback: Any, name: str, value: Any) -> None:
    # Fill containers in place, because the script may hold the same list or dict.
    present: Any = getattr(callback, name, None)
    if _variable(present) is not None:
        _variable(present).assign(value)
    elif tf.is_tensor(present):
        setattr(callback, name, tf.convert_to_tensor(value))
    elif type(present) is not type(value):
        setattr(callback, name, value)
    elif isinstance(value, list | deque):
        present.clear()
        present.extend(value)
    elif isinstance(value, dict | set):
        present.clear()
        present.update(value)
    elif isinstance(value, random.Random):
        present.setstate(value.getstate())
    elif isinstance(value, np.random.Generator):
        present.bit_generator.state = value.bit_generator.state
    elif isinstance(value, np.random.RandomState):
        present.set_state(value.get_state(legacy=False))
    else:
        setattr(callback, name, value)


def _variable(value: Any) -> Any:
    """Return a variable itself, or the state variable of a SeedGenerator, or None."""
    if isinstance(value, keras.random.SeedGenerator):
        return value.state
    return value if isinstance(value, keras.Variable | tf.Variable) else None


def _spoken(callback: Any) -> Any:
    """Return a callback's `get_state()`. Raises `NotSupported` if it cannot be stored."""
    state = callback.get_state()
    try:
        trees.encode(state, {}, "get_state()")
    except trees.NotPlain as error:
        raise NotSupported(
            field="callbacks",
            problem=f"the state of {type(callback).__name__} cannot be stored: {error}",
            hint="Return numbers, strings, arrays, and lists and dicts of them from get_state().",
        ) from None
    return state


def _speaks(callback: Any) -> bool:
    return callable(getattr(callback, "get_state", None)) and callable(
        getattr(callback, "set_state", None)
    )


def _plain_attributes(callback: Any) -> Iterator[tuple[str, Any, bytes]]:
    """Yield the name, value and fingerprint of each attribute that is plain data."""
    for name, value in vars(callback).items():
        variable = _variable(value)
        if not is_state(callback, name) or (callable(value) and variable is None):
            continue
        if variable is not None or tf.is_tensor(value):
            value = np.array(tf.convert_to_tensor(value if variable is None else variable))
        try:
            yield name, value, trees.fingerprint(value)
        except trees.NotPlain:
            continue

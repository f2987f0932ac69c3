"""Callbacks over a resume: their state, and which of them want every batch.

State is what training changed: a callback with `get_state`/`set_state` speaks for itself; of any
other, the plain attributes (numbers, strings, arrays, lists, dicts of them) that differ from what
they were right after `on_train_begin` are kept. So configuration is never overwritten by an old
value, functions and open files are left alone, and EarlyStopping's patience, ModelCheckpoint's best
or a list that a user's callback appends to are all there after a resume.
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
    """The states of the callbacks of one fit, told apart by class and order.

    Create it right after `on_train_begin`, which marks what is configuration.
    """

    def __init__(self, callbacks: list[Any]) -> None:
        self.callbacks = callbacks
        self._baselines = [
            {} if _speaks(c) else {name: mark for name, _, mark in _plain_attributes(c)}
            for c in callbacks
        ]

    def capture(self) -> list[Plain]:
        """Return each callback's class name and state, whose arrays are still its own."""
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
        """Put back what `capture` returned; return the names of states that found no callback."""
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
    """Yield each state with its callback, by class and order; with None where there is none."""
    left: dict[str, deque[Any]] = {}
    for callback in callbacks:
        left.setdefault(type(callback).__name__, deque()).append(callback)
    for state in states:
        of_class = left.get(state["class"])
        yield state, of_class.popleft() if of_class else None


def files_before(states: list[Plain], callbacks: list[Any]) -> list[tuple[Any, int | None]]:
    """Return the callbacks that have a state, each with how much of its file the state counts."""
    return [(c, state.get("rows")) for state, c in matched(states, callbacks) if c is not None]


def wants_batches(callback: Any) -> bool:
    """Whether the callback does something at every batch, so that no batch may be skipped over."""
    if type(callback) in (keras_callbacks.History, keras_callbacks.ProgbarLogger):
        return False
    if type(callback) is keras_callbacks.ModelCheckpoint and callback.save_freq == "epoch":
        return False
    hooks = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    return any(is_hook_overridden(getattr(callback, hook)) for hook in hooks)


def _put_back(callback: Any, name: str, value: Any) -> None:
    # Containers are filled in place, since the script may hold the same list or dict itself.
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
    """Return the variable that `value` is or keeps its state in, None when it is none."""
    if isinstance(value, keras.random.SeedGenerator):
        return value.state
    return value if isinstance(value, keras.Variable | tf.Variable) else None


def _spoken(callback: Any) -> Any:
    """Return what a callback says of its state. Raises `NotSupported` for what cannot be stored."""
    state = callback.get_state()
    try:
        trees.encode(state, {}, "get_state()")
    except trees.NotPlain as error:
        raise NotSupported(
            field="callbacks",
            problem=f"the state of {type(callback).__name__} cannot be stored: {error}",
            hint="Return plain data: numbers, strings, arrays, lists and dicts of them.",
        ) from None
    return state


def _speaks(callback: Any) -> bool:
    return callable(getattr(callback, "get_state", None)) and callable(
        getattr(callback, "set_state", None)
    )


def _plain_attributes(callback: Any) -> Iterator[tuple[str, Any, bytes]]:
    """Yield name, value and fingerprint of the attributes that are plain data."""
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

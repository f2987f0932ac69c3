"""Callbacks over a resume: their state, and which of them want every batch.

State is what training changed: a callback with `get_state`/`set_state` speaks for itself; of any
other, the plain attributes (numbers, strings, arrays, lists, dicts of them) that differ from what
they were right after `on_train_begin` are kept. So configuration is never overwritten by an old
value, functions and open files are left alone, and EarlyStopping's patience, ModelCheckpoint's best
or a list that a user's callback appends to are all there after a resume.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from keras import callbacks as keras_callbacks
from keras.src.utils.python_utils import is_default

from service.training import trees

# Set anew in every process: `params` by set_params, `min_delta` by MonitorCallback, which turns its
# sign when it first learns the direction of its metric.
NOT_STATE = frozenset({"params", "_params", "model", "_model", "min_delta"})

Plain = dict[str, Any]


class CallbackStates:
    """The states of the callbacks of one fit, told apart by class and order.

    Create it right after `on_train_begin`, which marks what is configuration.
    """

    def __init__(self, callbacks: list[Any]) -> None:
        self.callbacks = callbacks
        self._baselines = [{} if _speaks(c) else _plain_attributes(c) for c in callbacks]

    def capture(self) -> list[Plain]:
        """Return each callback's class name and state; arrays in it are copied by the encoder."""
        states = []
        for i, callback in enumerate(self.callbacks):
            kind = type(callback).__name__
            if _speaks(callback):
                states.append({"class": kind, "own": callback.get_state()})
                continue
            now = _plain_attributes(callback)
            before = self._baselines[i]
            changed = {
                k: v for k, v in now.items() if k not in before or not trees.same(v, before[k])
            }
            states.append({"class": kind, "changed": changed})
        return states

    def restore(self, states: list[Plain]) -> list[str]:
        """Put back what `capture` returned; return the names of states that found no callback."""
        lost = []
        places: dict[str, list[int]] = {}
        for i, callback in enumerate(self.callbacks):
            places.setdefault(type(callback).__name__, []).append(i)
        for state in states:
            kind = state["class"]
            if not places.get(kind):
                lost.append(kind)
                continue
            i = places[kind].pop(0)
            callback = self.callbacks[i]
            if "own" in state:
                callback.set_state(state["own"])
                continue
            for name, value in state["changed"].items():
                _put_back(callback, name, value)
        return lost


def wants_batches(callback: Any) -> bool:
    """Whether the callback does something at every batch, so that no batch may be skipped over."""
    if type(callback) in (keras_callbacks.History, keras_callbacks.ProgbarLogger):
        return False
    if type(callback) is keras_callbacks.ModelCheckpoint and callback.save_freq == "epoch":
        return False
    hooks = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    return not all(is_default(getattr(callback, hook)) for hook in hooks)


def _put_back(callback: Any, name: str, value: Any) -> None:
    # Containers are filled in place, since the script may hold the same list or dict itself.
    present: Any = getattr(callback, name, None)
    if type(present) is not type(value) or not isinstance(value, list | dict | set | deque):
        setattr(callback, name, value)
        return
    present.clear()
    if isinstance(value, list | deque):
        present.extend(value)
    else:
        present.update(value)


def _speaks(callback: Any) -> bool:
    return callable(getattr(callback, "get_state", None)) and callable(
        getattr(callback, "set_state", None)
    )


def _plain_attributes(callback: Any) -> Plain:
    """Return copies of the attributes that are plain data."""
    found: Plain = {}
    for name, value in vars(callback).items():
        if name in NOT_STATE or callable(value):
            continue
        arrays: dict[str, Any] = {}
        try:
            document = trees.encode(value, arrays, name)
        except trees.NotPlain:
            continue
        found[name] = trees.decode(document, arrays)
    return found

"""The state of callbacks over a resume, and which callbacks need every batch.

A callback with `get_state` and `set_state` defines its state. For any other callback, the state is
what changed since `on_train_begin` in its attributes and in the objects that they refer to
(`object_graph`). So a resume restores EarlyStopping's patience, ModelCheckpoint's best value, a
list to which a callback appends, or a copy of the weights that it averages. It does not overwrite
configuration with old values, and does not touch functions and open files.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from keras import callbacks as keras_callbacks

from outlast.training.errors import NotSupported
from outlast.training.keras_internals.callbacks import flush_events, is_hook_overridden
from outlast.training.state import trees
from outlast.training.state.callback_files import rows_written
from outlast.training.state.object_graph import ObjectGraph, Unsaved
from outlast.training.state.object_restore import Restore
from outlast.training.state.unsaved_warnings import UnsavedWarnings

Plain = dict[str, Any]


class CallbackStates:
    """The states of the callbacks of one `fit` call, identified by class and order.

    Create it before `on_train_begin`, and call `begin` right after it. What keeps the value that it
    has then is configuration. `elsewhere` are objects by name that are saved elsewhere: the model
    and its parts.
    """

    def __init__(self, callbacks: list[Any], elsewhere: Plain, log: Any) -> None:
        self.callbacks = callbacks
        self._log = log
        self._names: dict[str, int] = {}  # index in `callbacks`
        self._roots: Plain = {}
        counts: Counter[str] = Counter()
        for i, callback in enumerate(callbacks):
            kind = type(callback).__name__
            name = f"{kind}#{counts[kind]}"
            counts[kind] += 1
            self._names[name] = i
            if not _has_own_state(callback):
                self._roots[name] = callback
        # A resume of a finished phase does not call `on_train_begin`.
        self._at_start = self._begun = ObjectGraph(self._roots, elsewhere)
        self._warnings = UnsavedWarnings(self._shown)

    def begin(self, elsewhere: Plain) -> None:
        """Record the objects as they are after `on_train_begin`."""
        self._begun = ObjectGraph(self._roots, elsewhere)

    def add_elsewhere(self, objects: Plain) -> None:
        """Add objects by name that are saved elsewhere, because the first step creates some."""
        for graph in (self._at_start, self._begun):
            graph.add_elsewhere(objects)

    def capture(
        self, variables: Plain, names: dict[int, str], *, finished: bool
    ) -> tuple[list[Plain], Plain]:
        """Return the class and own state of each callback, and what changed in objects.

        Both are plain data; the arrays are not copied. Adds the variables of the objects to
        `variables`, by names that `names` has by id. `finished` says whether the phase is finished.
        """
        states = []
        for callback in self.callbacks:
            state: Plain = {"class": type(callback).__name__}
            flush_events(callback)
            rows = rows_written(callback)
            if rows is not None:
                state["rows"] = rows
            if _has_own_state(callback):
                state["own"] = _own_state(callback)
            states.append(state)
        objects: Plain = {"begun": self._begun.capture(variables, names)}
        self.warn(self._begun.unsaved)
        if finished:
            objects["unbegun"] = self._at_start.capture(variables, names)
            lost = [u for u in self._at_start.unsaved if not u.of_process]
            objects["unsaved"] = [[u.path, u.kind] for u in lost]
        return states, objects

    def warn(self, unsaved: list[Unsaved]) -> None:
        """Log a warning for each thing that could not be stored, unless it had one before."""
        self._warnings.warn(unsaved, self._log)

    def restore(
        self, states: list[Plain], objects: Plain, variables: Plain, *, finished: bool
    ) -> list[str]:
        """Restore what `capture` returned. Return what has no place in the script, with reasons."""
        lost = []
        for state, callback in matched(states, self.callbacks):
            if callback is None:
                lost.append(state["class"])
            elif "own" in state:
                callback.set_state(state["own"])
        part = "unbegun" if finished else "begun"
        restore = Restore(self._at_start if finished else self._begun, objects[part], variables)
        restore.apply()
        unsaved = objects["unsaved"] if finished else []
        lost += [
            f"{self._shown(path)}: the phase was finished before, so on_train_begin was not "
            f"called, and only the script can create a {kind}"
            for path, kind in unsaved
        ]
        kinds = {name.partition("#")[0] for name in self._names}
        for path, problem in restore.problems:
            if path.partition("#")[0] in kinds or "#" not in path:
                lost.append(f"{self._shown(path)}: {problem}")
        return lost

    def _shown(self, path: str) -> str:
        name = re.split(r"[.\[]", path, maxsplit=1)[0]
        return f"callbacks[{self._names[name]}]{path[len(name) :]}" if name in self._names else path


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


def _own_state(callback: Any) -> Any:
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


def _has_own_state(callback: Any) -> bool:
    return callable(getattr(callback, "get_state", None)) and callable(
        getattr(callback, "set_state", None)
    )

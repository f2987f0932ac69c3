"""Callbacks over a resume: their state, and which of them want every batch.

State is what training changed: a callback with `get_state`/`set_state` speaks for itself; of any
other, what it and its objects held right after `on_train_begin` is compared with what they hold now
(`object_graph`). So configuration is never overwritten by an old value, functions and open files
are left alone, and EarlyStopping's patience, ModelCheckpoint's best, a list that a user's callback
appends to or a copy of the weights that it averages are all there after a resume.
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
from outlast.training.state.object_graph import ObjectGraph
from outlast.training.state.object_restore import Restore
from outlast.training.state.unsaved_warnings import UnsavedWarnings

Plain = dict[str, Any]


class CallbackStates:
    """The states of the callbacks of one fit, told apart by class and order.

    Create it before `on_train_begin` and call `begin` right after, which marks what is
    configuration. elsewhere: objects by name that are saved elsewhere, the model and its parts.
    """

    def __init__(self, callbacks: list[Any], elsewhere: Plain, log: Any) -> None:
        self.callbacks = callbacks
        self._elsewhere = elsewhere
        self._log = log
        self._names: dict[str, int] = {}  # place in the list
        self._roots: Plain = {}
        counts: Counter[str] = Counter()
        for i, callback in enumerate(callbacks):
            kind = type(callback).__name__
            name = f"{kind}#{counts[kind]}"
            counts[kind] += 1
            self._names[name] = i
            if not _speaks(callback):
                self._roots[name] = callback
        # A resume of a finished phase does not call `on_train_begin`.
        self._unbegun = self._begun = ObjectGraph(self._roots, elsewhere)
        self._warnings = UnsavedWarnings(self._shown)

    def begin(self) -> None:
        """Note what `on_train_begin` has made."""
        self._begun = ObjectGraph(self._roots, self._elsewhere)

    def capture(self, variables: Plain, *, finished: bool) -> tuple[list[Plain], Plain]:
        """Return each callback's class and own state, and what changed in the objects of others.

        All is plain data, whose arrays are still their own.

        variables: is filled with the variables, held. finished: the phase is.
        """
        states = []
        for callback in self.callbacks:
            state: Plain = {"class": type(callback).__name__}
            flush_events(callback)
            rows = rows_written(callback)
            if rows is not None:
                state["rows"] = rows
            if _speaks(callback):
                state["own"] = _spoken(callback)
            states.append(state)
        names: dict[int, str] = {}
        objects: Plain = {"begun": self._begun.capture(variables, names)}
        self._warnings.warn(self._begun.unsaved, self._log)
        if finished:
            objects["unbegun"] = self._unbegun.capture(variables, names)
            objects["unsaved"] = [[u.path, u.kind] for u in self._unbegun.unsaved]
        return states, objects

    def restore(
        self, states: list[Plain], objects: Plain, variables: Plain, *, finished: bool
    ) -> list[str]:
        """Put back what `capture` returned; return what found no place, each with the reason."""
        lost = []
        for state, callback in matched(states, self.callbacks):
            if callback is None:
                lost.append(state["class"])
            elif "own" in state:
                callback.set_state(state["own"])
        part = "unbegun" if finished else "begun"
        restore = Restore(self._unbegun if finished else self._begun, objects[part], variables)
        restore.apply()
        unsaved = objects["unsaved"] if finished else []
        lost += [
            f"{self._shown(path)}: nobody can make a {kind} anew, and a phase that was finished "
            "before does not call on_train_begin"
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

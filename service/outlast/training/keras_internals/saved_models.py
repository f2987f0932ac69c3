"""SavedModels that a script has loaded: their variables, and their random ops with hidden state.

Nothing traces the functions of a SavedModel again, so their random ops keep the kernels that hide
a counter. They are noted when such a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction
from tensorflow.python.saved_model import function_deserialization
from tensorflow.python.trackable.autotrackable import AutoTrackable

__all__ = ["AutoTrackable", "note_calls", "variables_below"]

_HIDDEN = "_outlast_hidden_ops"


def variables_below(value: Any) -> list[Any]:
    """Return the variables of an object of TensorFlow, at any depth, in a fixed order."""
    found = tf.train.TrackableView(value).descendants()
    return [one for one in found if isinstance(one, tf.Variable)]


def note_calls(hidden: Iterable[str], note: Callable[[str], None]) -> None:
    """Call `note` when a function of a SavedModel with one of these ops is called.

    It counts for SavedModels that are loaded from now on.
    """
    load, call = function_deserialization.load_function_def_library, ConcreteFunction._call_flat

    def noting_load(library: Any, *args: Any, **keywords: Any) -> Any:
        found = _ops_by_function(library, frozenset(hidden))
        functions = load(library, *args, **keywords)
        for name, function in functions.items():
            if found.get(name):
                vars(function)[_HIDDEN] = sorted(found[name])
        return functions

    def noting_call(self: Any, *args: Any, **keywords: Any) -> Any:
        for op in vars(self).get(_HIDDEN, ()):
            note(f"{op} (in a SavedModel)")
        return call(self, *args, **keywords)

    function_deserialization.load_function_def_library = noting_load
    ConcreteFunction._call_flat = noting_call


def _ops_by_function(library: Any, hidden: frozenset[str]) -> dict[str, set[str]]:
    """Return the hidden ops of each function, and of those that it calls."""
    calls: dict[str, set[str]] = {}
    for function in library.function:
        named = calls[function.signature.name] = set()
        for node in function.node_def:
            named.add(node.op)
            for attribute in node.attr.values():
                named.update(one.name for one in (attribute.func, *attribute.list.func))
    found = {name: named & hidden for name, named in calls.items()}
    for _ in calls:
        more = {
            name: ops.union(*(found.get(called, set()) for called in calls[name]))
            for name, ops in found.items()
        }
        if more == found:
            break
        found = more
    return found

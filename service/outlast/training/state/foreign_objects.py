"""Objects of libraries that the script's code names: whether they changed.

A checkpoint cannot contain them, and most never change: a client, a scaler that only transforms. So
they are named only once what they show has changed.
"""

from __future__ import annotations

import array
import collections
import io
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from outlast.training.state import plain_values, trees
from outlast.training.state.code_state import is_code
from outlast.training.state.function_state import MOST_BYTES, is_data
from outlast.training.state.object_kinds import kind_of

_DEPTH = 4  # of objects in objects
_MOST = 1000  # objects in one
_MAPPINGS = (dict, types.MappingProxyType)
_SEQUENCES = (list, tuple, collections.deque)
_NEVER = (type, types.ModuleType, threading.Event, threading.Condition)
_IN_MEMORY = (io.StringIO, io.BytesIO)
_BACKENDS = ("keras", "tensorflow", "optuna")


class ForeignObjects:
    """Remembers the objects of libraries that code named at the beginning, and what they showed."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[Any, Any]] = {}

    def sort_out(
        self, found: dict[str, Any], path: str, *, is_new: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what code names without objects of libraries, and those of them that changed.

        `found` is what the code at the path names. `is_new` says whether it was met only now.
        """
        foreign = {name: value for name, value in found.items() if _is_foreign(value)}
        changed = {}
        for name, value in foreign.items():
            mark = mark_of(value)
            before = self._before.setdefault(
                f"{path}.{name}", (value, mark) if is_new else (None, None)
            )
            if mark is not None and (before[0] is not value or before[1] != mark):
                changed[name] = value
        return {name: value for name, value in found.items() if name not in foreign}, changed


def _is_foreign(value: Any) -> bool:
    """Return whether a value is an object of a library, which no checkpoint can contain."""
    kind = type(value)
    known = kind in plain_values.SCALARS or plain_values.knows(value)
    known = known or isinstance(value, tuple | frozenset | np.generic) or is_code(value)
    iterates = isinstance(value, Iterator) and not isinstance(value, io.IOBase)
    return not known and not iterates and kind_of(kind) == "opaque"


def mark_of(value: Any) -> Any:
    """Return a mark that differs if what the object shows differs, or None if it shows nothing.

    What is open for a while, such as a file, a progress bar or a connection, belongs to the
    process and shows nothing. No code of the object runs.
    """
    opens = hasattr(type(value), "__exit__") and not isinstance(value, _IN_MEMORY)
    if opens or type(value).__module__.startswith(_BACKENDS):
        return None
    return trees.fingerprint(_shown(value, [_MOST], 0))


def _shown(value: Any, left: list[int], depth: int) -> Any:
    """Return what an object shows, as plain data. `left` is how many objects may follow."""
    kind = type(value)
    if kind in plain_values.SCALARS:
        return value
    left[0] -= 1
    if depth > _DEPTH or left[0] < 0 or is_code(value) or isinstance(value, _NEVER):
        return None
    if isinstance(value, np.ndarray | np.generic | np.random.Generator | np.random.RandomState):
        stored = not is_data(value) and plain_values.can_store(value)
        return {"value": value} if stored else None
    if isinstance(value, bytearray | array.array):
        return bytes(memoryview(value).cast("B")[:MOST_BYTES])
    if isinstance(value, _IN_MEMORY):
        return None if value.closed else value.tell()
    if isinstance(value, _MAPPINGS):
        return [[repr(key)[:99] if type(key) in plain_values.SCALARS else None,
                 _shown(child, left, depth + 1)]
                for key, child in list(value.items())[:_MOST]] + [len(value)]  # fmt: skip
    if isinstance(value, set | frozenset):
        return sorted(repr(one) for one in value if type(one) in plain_values.SCALARS)[:_MOST]
    if isinstance(value, _SEQUENCES):
        return [_shown(child, left, depth + 1) for child in list(value)[:_MOST]] + [len(value)]
    if kind.__module__.startswith(_BACKENDS):
        return None
    encoded = plain_values.encode(value)
    if encoded is not None:
        return encoded
    return _shown(dict(getattr(value, "__dict__", {})), left, depth)

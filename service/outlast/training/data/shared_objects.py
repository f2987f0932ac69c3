"""Objects that two Python iterators both refer to and may change: generators, lists, files."""

from __future__ import annotations

import io
import random
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.state.script_code import is_defined_by_script

_MUTABLE = (
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    random.Random,
    tf.random.Generator,
    keras.random.SeedGenerator,
    tf.Variable,
    list,
    dict,
    set,
    deque,
    bytearray,
    io.IOBase,
    Iterator,
)
# What many refer to and only the training changes, and what nothing changes.
_LEFT_OUT = (str, bytes, type, np.ndarray, tf.Tensor, keras.layers.Layer)
DEPTH = 4


def shares(one: Any, two: Any) -> bool:
    """Return whether two iterators may change or draw from the same object, as far as is seen."""
    if not isinstance(one, Iterator) or not isinstance(two, Iterator):
        return False
    return bool(_reached(one) & _reached(two))


def _reached(stream: Any) -> set[int]:
    found: set[int] = set()
    _walk(stream, DEPTH, found, set())
    return found


def _walk(value: Any, depth: int, found: set[int], seen: set[int]) -> None:
    if isinstance(value, _LEFT_OUT) or id(value) in seen:
        return
    seen.add(id(value))
    kind = type(value)
    own = is_defined_by_script(kind) and not callable(value)
    if isinstance(value, _MUTABLE) or own:
        # A numpy Generator and its BitGenerator are one.
        found.add(id(getattr(value, "bit_generator", value)))
    if depth > 0:
        for one in _within(value):
            _walk(one, depth - 1, found, seen)


def _within(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | deque):
        yield from value
    frame = getattr(value, "gi_frame", None)
    if frame is not None:
        yield from frame.f_locals.values()  # also of the functions around it
        yield from _globals_of(frame.f_code, frame.f_globals)
    code = getattr(value, "__code__", None)
    if code is not None:
        yield from _globals_of(code, value.__globals__)
        for cell in value.__closure__ or ():
            yield getattr(cell, "cell_contents", None)
        yield getattr(value, "__self__", None)
    elif type(value).__module__ not in ("builtins", "numpy", "tensorflow", "keras"):
        yield from getattr(value, "__dict__", {}).values()
        yield from (getattr(type(value), name, None) for name in ("__next__", "__iter__"))


def _globals_of(code: Any, names: Mapping[str, Any]) -> Iterator[Any]:
    for name in code.co_names:
        if name in names and not isinstance(names[name], type(random)):
            yield names[name]

"""Restoring plain data into the same objects that the script holds."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np


def put_back(present: Any, value: Any) -> Any:
    """Fill `present` with `value` in place, at any depth, and return the object to keep.

    A script may refer to the same list, dict, array or generator by another name. If `present`
    cannot be filled (a number, string or tuple, or a different type or shape), return `value`.
    """
    if type(present) is not type(value):
        return value
    if isinstance(value, np.ndarray):
        if not can_hold(present, value):
            return value
        present[...] = value
    elif isinstance(value, dict):
        kept = {k: put_back(present.get(k), v) for k, v in value.items()}
        present.clear()
        present.update(kept)
    elif isinstance(value, list | deque):
        there = list(present)
        there += [None] * (len(value) - len(there))
        items = [put_back(p, v) for p, v in zip(there, value, strict=False)]
        present.clear()
        present.extend(items)
    elif isinstance(value, set):
        present.clear()
        present.update(value)
    elif isinstance(value, random.Random):
        present.setstate(value.getstate())
    elif isinstance(value, np.random.RandomState):
        present.set_state(value.get_state(legacy=False))
    elif isinstance(value, np.random.Generator) and _same_bits(present, value):
        present.bit_generator.state = value.bit_generator.state
    else:
        return value
    return present


def can_hold(array: Any, value: Any) -> bool:
    """Return whether an array can be filled with the values of another."""
    alike = array.shape == value.shape and array.dtype == value.dtype
    return bool(alike and array.flags.writeable)


def _same_bits(one: np.random.Generator, other: np.random.Generator) -> bool:
    return type(one.bit_generator) is type(other.bit_generator)

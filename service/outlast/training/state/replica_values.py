"""`ReplicaValues`: values of variables that may differ by replica, as one array of shape (S, …).

What all replicas have in common is one value, as without replicas. So a checkpoint depends on the
number of replicas only where the training does.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np
import tensorflow as tf

from outlast.training.keras_internals.distribution import copies, is_summed_up, may_differ
from outlast.training.keras_internals.variables import raw
from outlast.training.state.held_values import Holder


class StackedValue:
    """The values of one variable on all replicas. `numpy.asarray` stacks them."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(np.stack([np.asarray(part) for part in self._parts]), dtype=dtype)

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return sum(part.nbytes for part in self._parts)


class ReplicaValues:
    """Variables whose values are held together: one value each, or one by replica."""

    def __init__(self, variables: Iterable[Any]) -> None:
        self._variables = [raw(variable) for variable in variables]
        held = [
            (copy.device, at, of)
            for at, v in enumerate(self._variables)
            for of, copy in enumerate(_held(v))
        ]
        self._places = sorted(held, key=lambda place: place[0])
        self._holders = [
            Holder(copies(self._variables[at])[of] for _, at, of in places)
            for _, places in groupby(self._places, key=lambda place: place[0])
        ]

    def hold(self) -> list[Any]:
        """Return each variable's value; a `StackedValue` if the replicas' values differ.

        The variables of metrics always have a `StackedValue` if there are several replicas.
        """
        values = [value for holder in self._holders for value in holder.hold()]
        by_variable: list[dict[int, Any]] = [{} for _ in self._variables]
        for (_, at, of), value in zip(self._places, values, strict=True):
            by_variable[at][of] = value
        found = []
        for variable, of_replicas in zip(self._variables, by_variable, strict=True):
            parts = [of_replicas[replica] for replica in sorted(of_replicas)]
            alike = len(parts) == 1 or (not is_summed_up(variable) and _are_alike(parts))
            found.append(parts[0] if alike else StackedValue(parts))
        return found


def replicas_of(variables: Iterable[Any]) -> int:
    """Return how many copies the variables have: the number of replicas."""
    return max((len(copies(raw(variable))) for variable in variables), default=1)


def fits(stored: Any, variable: Any) -> bool:
    """Return whether a stored array has the shape of a variable, or of its values by replica."""
    live = raw(variable)
    return tuple(stored.shape) == tuple(live.shape) or is_stacked(stored, variable)


def is_stacked(stored: Any, variable: Any) -> bool:
    """Return whether a stored array has a value for each replica."""
    live, count = raw(variable), len(copies(raw(variable)))
    return may_differ(live) and tuple(stored.shape) == (count, *live.shape)


def assign(variable: Any, stored: Any) -> None:
    """Assign a stored array, or its part for each replica, to a variable."""
    every = copies(raw(variable))
    if is_stacked(stored, variable):
        parts = list(stored)
    elif len(every) == 1:
        parts = [stored]
    else:
        # One tensor for all: they share its buffer until each writes to one of its own. From an
        # array, each would make a tensor of the same memory, and write there.
        parts = [tf.convert_to_tensor(stored)] * len(every)
    for copy, part in zip(every, parts, strict=True):
        copy.assign(part)


def _held(variable: Any) -> tuple[Any, ...]:
    return copies(variable) if may_differ(variable) else copies(variable)[:1]


def _are_alike(parts: list[Any]) -> bool:
    first = np.asarray(parts[0]).tobytes()
    return all(np.asarray(part).tobytes() == first for part in parts[1:])

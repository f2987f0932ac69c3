"""The present values of variables, held without a copy while training goes on.

Reading gives a tensor that shares the variable's buffer; the next in-place update writes to a new
buffer and leaves the held one intact (copy-on-write). TensorFlow documents no such guarantee, so
tests/unit/outlast/training/state/test_held_values.py keeps watching it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from outlast.training.keras_internals.variables import can_read_many, raw, read_many


def hold(variable: Any) -> Any:
    """Return the variable's present value without a copy, as a numpy view where the CPU allows."""
    return np.asarray(Holder([variable]).hold()[0])


class HeldValue:
    """A variable's value at some moment, which `numpy.asarray` makes a view of, or an array.

    That is left to whoever writes it, for the loop waits while it is held.
    """

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is None:  # numpy 1 does not take it
            return np.asarray(_view(self._tensor), dtype=dtype)
        return np.array(_view(self._tensor), dtype=dtype, copy=copy)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        size: int = self._tensor.dtype.size * self._tensor.shape.num_elements()
        return size


class Holder:
    """Variables whose values are held together, at one moment and often."""

    def __init__(self, variables: Iterable[Any]) -> None:
        self._sources = [raw(variable) for variable in variables]
        self._handles = [source.handle for source in self._sources]
        self._types = tuple(source.dtype.as_datatype_enum for source in self._sources)

    def hold(self) -> list[Any]:
        """Return the present value of each, for `numpy.asarray`."""
        if not _all_is_here():
            # In an accelerator's memory there may be no room for what is held.
            return [_view(tensor) for tensor in self._read_each()]
        at_once = len(self._sources) > 1 and can_read_many()
        return [
            HeldValue(tensor)
            for tensor in (read_many(self._handles, self._types) if at_once else self._read_each())
        ]

    def _read_each(self) -> list[Any]:
        # As `read_value`, which takes four times as long.
        pairs = zip(self._sources, self._handles, strict=True)
        return [tf.raw_ops.ReadVariableOp(resource=h, dtype=s.dtype) for s, h in pairs]


@functools.cache
def _all_is_here() -> bool:
    """Whether every variable is in the memory of this machine."""
    return {device.device_type for device in tf.config.list_physical_devices()} == {"CPU"}


def _view(tensor: Any) -> Any:
    try:
        return np.asarray(memoryview(tensor))
    except (TypeError, ValueError, BufferError):  # bfloat16 and accelerators have no buffer
        return tensor.numpy()

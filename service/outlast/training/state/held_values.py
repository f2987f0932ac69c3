"""Holding the current values of variables without a copy, while training continues.

Reading a variable returns a tensor that shares its buffer. The next in-place update writes to a new
buffer and leaves the held one intact (copy-on-write). TensorFlow does not document this guarantee,
so tests/unit/outlast/training/state/test_held_values.py checks it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from outlast.training.keras_internals.distribution import copies
from outlast.training.keras_internals.variables import can_read_many, raw, read_many


def hold(variable: Any) -> Any:
    """Return a variable's current value as a numpy array, without a copy if the CPU holds it."""
    return np.asarray(Holder([variable]).hold()[0])


class HeldValue:
    """A variable's value at one moment. `numpy.asarray` turns it into a view or an array.

    The writer does that later, because the training waits while values are held.
    """

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is None:  # numpy 1 does not accept copy=None
            return np.asarray(_view(self._tensor), dtype=dtype)
        return np.array(_view(self._tensor), dtype=dtype, copy=copy)

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        size: int = self._tensor.dtype.size * self._tensor.shape.num_elements()
        return size


class Holder:
    """Variables whose values are held together, repeatedly.

    Of a variable with a copy for each replica, the first copy is held: that is what Keras saves.
    """

    def __init__(self, variables: Iterable[Any]) -> None:
        self._sources = [copies(raw(variable))[0] for variable in variables]
        self._handles = [source.handle for source in self._sources]
        self._devices = {source.device for source in self._sources}
        self._types = tuple(source.dtype.as_datatype_enum for source in self._sources)

    def hold(self) -> list[Any]:
        """Return the current value of each variable, for `numpy.asarray`."""
        if not _all_is_here():
            # An accelerator's memory may have no room for held values.
            return [_view(tensor) for tensor in self._read_each()]
        # The op reads from one device.
        at_once = len(self._sources) > 1 and can_read_many() and len(self._devices) == 1
        return [
            HeldValue(tensor)
            for tensor in (read_many(self._handles, self._types) if at_once else self._read_each())
        ]

    def _read_each(self) -> list[Any]:
        # The same as `read_value`, in a quarter of the time.
        pairs = zip(self._sources, self._handles, strict=True)
        return [tf.raw_ops.ReadVariableOp(resource=h, dtype=s.dtype) for s, h in pairs]


@functools.cache
def _all_is_here() -> bool:
    """Return whether every variable is in main memory."""
    return {device.device_type for device in tf.config.list_physical_devices()} == {"CPU"}


def _view(tensor: Any) -> Any:
    try:
        return np.asarray(memoryview(tensor))
    except (TypeError, ValueError, BufferError):  # bfloat16 and accelerators have no buffer
        return tensor.numpy()

"""What a function of the script keeps outside: variables of an enclosing function, and globals."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.state.script_code import is_module_of_script

MOST_ITEMS = 10_000  # a longer container at the beginning is data, not state
MOST_BYTES = 1 << 20
_DEFAULT = "default "  # no names of variables
_OWN = "own "
DEPTH = 3  # of objects in objects that are looked at for their size
# What these hold is their own. To look through the modules that a script imports takes long.
_NEVER_DATA = (type, types.ModuleType, keras.layers.Layer, keras.callbacks.Callback)


class FunctionState:
    """The variables that a function reads or sets outside of itself.

    `counts` says which values may be state. What is large at the beginning is left out. Variables
    of the script's other modules are read as "module.name". The function's own attributes and the
    defaults of its parameters count, too. The order is that of the code.
    """

    def __init__(self, function: Any, counts: Callable[[Any], bool]) -> None:
        self.function = function
        self._counts = counts
        self._cells = dict(
            zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        )
        outside = function.__globals__
        names = dict.fromkeys(_global_names(function.__code__))
        self._globals = [name for name in names if name not in self._cells]
        self._modules = {
            f"{module}.{name}": (outside[module], name)
            for module in self._globals
            if is_module_of_script(outside.get(module))
            for name in names
        }
        self._data = {name for name, value in self._all() if is_data(value)}

    def read(self) -> dict[str, Any]:
        """Return the variables with their present values."""
        found = ((name, value) for name, value in self._all() if name not in self._data)
        return {name: value for name, value in found if self._counts(value)}

    def set(self, name: str, value: Any) -> None:
        """Set a variable that `read` returned."""
        if name in self._cells:
            self._cells[name].cell_contents = value
        elif name in self._globals:
            self.function.__globals__[name] = value
        elif name in self._modules:
            module, variable = self._modules[name]
            setattr(module, variable, value)
        elif name.startswith(_OWN) and not callable(value):
            setattr(self.function, name.removeprefix(_OWN), value)

    def _all(self) -> Iterator[tuple[str, Any]]:
        for name, cell in self._cells.items():
            try:
                yield name, cell.cell_contents
            except ValueError:  # not set yet
                continue
        outside = self.function.__globals__
        for name in self._globals:
            if name in outside and not name.startswith("__"):
                yield name, outside[name]
        for name, (module, variable) in self._modules.items():
            if hasattr(module, variable):
                yield name, getattr(module, variable)
        for i, value in enumerate(self.function.__defaults__ or ()):
            yield f"{_DEFAULT}{i}", value
        for name, value in (self.function.__kwdefaults__ or {}).items():
            yield f"{_DEFAULT}{name}", value
        yield from self._attributes().items()

    def _attributes(self) -> dict[str, Any]:
        own = vars(self.function).items()
        return {f"{_OWN}{name}": value for name, value in own if not name.startswith("__")}


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def is_data(value: Any, depth: int = 0) -> bool:
    """Return whether a value is too large for state, or has such a part."""
    if isinstance(value, np.ndarray):
        return value.nbytes > MOST_BYTES
    if isinstance(value, tf.Tensor):
        return int(value.shape.num_elements() or 0) * int(value.dtype.size) > MOST_BYTES
    if isinstance(value, keras.utils.PyDataset):
        return True
    if type(value).__module__.startswith("pandas."):
        return int(getattr(value, "size", 0)) * 8 > MOST_BYTES
    parts: Any = ()
    if isinstance(value, dict | list | tuple | set):
        if len(value) > MOST_ITEMS:
            return True
        parts = value.values() if isinstance(value, dict) else value
    elif not isinstance(value, _NEVER_DATA):
        parts = getattr(value, "__dict__", {}).values()
    return depth < DEPTH and any(is_data(part, depth + 1) for part in parts)

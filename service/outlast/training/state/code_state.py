"""What code other than a function holds: a method, a partial, a tf.function, a class."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import tensorflow as tf

from outlast.training.state.function_state import FunctionState, is_data
from outlast.training.state.script_code import is_class_of_script, is_function_of_script

_TRACED = tf.types.experimental.PolymorphicFunction
_CACHED = type(functools.cache(len))
_KEYWORD = "keywords."
_are_code: dict[type, bool] = {}


class CodeState:
    """The objects that a method, partial, wrapper or tf.function calls with, or those of a class.

    `counts` says which values may be state. What is large at the beginning is left out.
    """

    def __init__(self, code: Any, counts: Callable[[Any], bool]) -> None:
        self.function = code
        self._counts = counts
        self._data = {name for name, value in self._all() if is_data(value)}

    def read(self) -> dict[str, Any]:
        """Return the objects by name."""
        found = ((name, value) for name, value in self._all() if name not in self._data)
        return {name: value for name, value in found if self._counts(value)}

    def set(self, name: str, value: Any) -> None:
        """Set what `read` returned, if it can be set."""
        code = self.function
        if isinstance(code, type):
            base = next((base for base in code.__mro__ if name in vars(base)), code)
            is_code = any(map(callable, (value, vars(base).get(name), getattr(code, name, None))))
            if not is_code and not name.startswith("__"):
                setattr(base, name, value)
        elif name.startswith(_KEYWORD):
            code.keywords[name.removeprefix(_KEYWORD)] = value

    def _all(self) -> Iterator[tuple[str, Any]]:
        code = self.function
        if isinstance(code, type):
            yield from _of_class(code)
        elif isinstance(code, functools.partial):
            yield "func", code.func
            yield from ((f"args[{i}]", value) for i, value in enumerate(code.args))
            yield from ((f"{_KEYWORD}{name}", value) for name, value in code.keywords.items())
        elif isinstance(code, types.MethodType):
            yield "self", code.__self__
            yield "function", code.__func__
        elif isinstance(code, types.BuiltinMethodType):
            yield "self", code.__self__
        elif isinstance(code, _TRACED):
            yield "function", code.python_function
        else:
            yield "function", code.__wrapped__


def state_of_code(code: Any, counts: Callable[[Any], bool]) -> FunctionState | CodeState:
    """Return what a function, method, partial, tf.function or class holds."""
    kind = FunctionState if is_function_of_script(code) else CodeState
    return kind(code, counts)


def is_code(value: Any) -> bool:
    """Return whether a value is code that may hold state of the script."""
    kind = type(value)
    if kind is types.FunctionType:
        return is_function_of_script(value) or is_code(getattr(value, "__wrapped__", None))
    if kind in (types.MethodType, types.BuiltinMethodType):
        return not isinstance(value.__self__, types.ModuleType | type(None))
    if issubclass(kind, type):
        return is_class_of_script(value) and not issubclass(value, Enum)
    if kind is _CACHED:
        return is_code(value.__wrapped__)
    if kind not in _are_code:
        _are_code[kind] = issubclass(kind, functools.partial | _TRACED)
    return _are_code[kind]


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the methods and variables of a class that the script defines, and of its bases."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if is_class_of_script(base):
            found.update(vars(base))
    found.pop("__init__", None)  # it ran before
    for name, value in found.items():
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, property | functools.cached_property):
            value = getattr(value, "fget", None) or getattr(value, "func", None)
        if not name.startswith("__") or is_function_of_script(value):
            yield name, value

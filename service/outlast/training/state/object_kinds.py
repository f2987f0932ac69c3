"""The kind of an object in the state of a callback or Loop, which decides how it is stored."""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import random
import re
import threading
import types
import weakref
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.keras_internals.attributes import attributes
from outlast.training.keras_internals.callbacks import is_state
from outlast.training.keras_internals.saved_models import AutoTrackable, variables_below
from outlast.training.state import optuna_trial, plain_values
from outlast.training.state.body_names import BodyVariables
from outlast.training.state.code_state import CodeState, is_code, state_of_code
from outlast.training.state.function_state import FunctionState, is_data
from outlast.training.state.script_code import is_defined_by_script

_PLAIN = (type(None), bool, int, float, str)


CODE = FunctionState | CodeState | BodyVariables
_CLASS = "__class__"
_TRACED = "@traced"  # no name of an attribute


class Part:
    """The attributes of a layer, metric or loss, apart from Keras' own bookkeeping.

    A compiled step reads them once, at its trace. So what it read then is stored, too. With
    `without_data`, what is large at the beginning is left out.
    """

    def __init__(self, part: Any, *, without_data: bool = False) -> None:
        self._part = part
        # A script may keep anything on a model, also on one of Keras' own classes.
        own = type(part).__module__.startswith("keras.")
        self.is_keras_own = own and not isinstance(part, keras.Model)
        self._is_restored = False
        self._traced: dict[str, Any] | None = None
        found = dict(attributes(part))
        self._plain_names = [name for name, value in found.items() if isinstance(value, _PLAIN)]
        self.has_code = any(_is_of_script(value) for value in found.values())
        large = [name for name, value in found.items() if without_data and is_data(value)]
        self._left_out = frozenset(large)

    def signature(self) -> tuple[Any, ...]:
        """Return what differs if an attribute of a layer of Keras has changed."""
        found = vars(self._part)
        return tuple([found.get(name) for name in self._plain_names])

    def called_by_trace(self) -> Callable[[], None] | None:
        """Note that a function that calls the part is traced now.

        The first trace after a resume reads what the first trace of the training has read. The
        function that is returned then sets the present attributes again.
        """
        present = self._plain()
        if self._traced is None:
            self._traced = present
        again, self._is_restored = self._is_restored, False
        read = {n: v for n, v in self._traced.items() if again and present.get(n) != v}
        if not read:
            return None
        self._set(read)
        return lambda: self._set({name: present.get(name) for name in read})

    def read(self) -> dict[str, Any]:
        """Return the attributes, and those that the first trace has read."""
        found = dict(attributes(self._part))
        if self.is_keras_own:
            found = {n: v for n, v in found.items() if isinstance(v, _PLAIN) or _is_of_script(v)}
        found = {**_class_of(self._part), **found}
        for name in self._left_out:
            found.pop(name, None)
        return found if self._traced is None else {**found, _TRACED: self._traced}

    def set(self, name: str, value: Any) -> None:
        """Restore an attribute that `read` returned."""
        if name == _TRACED:
            self._traced, self._is_restored = value, True
        elif name != _CLASS:
            self._set({name: value})

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if vars(self._part).get(name, self) is not value:
                setattr(self._part, name, value)

    def _plain(self) -> dict[str, Any]:
        found = attributes(self._part)
        return {name: value for name, value in found if isinstance(value, _PLAIN)}


CONTAINERS: dict[str, type] = {
    "list": list,
    "deque": deque,
    "dict": dict,
    "ordered": OrderedDict,
    "counter": Counter,
    "default": defaultdict,
    "set": set,
}
MAPPINGS = ("dict", "ordered", "counter", "default")
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
# Further kinds: array, generator, variable, owner (of variables), object (stored by its
# attributes), spoken (stored by its get_state), settled (nothing in it changes), opaque (cannot be
# stored).
_KINDS: dict[type, str] = {
    **{kind: name for name, kind in CONTAINERS.items()},
    **dict.fromkeys(GENERATORS, "generator"),
    np.ndarray: "array",
    Part: "object",
    FunctionState: "object",
    CodeState: "object",
    BodyVariables: "object",
    types.SimpleNamespace: "object",
    Namespace: "object",
}
_OWNERS = (
    keras.layers.Layer,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.random.SeedGenerator,
    tf.random.Generator,
    AutoTrackable,
)
_SETTLED = (
    type,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.ModuleType,
    functools.partial,
    np.ufunc,
    np.dtype,
    re.Pattern,
    logging.Logger,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Event,
    threading.Condition,
    weakref.ReferenceType,
    tf.data.Dataset,
    tf.summary.SummaryWriter,
    tf.DType,
    tf.TensorShape,
    tf.TypeSpec,
    keras.KerasTensor,
)
# What happens to objects of these packages outside of hooks, a restarted script repeats.
_REPEATED = ("keras", "keras_tuner", "optuna")
_TRACKING = ("keras.src.utils.tracking", "tensorflow.python.trackable")
_IN_FUNCTIONS = frozenset(
    {*CONTAINERS, "array", "generator", "variable", "owner", "object", "opaque"}
)
_METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))


def kind_of(kind: type) -> str:
    """Return how objects of this class are stored."""
    found = _KINDS.get(kind)
    if found is None:
        found = _KINDS[kind] = _find_kind(kind)
    return found


def _find_kind(kind: type) -> str:
    if issubclass(kind, tf.Variable | keras.Variable):
        return "variable"
    if issubclass(kind, _OWNERS):
        return "owner"
    if optuna_trial.is_trial(kind):
        return "spoken"
    speaks = any(_is_method(kind, a) and _is_method(kind, b) for a, b in _METHODS)
    if issubclass(kind, keras.callbacks.Callback | keras.utils.PyDataset):
        return "spoken" if speaks else "object"
    if issubclass(kind, _SETTLED):
        return "settled"
    if kind.__module__.startswith(_TRACKING):  # Keras and TensorFlow wrap containers in layers
        for name in ("list", "dict", "set"):
            if issubclass(kind, CONTAINERS[name]):
                return name
    top = kind.__module__.partition(".")[0]
    calls = any("__call__" in vars(base) for base in kind.__mro__)
    if top in _REPEATED or (top == "tensorflow" and calls):
        return "settled"
    if speaks:
        return "spoken"
    subclass = issubclass(kind, int | float | str | bytes | list | tuple | dict | set | np.ndarray)
    plain = dataclasses.is_dataclass(kind) and top != "tensorflow"
    return "object" if not subclass and (plain or is_defined_by_script(kind)) else "opaque"


def _is_method(kind: type, name: str) -> bool:
    return callable(getattr(kind, name, None))


def methods_of(value: Any) -> tuple[Any, Any]:
    """Return the functions that return and set the state of an object."""
    if optuna_trial.is_trial(type(value)):
        get, put = optuna_trial.get_state, optuna_trial.set_state
        return functools.partial(get, value), functools.partial(put, value)
    pairs = ((getattr(value, a, None), getattr(value, b, None)) for a, b in _METHODS)
    return next((get, put) for get, put in pairs if callable(get) and callable(put))


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object without those of its class."""
    if isinstance(value, CODE | Part):
        return value.read()
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    if isinstance(value, keras.callbacks.Callback):
        found = {name: child for name, child in found.items() if is_state(value, name)}
    return {**_class_of(value), **found}


def _class_of(value: Any) -> dict[str, Any]:
    kind = type(value)
    return {_CLASS: kind} if is_defined_by_script(kind) else {}


def _is_of_script(value: Any) -> bool:
    """Return whether a value is code or a plain object of the script, such as its regularizer."""
    kind = type(value)
    return is_code(value) or (is_defined_by_script(kind) and kind_of(kind) == "object")


def code_in(value: Any) -> CodeState | FunctionState | None:
    """Return what a function, method, partial, tf.function or class holds, else None."""
    return state_of_code(value, may_be_state) if is_code(value) else None


def may_be_state(value: Any) -> bool:
    """Return whether a variable that code names may be state of the script."""
    kind = type(value)
    plain = kind in (type(None), bool, int, float, str, bytes) or isinstance(value, np.generic)
    # No checkpoint can contain an iterator, so it is named.
    iterates = isinstance(value, Iterator) and not isinstance(value, io.IOBase)
    if plain or iterates or is_code(value) or plain_values.knows(value):
        return True
    if isinstance(value, tuple | frozenset):
        return all(map(_may_be_stored, value))
    found = kind_of(kind)
    spoken = is_defined_by_script(kind) or optuna_trial.is_trial(kind)
    return found in _IN_FUNCTIONS or (found == "spoken" and spoken)


def _may_be_stored(value: Any) -> bool:
    opaque = kind_of(type(value)) == "opaque" and type(value) not in plain_values.SCALARS
    known = plain_values.knows(value) or isinstance(value, tuple | frozenset | np.generic)
    return may_be_state(value) and (known or not opaque)


def set_attribute(value: Any, name: str, child: Any) -> bool:
    """Set an attribute with data, without running code. Return whether it was set."""
    if isinstance(value, CODE | Part):
        value.set(name, child)
        return True
    own = getattr(type(value), name, None)
    is_slot = isinstance(own, types.MemberDescriptorType)
    if name.startswith("__") or (not is_slot and (callable(own) or hasattr(own, "__set__"))):
        return False
    if is_slot:
        object.__setattr__(value, name, child)
    elif hasattr(value, "__dict__"):
        value.__dict__[name] = child
    else:
        return False
    return True


def variables_of(value: Any) -> list[Any]:
    """Return the variables of an owner, in its order."""
    if isinstance(value, keras.random.SeedGenerator | tf.random.Generator):
        return [value.state]
    found = getattr(value, "variables", None)
    return list(found) if isinstance(found, list | tuple) else variables_below(value)

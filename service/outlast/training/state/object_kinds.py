"""The kind of an object in the state of a callback or Loop, which decides how it is stored."""

from __future__ import annotations

import dataclasses
import functools
import logging
import random
import re
import sys
import sysconfig
import threading
import types
import weakref
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.keras_internals.callbacks import is_state

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
    types.SimpleNamespace: "object",
    Namespace: "object",
}
_OWNERS = (
    keras.layers.Layer,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.random.SeedGenerator,
    tf.random.Generator,
    tf.Module,
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
_METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))
_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib")
)


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
    speaks = any(_is_method(kind, a) and _is_method(kind, b) for a, b in _METHODS)
    if issubclass(kind, keras.callbacks.Callback | keras.utils.PyDataset):
        return "spoken" if speaks else "object"
    if issubclass(kind, _SETTLED):
        return "settled"
    top = kind.__module__.partition(".")[0]
    calls = any("__call__" in vars(base) for base in kind.__mro__)
    if top == "keras" or (top == "tensorflow" and calls):
        return "settled"
    if speaks:
        return "spoken"
    subclass = issubclass(kind, int | float | str | bytes | list | tuple | dict | set | np.ndarray)
    plain = dataclasses.is_dataclass(kind) and top != "tensorflow"
    return "object" if not subclass and (plain or is_the_scripts(kind)) else "opaque"


def is_the_scripts(kind: type) -> bool:
    """Return whether the script defines the class, and no installed package does."""
    if kind.__module__ == "__main__":
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None:
        return False
    path = Path(file).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not any(path.is_relative_to(folder) for folder in _INSTALLED)


def _is_method(kind: type, name: str) -> bool:
    return callable(getattr(kind, name, None))


def methods_of(value: Any) -> tuple[Any, Any]:
    """Return the bound methods that return and set the state of an object."""
    pairs = ((getattr(value, a, None), getattr(value, b, None)) for a, b in _METHODS)
    return next((get, put) for get, put in pairs if callable(get) and callable(put))


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object without those of its class."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    if isinstance(value, keras.callbacks.Callback):
        return {name: child for name, child in found.items() if is_state(value, name)}
    return found


def set_attribute(value: Any, name: str, child: Any) -> bool:
    """Set an attribute with data, without running code. Return whether it was set."""
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
    return list(value.variables)

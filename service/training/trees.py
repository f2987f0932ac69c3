"""Plain Python data ↔ a JSON document plus arrays by name; nothing is ever pickled.

Callback state and generator state are trees of plain values with arrays in them. The document
keeps what JSON cannot say (tuples, sets, NaN, arrays) as objects with one key starting with "$".
"""

from __future__ import annotations

import base64
import math
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

MAX_DEPTH = 32


class NotPlain(TypeError):
    """The value is no plain data, so it cannot be stored without pickle."""


def encode(value: Any, arrays: MutableMapping[str, Any], name: str, depth: int = 0) -> Any:
    """Return `value` as JSON data; arrays in it are copied into `arrays` under `name`/….

    Raises `NotPlain` for anything but None, bool, int, float, str, bytes, list, tuple, dict, set,
    deque, numpy scalars and numeric arrays.
    """
    if depth > MAX_DEPTH:
        raise NotPlain("nested too deeply")
    if value is None or isinstance(value, bool | str):
        return value
    if type(value) is int:
        return value if -(2**53) < value < 2**53 else {"$int": str(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value, arrays, name)

    def each(items: Any) -> list[Any]:
        return [encode(item, arrays, f"{name}/{i}", depth + 1) for i, item in enumerate(items)]

    if type(value) is list:
        return each(value)
    if type(value) is tuple:
        return {"$tuple": each(value)}
    if type(value) in (set, frozenset):
        return {"$set": each(sorted(value, key=repr))}
    if type(value) is deque:
        return {"$deque": each(value), "maxlen": value.maxlen}
    if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {k: encode(v, arrays, f"{name}/{k}", depth + 1) for k, v in value.items()}
        return {"$dict": each([[k, v] for k, v in value.items()])}
    raise NotPlain(f"{type(value).__name__} at {name}")


def _encode_array(value: Any, arrays: MutableMapping[str, Any], name: str) -> Any:
    if value.dtype.kind not in "biufcV" or value.dtype.fields is not None:
        raise NotPlain(f"array of {value.dtype} at {name}")
    key = name
    while key in arrays:
        key += "_"
    arrays[key] = np.array(value)
    return {"$array": key, "scalar": isinstance(value, np.generic)}


def decode(document: Any, arrays: Mapping[str, Any]) -> Any:
    """Return what `encode` was given."""
    if isinstance(document, list):
        return [decode(item, arrays) for item in document]
    if not isinstance(document, dict):
        return document
    match next(iter(document), None):
        case "$int":
            return int(document["$int"])
        case "$float":
            return float(document["$float"])
        case "$bytes":
            return base64.b64decode(document["$bytes"])
        case "$tuple":
            return tuple(decode(item, arrays) for item in document["$tuple"])
        case "$set":
            return {decode(item, arrays) for item in document["$set"]}
        case "$deque":
            items = (decode(item, arrays) for item in document["$deque"])
            return deque(items, maxlen=document["maxlen"])
        case "$dict":
            return {decode(k, arrays): decode(v, arrays) for k, v in document["$dict"]}
        case "$array":
            array = arrays[document["$array"]]
            return array[()] if document["scalar"] else np.array(array)
    return {key: decode(item, arrays) for key, item in document.items()}


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal, NaN equal to itself and arrays compared by content."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, float):
        return a == b or (a != a and b != b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)

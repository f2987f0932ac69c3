"""Conversion of plain Python data to a JSON document plus arrays by name, without pickle.

Callback state and generator state are trees of plain values and arrays. Values that JSON lacks
(tuples, sets, NaN, arrays) become objects with one key that starts with "$".
"""

from __future__ import annotations

import base64
import json
import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import xxhash

MAX_DEPTH = 32
MANY = 64
FACTORIES = {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}


class NotPlain(TypeError):
    """The value is not plain data, so it cannot be stored without pickle."""


def encode(value: Any, arrays: MutableMapping[str, Any], name: str, depth: int = 0) -> Any:
    """Convert `value` to JSON data.

    Its arrays are added to `arrays` without a copy, under numbered keys that start with the root of
    `name`.

    Supported types are None, bool, int, float, str, bytes, list, tuple, dict, OrderedDict, Counter,
    defaultdict of a plain type, set, frozenset, deque, numpy scalars, numeric arrays, and the
    random generators of Python and numpy. Raises `NotPlain`, which names the place, for others.
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
        if len(value) >= MANY and set(map(type, value)) == {float}:  # such as losses
            return {"$floats": _encode_array(np.array(value), arrays, name)["$array"]}
        return each(value)
    if type(value) is tuple:
        return {"$tuple": each(value)}
    if type(value) is set:
        return {"$set": each(sorted(value, key=repr))}
    if type(value) is frozenset:
        return {"$frozenset": each(sorted(value, key=repr))}
    if type(value) is deque:
        return {"$deque": each(value), "maxlen": value.maxlen}
    if type(value) is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {k: encode(v, arrays, f"{name}/{k}", depth + 1) for k, v in value.items()}
        return {"$dict": each([[k, v] for k, v in value.items()])}
    if type(value) is OrderedDict:
        return {"$ordered": each([[k, v] for k, v in value.items()])}
    if type(value) is Counter:
        return {"$counter": each([[k, v] for k, v in value.items()])}
    if type(value) is defaultdict:
        factory = getattr(value.default_factory, "__name__", None)
        if value.default_factory is None or value.default_factory is FACTORIES.get(str(factory)):
            return {"$default": each([[k, v] for k, v in value.items()]), "factory": factory}
    if type(value) is random.Random:
        version, words, gauss = value.getstate()
        return {"$random": each([version, np.array(words, np.uint32), gauss])}
    if type(value) is np.random.Generator and _is_numpys(value.bit_generator):
        return {"$generator": encode(value.bit_generator.state, arrays, name, depth + 1)}
    if type(value) is np.random.RandomState:
        return {"$randomstate": encode(value.get_state(legacy=False), arrays, name, depth + 1)}
    raise NotPlain(f"{type(value).__name__} at {name}")


def _is_numpys(bit_generator: Any) -> bool:
    kind = type(bit_generator)
    return getattr(np.random, kind.__name__, None) is kind


def _encode_array(value: Any, arrays: MutableMapping[str, Any], name: str) -> Any:
    # Numbers, and number types of other packages such as bfloat16, whose kind is V.
    kind = value.dtype.kind
    is_number = kind in "biufc" or (kind == "V" and value.dtype.type is not np.void)
    is_masked = isinstance(value, np.ndarray) and type(value) is not np.ndarray
    if not is_number or is_masked or value.dtype in (np.longdouble, np.clongdouble):
        raise NotPlain(f"{type(value).__name__} of {value.dtype} at {name}")
    # Use numbers, because not every dict key is a valid path of a dataset.
    key = f"{name.partition('/')[0]}/{len(arrays):06d}"
    arrays[key] = value
    return {"$array": key, "scalar": isinstance(value, np.generic)}


def decode(document: Any, arrays: Mapping[str, Any]) -> Any:
    """Convert a document that `encode` returned back to plain data."""
    if isinstance(document, list):
        return [decode(item, arrays) for item in document]
    if not isinstance(document, dict):
        return document
    match next(iter(document), None):
        case "$int":
            return int(document["$int"])
        case "$floats":
            return arrays[document["$floats"]].tolist()
        case "$float":
            return float(document["$float"])
        case "$bytes":
            return base64.b64decode(document["$bytes"])
        case "$tuple":
            return tuple(decode(item, arrays) for item in document["$tuple"])
        case "$set":
            return {decode(item, arrays) for item in document["$set"]}
        case "$frozenset":
            return frozenset(decode(item, arrays) for item in document["$frozenset"])
        case "$deque":
            items = (decode(item, arrays) for item in document["$deque"])
            return deque(items, maxlen=document["maxlen"])
        case "$dict":
            return _pairs(document["$dict"], arrays)
        case "$ordered":
            return OrderedDict(_pairs(document["$ordered"], arrays))
        case "$counter":
            return Counter(_pairs(document["$counter"], arrays))
        case "$default":
            return defaultdict(
                FACTORIES.get(document["factory"]), _pairs(document["$default"], arrays)
            )
        case "$random":
            version, words, gauss = decode(document["$random"], arrays)
            generator = random.Random()
            generator.setstate((version, tuple(int(w) for w in words), gauss))
            return generator
        case "$generator":
            state = decode(document["$generator"], arrays)
            bits = getattr(np.random, state["bit_generator"])(0)
            bits.state = state
            return np.random.Generator(bits)
        case "$randomstate":
            legacy = np.random.RandomState(0)
            legacy.set_state(decode(document["$randomstate"], arrays))
            return legacy
        case "$array":
            array = arrays[document["$array"]]
            return np.array(array)[()] if document["scalar"] else np.array(array)
    return {key: decode(item, arrays) for key, item in document.items()}


def _pairs(pairs: list[Any], arrays: Mapping[str, Any]) -> dict[Any, Any]:
    return {decode(key, arrays): decode(value, arrays) for key, value in pairs}


def fingerprint(value: Any) -> bytes:
    """Return a hash of a plain value. Equal values have equal hashes.

    Arrays are read, not copied. Raises `NotPlain`.
    """
    arrays: dict[str, Any] = {}
    digest = xxhash.xxh3_128(json.dumps(encode(value, arrays, "")).encode())
    for array in arrays.values():
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()

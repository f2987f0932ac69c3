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

import msgspec
import numpy as np
import xxhash

from outlast.training.state import generator_states

MAX_DEPTH = 32
BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (
        np.random.MT19937,
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.Philox,
        np.random.SFC64,
    )
}
MANY = 64
_NUMBERS = (np.bool_, np.integer, np.float16, np.float32, np.float64)
FACTORIES = {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}


class Constant:
    """A value that is encoded once, for a part of many documents. Raises `NotPlain` for arrays.

    Numbers of numpy become those of Python, because no array of the file belongs to it.
    """

    def __init__(self, value: Any) -> None:
        self.document = msgspec.Raw(json_of(encode(value, None, "")))


def json_of(document: Any) -> bytes:
    """Return what `encode` returned as JSON."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:  # a lone surrogate, as in the name of a file
        text = json.dumps(document, default=lambda raw: json.loads(bytes(raw)))
        return text.encode()


class NotPlain(TypeError):
    """The value is not plain data, so it cannot be stored without pickle."""


def encode(value: Any, arrays: MutableMapping[str, Any] | None, name: str, depth: int = 0) -> Any:
    """Convert `value` to JSON data.

    Its arrays are added to `arrays` without a copy, under numbered keys that start with the root of
    `name`. If that is None, it may have numbers of numpy, which become Python's, but no arrays.

    Supported types are None, bool, int, float, str, bytes, list, tuple, dict, OrderedDict, Counter,
    defaultdict of a plain type, set, frozenset, deque, numpy scalars, numeric arrays, and the
    random generators of Python and numpy. Raises `NotPlain`, which names the place, for others.
    """
    if depth > MAX_DEPTH:
        raise NotPlain("nested too deeply")
    if value is None or isinstance(value, bool | str):
        return value
    if type(value) is Constant:
        return value.document
    if type(value) is int:
        return value if -(2**53) < value < 2**53 else {"$int": str(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if arrays is None and isinstance(value, _NUMBERS):
        return encode(value.item(), arrays, name, depth)
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value, arrays, name)

    def each(items: Any) -> list[Any]:
        return [encode(item, arrays, f"{name}/{i}", depth + 1) for i, item in enumerate(items)]

    if type(value) is list:
        many = len(value) >= MANY and set(map(type, value)) == {float}  # such as losses
        if many and arrays is not None:
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
    return type(bit_generator) in BIT_GENERATORS.values()


def _encode_array(value: Any, arrays: MutableMapping[str, Any] | None, name: str) -> Any:
    # Numbers, and number types of other packages such as bfloat16, whose kind is V.
    kind = value.dtype.kind
    is_number = kind in "biufc" or (kind == "V" and value.dtype.type is not np.void)
    is_masked = isinstance(value, np.ndarray) and type(value) is not np.ndarray
    is_long = value.dtype in (np.longdouble, np.clongdouble)
    if arrays is None or not is_number or is_masked or is_long:
        raise NotPlain(f"{type(value).__name__} of {value.dtype} at {name}")
    # Use numbers, because not every dict key is a valid path of a dataset.
    key = f"{name.partition('/')[0]}/{len(arrays):06d}"
    arrays[key] = value
    return {"$array": key, "scalar": isinstance(value, np.generic)}


def decode(document: Any, arrays: Mapping[str, Any]) -> Any:
    """Convert a document that `encode` returned back to plain data.

    A document is data that others may have written. So each array is used once, and only the bit
    generators of numpy are made.

    Raises:
        LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError: it is
            not a document of `encode`.
    """
    return _decode(document, _Arrays(arrays))


class _Arrays:
    """Arrays that a document may name once each: a copy for each name could fill the memory."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays
        self._taken: set[str] = set()

    def take(self, name: str) -> Any:
        if name in self._taken:
            raise ValueError(f"array {name!r} is named twice")
        self._taken.add(name)
        return self._arrays[name]


def _decode(document: Any, arrays: _Arrays) -> Any:
    if isinstance(document, list):
        return [_decode(item, arrays) for item in document]
    if not isinstance(document, dict):
        return document
    match next(iter(document), None):
        case "$int":
            return int(document["$int"])
        case "$floats":
            floats = arrays.take(document["$floats"])
            if floats.dtype != np.float64 or floats.ndim != 1:
                raise TypeError("a list of floats is stored as another array")
            return floats.tolist()
        case "$float":
            return float(document["$float"])
        case "$bytes":
            return base64.b64decode(document["$bytes"])
        case "$tuple":
            return tuple(_decode(item, arrays) for item in document["$tuple"])
        case "$set":
            return {_decode(item, arrays) for item in document["$set"]}
        case "$frozenset":
            return frozenset(_decode(item, arrays) for item in document["$frozenset"])
        case "$deque":
            items = (_decode(item, arrays) for item in document["$deque"])
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
            version, words, gauss = _decode(document["$random"], arrays)
            generator = random.Random()  # nosec B311  # no secret
            generator.setstate(generator_states.python_state(version, words, gauss))
            return generator
        case "$generator":
            state = _decode(document["$generator"], arrays)
            bits = BIT_GENERATORS[state["bit_generator"]](0)
            bits.state = generator_states.numpy_state(state)
            return np.random.Generator(bits)
        case "$randomstate":
            legacy = np.random.RandomState(np.random.MT19937(0))  # RandomState(0) draws a seed
            words = _decode(document["$randomstate"], arrays)
            legacy.set_state(generator_states.numpy_state(words))
            return legacy
        case "$array":
            array = arrays.take(document["$array"])
            return np.array(array)[()] if document["scalar"] else np.array(array)
    return {key: _decode(item, arrays) for key, item in document.items()}


def _pairs(pairs: list[Any], arrays: _Arrays) -> dict[Any, Any]:
    return {_decode(key, arrays): _decode(value, arrays) for key, value in pairs}


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

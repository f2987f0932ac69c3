"""Immutable values as plain data: dates, paths, enums, tensors. Also tables of pandas."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import tensorflow as tf

from outlast.training.state import trees

SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_TABLES = ("DataFrame", "Series")
MANY = 8  # at least so many values of one kind are stored as one array

Item = Any
FindClass = Callable[[str], Any]


def encode(value: Any) -> dict[str, Any] | None:
    """Return a value as plain data with its kind under "is", or None if the kind is unknown."""
    kind = type(value)
    encoder = _ENCODERS.get(kind)
    if encoder is not None:
        found: dict[str, Any] | None = encoder(value)
        return found
    if isinstance(value, Enum):
        return {"is": "enum", "of": class_name(kind), "name": value.name}
    if isinstance(value, PurePath):
        return {"is": "path", "text": str(value)}
    if isinstance(value, tf.Tensor):
        return _tensor(value)
    if kind.__module__.partition(".")[0] == "pandas":
        return _table(value)
    return None


def knows(value: Any) -> bool:
    """Return whether `encode` knows a value, if what is in it can be stored."""
    kind = type(value)
    if kind in _ENCODERS or issubclass(kind, Enum | PurePath):
        return True
    if issubclass(kind, tf.Tensor):
        return _has_numbers(value)
    return kind.__module__.partition(".")[0] == "pandas" and kind.__name__ in _TABLES


def decode(item: dict[str, Any], find_class: FindClass) -> Any:
    """Return the value that `encode` encoded.

    `find_class` returns the script's enum of a name. It raises `LookupError` if there is none.
    """
    match item["is"]:
        case "complex":
            return complex(*item["parts"])
        case "datetime":
            found = datetime.fromisoformat(item["text"]).replace(fold=item["fold"])
            return found.replace(tzinfo=ZoneInfo(item["zone"])) if item["zone"] else found
        case "date":
            return date.fromisoformat(item["text"])
        case "time":
            return time.fromisoformat(item["text"])
        case "timedelta":
            return timedelta(*item["parts"])
        case "decimal":
            return Decimal(item["text"])
        case "fraction":
            return Fraction(*item["parts"])
        case "uuid":
            return UUID(item["text"])
        case "path":
            return Path(item["text"])
        case "range":
            return range(*item["parts"])
        case "enum":
            return find_class(item["of"])[item["name"]]
        case "tensor":
            return tf.convert_to_tensor(item["value"])
        case "frame" | "series":
            return _table_of(item)
    raise LookupError(item["is"])


def class_name(kind: type) -> str:
    """Return the name that identifies a class of the script in a checkpoint."""
    return f"{kind.__module__}.{kind.__qualname__}"


def stack(values: Any) -> dict[str, Any] | None:
    """Return many NumPy numbers or tensors of one kind as one array, or None for other values.

    Otherwise each would be a dataset of its own, and a callback may collect thousands of them.
    """
    kinds = set(map(type, values))
    if len(values) < MANY or len(kinds) != 1:
        return None
    kind = next(iter(kinds))
    if issubclass(kind, np.generic):
        array = np.array(list(values))
        return {"stack": array, "tensors": False} if can_store(array) else None
    if issubclass(kind, tf.Tensor) and len({(v.dtype, tuple(v.shape)) for v in values}) == 1:
        array = np.stack([np.asarray(v) for v in values])
        return {"stack": array, "tensors": True} if can_store(array) else None
    return None


def unstack(stacked: dict[str, Any]) -> list[Any]:
    """Return the values that `stack` stacked."""
    if stacked["tensors"]:
        return [tf.convert_to_tensor(array) for array in stacked["stack"]]
    return list(stacked["stack"])


def can_store(value: Any) -> bool:
    """Return whether `trees` can store an array, number or generator."""
    try:
        trees.encode(value, {}, "")
    except trees.NotPlain:
        return False
    return True


def _datetime(value: datetime) -> dict[str, Any] | None:
    zone = value.tzinfo
    if not (zone is None or type(zone) in (timezone, ZoneInfo)):
        return None
    key = zone.key if isinstance(zone, ZoneInfo) else None
    bare = value.replace(tzinfo=None) if key else value
    return {"is": "datetime", "text": bare.isoformat(), "zone": key, "fold": value.fold}


def _time(value: time) -> dict[str, Any] | None:
    if not (value.tzinfo is None or type(value.tzinfo) is timezone):
        return None
    return {"is": "time", "text": value.isoformat()}


def _has_numbers(value: Any) -> bool:
    """Return whether a tensor is neither symbolic nor a handle."""
    return hasattr(value, "numpy") and value.dtype not in (tf.resource, tf.variant)


def _tensor(value: Any) -> dict[str, Any] | None:
    if not _has_numbers(value):
        return None
    array = np.asarray(value)
    return {"is": "tensor", "value": array} if can_store(array) else None


def _table(value: Any) -> dict[str, Any] | None:
    pandas = sys.modules["pandas"]
    if type(value) is pandas.DataFrame:
        index = _index(value.index)
        columns = [_column(value.iloc[:, i]) for i in range(value.shape[1])]
        names = [name for name in value.columns if type(name) in SCALARS]
        if index is None or None in columns or len(names) != len(columns):
            return None
        return {"is": "frame", "index": index, "names": names, "columns": columns}
    if type(value) is pandas.Series:
        index, column = _index(value.index), _column(value)
        if index is None or column is None or type(value.name) not in SCALARS:
            return None
        return {"is": "series", "index": index, "name": value.name, "column": column}
    return None


def _index(index: Any) -> dict[str, Any] | None:
    pandas = sys.modules["pandas"]
    if type(index.name) not in SCALARS:
        return None
    if type(index) is pandas.RangeIndex:
        parts = [index.start, index.stop, index.step]
        return {"range": parts, "name": index.name}
    column = _column(index) if type(index) in (pandas.Index, pandas.DatetimeIndex) else None
    return None if column is None else {"column": column, "name": index.name}


def _column(values: Any) -> dict[str, Any] | None:
    array = values.to_numpy()
    if isinstance(values.dtype, np.dtype) and array.dtype.kind in "mM":
        return {"values": array.view(np.int64), "dtype": str(array.dtype)}
    if isinstance(values.dtype, np.dtype) and can_store(array):
        return {"values": array, "dtype": None}
    listed = values.tolist()
    if set(map(type, listed)) <= SCALARS and str(values.dtype) in ("object", "str", "string"):
        return {"values": listed, "dtype": str(values.dtype)}
    return None


def _values_of(column: dict[str, Any]) -> Any:
    if isinstance(column["values"], np.ndarray):
        array, dtype = column["values"], column["dtype"]
        return array if dtype is None else array.view(dtype)
    pandas = sys.modules["pandas"]
    return pandas.array(column["values"], dtype=column["dtype"])


def _table_of(item: dict[str, Any]) -> Any:
    import pandas

    stored = item["index"]
    if "range" in stored:
        index: Any = pandas.RangeIndex(*stored["range"], name=stored["name"])
    else:
        index = pandas.Index(_values_of(stored["column"]), name=stored["name"])
    if item["is"] == "series":
        return pandas.Series(_values_of(item["column"]), index=index, name=item["name"])
    columns = dict(enumerate(_values_of(column) for column in item["columns"]))
    frame = pandas.DataFrame(columns, index=index)
    frame.columns = pandas.Index(item["names"])
    return frame


_ENCODERS: dict[type, Callable[[Any], dict[str, Any] | None]] = {
    complex: lambda v: {"is": "complex", "parts": [v.real, v.imag]},
    datetime: _datetime,
    date: lambda v: {"is": "date", "text": v.isoformat()},
    time: _time,
    timedelta: lambda v: {"is": "timedelta", "parts": [v.days, v.seconds, v.microseconds]},
    Decimal: lambda v: {"is": "decimal", "text": str(v)},
    Fraction: lambda v: {"is": "fraction", "parts": [v.numerator, v.denominator]},
    UUID: lambda v: {"is": "uuid", "text": str(v)},
    range: lambda v: {"is": "range", "parts": [v.start, v.stop, v.step]},
}

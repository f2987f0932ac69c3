"""The array table: where each array lies in a file, so that reading parses no HDF5.

Outlast writes it behind the HDF5 content of a file, where HDF5 ignores it: JSON, its length in 8
bytes (little-endian), and 16 fixed bytes. The manifest's hash of the file seals it. A table is
data that others may have written: nothing of it is used before all of it has been checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import ml_dtypes
import msgspec
import numpy as np

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format import typed_json
from outlast_checkpoints.format.sealed_json import UNREADABLE
from outlast_checkpoints.format.snapshot import ArrayFile

FORMAT: Final = 1
LARGEST: Final = 32 << 20  # bytes of a table: some 400 000 arrays
FRAME: Final = 24  # bytes: the length and the fixed bytes behind the JSON
_MARK: Final = b"\noutlast arrays\n"
_LONGEST: Final = 4096  # characters of a path
_DEEPEST: Final = 64  # parts of a path
_ORDERS: Final[tuple[Literal["<", ">"], ...]] = ("<", ">")  # of bytes
_DIMENSIONS: Final = 32  # what every version of numpy and HDF5 can have
_LARGEST_ARRAY: Final = 1 << 62  # bytes, where empty dimensions count as 1

# Types that HDF5 lacks: opaque bytes with a name attribute, as Keras stores bfloat16.
OWN_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3b11fnuz",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "int4",
        "uint4",
    )
}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a type in tables, such as "<f4", "|b1" or "bfloat16".

    Types of more than 64 bits differ between processors, so their name tells their precision.
    """
    if dtype.name in OWN_DTYPES:
        return dtype.name
    extended = dtype.itemsize > {"f": 8, "c": 16}.get(dtype.kind, 8)
    return f"{dtype.str}:{np.finfo(dtype).nmant}" if extended else dtype.str


_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    dtype_name(dtype): dtype
    for dtype in (
        # Via its text, which of two types of one size (such as C's long) gives numpy's own.
        *(
            np.dtype(np.dtype(code).newbyteorder(order).str)
            for code in "?bBhHiIqQefdgFDG"
            for order in _ORDERS
        ),
        *OWN_DTYPES.values(),
    )
}

_Whole = Annotated[int, msgspec.Meta(ge=0)]


class ArrayPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array: its path, type, shape, and the place of its first byte (0 if it has none)."""

    name: str
    dtype: str
    shape: tuple[_Whole, ...]
    offset: _Whole

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return int(math.prod(self.shape)) * _DTYPES[self.dtype].itemsize


class GroupText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One text attribute: the path of its group ("" is the root), its name and its text."""

    group: str
    name: str
    text: str


class ArrayTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All arrays of a file, and the text attributes of its groups."""

    arrays: tuple[ArrayPlace, ...]
    attributes: tuple[GroupText, ...] = ()
    format: int = msgspec.field(default=FORMAT)


class _Format(msgspec.Struct):
    format: int = FORMAT


def normal(path: str) -> str:
    """Return a path as HDF5 understands it: without empty parts and "."."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def behind(table: ArrayTable) -> bytes:
    """Return the bytes of a table, to be written behind the HDF5 content."""
    text = msgspec.json.encode(table)
    return b"".join((text, len(text).to_bytes(FRAME - len(_MARK), "little"), _MARK))


def claimed(end: bytes | memoryview, size: int, path: str) -> int | None:
    """Return how many bytes at the end of a file are its table's, frame included.

    end: the file's last `FRAME` bytes or more. size: the file's size. None: it has no table.
    """
    if len(end) < FRAME or end[-len(_MARK) :] != _MARK:
        return None
    length = FRAME + int.from_bytes(end[-FRAME : -len(_MARK)], "little")
    if length > min(size, LARGEST):
        raise FormatError(path=path, reason=f"its array table claims {length} bytes")
    return length


def decode(text: bytes | memoryview, end: int, path: str) -> ArrayTable | None:
    """Decode and check a table. None: its format is newer, so HDF5 has to be asked.

    end: where the arrays' part of the file ends. Raises `FormatError`.
    """
    try:
        if typed_json.decode(text, _Format).format > FORMAT:
            return None
        table = typed_json.decode(text, ArrayTable)
    except UNREADABLE as error:
        raise FormatError(path=path, reason=f"cannot read its array table ({error})") from error
    if found := problem(table, end):
        raise FormatError(path=path, reason=found)
    return table


def problem(table: ArrayTable, end: int) -> str | None:
    """Return why a table of a file whose arrays end at `end` cannot be used, if so."""
    for place in table.arrays:
        if found := _place_problem(place, end):
            return f"array {place.name[:_LONGEST]!r} {found}"
    return _names_problem(table) or _overlap(table.arrays)


def taken_from(content: memoryview, table: ArrayTable) -> ArrayFile:
    """Return the arrays of a checked table as views of the file's content.

    Arrays that do not lie at a multiple of their type's size are copied.
    """
    arrays = {place.name: _array(content, place) for place in table.arrays}
    texts: dict[str, dict[str, str]] = {}
    for one in table.attributes:
        texts.setdefault(one.group, {})[one.name] = one.text
    return ArrayFile(arrays, texts)


def _array(content: memoryview, place: ArrayPlace) -> np.ndarray[Any, Any]:
    dtype = _DTYPES[place.dtype]
    span = np.frombuffer(content, np.uint8, place.size, place.offset if place.size else 0)
    if dtype.kind == "b":
        # In place, if it may be: any other byte than 0 and 1 would lead numpy astray.
        span = np.not_equal(span, 0, out=span.view(bool) if span.flags.writeable else None)
    found: np.ndarray[Any, Any] = span.view(dtype).reshape(place.shape)
    return found if found.flags.aligned else found.copy()


def _place_problem(place: ArrayPlace, end: int) -> str | None:
    dtype = _DTYPES.get(place.dtype)
    if dtype is None:
        return f"has dtype {place.dtype[:_LONGEST]!r}, which is not numeric"
    if len(place.shape) > _DIMENSIONS:
        return f"has more than {_DIMENSIONS} dimensions"
    widest = dtype.itemsize
    for length in place.shape:
        widest *= max(length, 1)
        if widest >= _LARGEST_ARRAY:  # before the numbers become long
            return "has a shape that no memory can hold"
    if place.size == 0:
        return "is empty, but lies somewhere" if place.offset else None
    if place.offset + place.size > end:
        return f"claims {place.size} bytes that the file does not have"
    return None


def _names_problem(table: ArrayTable) -> str | None:
    names = {place.name for place in table.arrays}
    if len(names) < len(table.arrays):
        return "two of its arrays have one name"
    groups = {one.group for one in table.attributes} - {""}
    for name in names | groups:
        whole = f"/{name}/"
        if len(name) > _LONGEST or whole.count("/") > _DEEPEST:
            return "the path of an array or group is too long or too deep"
        if "//" in whole or "/./" in whole or "\0" in name:
            return f"{name!r} cannot be the path of an array or group"
    above = groups | {name.rpartition("/")[0] for name in names}
    for name in above:
        parts = name.split("/")
        if any("/".join(parts[:count]) in names for count in range(1, len(parts) + 1)):
            return f"{name!r} is an array, or lies in one"
    for one in table.attributes:
        if not one.name or "\0" in one.name + one.text or len(one.name) > _LONGEST:
            return f"{one.name[:_LONGEST]!r} cannot be an attribute"
    return None


def _overlap(places: Iterable[ArrayPlace]) -> str | None:
    at, before = 0, ""
    for place in sorted((each for each in places if each.size), key=lambda each: each.offset):
        if place.offset < at:
            return f"arrays {before!r} and {place.name!r} claim the same bytes"
        at, before = place.offset + place.size, place.name
    return None

"""Where an HDF5 file without an array table has its arrays. Only the limited child calls it.

HDF5's library parses what others may have written, and a fault in it can be a fault in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import h5py

from outlast_checkpoints.arrays.array_table import (
    OWN_DTYPES,
    ArrayPlace,
    ArrayTable,
    GroupText,
    dtype_name,
)
from outlast_checkpoints.errors import FormatError

_MAX_DEPTH = 64
_NUMBERS = "biufc"


def layout_of(content: IO[bytes], path: str) -> ArrayTable:
    """Return the places of all arrays of a file, and the text attributes of its groups.

    The result is not checked; `array_table.problem` does that. Raises `FormatError` for links,
    filters, chunks, external and virtual storage, references and named types, and for text that
    is longer than the file.
    """
    arrays: list[ArrayPlace] = []
    texts: list[GroupText] = []
    text_bytes = content.seek(0, 2)
    with _reading(content, path) as file:
        for name, node in _walk(file, path):
            if isinstance(node, h5py.Dataset):
                arrays.append(_place(node, name, path))
                continue
            for key in node.attrs:
                text = _text(node, key, name, path)
                text_bytes -= len(text.encode(errors="replace"))
                if text_bytes < 0:
                    reason = "its attributes claim more bytes than the file has"
                    raise FormatError(path=path, reason=reason)
                texts.append(GroupText(name, key, text))
    return ArrayTable(tuple(arrays), tuple(texts))


@contextmanager
def _reading(content: IO[bytes], path: str) -> Iterator[Any]:
    """Open a file for reading. Every error of the HDF5 library becomes a `FormatError`."""
    try:
        with h5py.File(content, "r") as file:
            yield file
    except FormatError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise FormatError(path=path, reason=str(error)) from error


def _walk(file: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every group and dataset with its path, without following links."""
    yield "", file
    waiting = [("", file, 0)]
    seen = set()
    while waiting:
        prefix, group, depth = waiting.pop()
        for key in group:
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise FormatError(path=path, reason=f"{name} is a link")
            node = group[key]
            address = h5py.h5o.get_info(node.id).addr
            if address in seen:
                raise FormatError(path=path, reason=f"{name} appears twice")
            if depth > _MAX_DEPTH:
                reason = f"its groups are nested more than {_MAX_DEPTH} deep"
                raise FormatError(path=path, reason=reason)
            seen.add(address)
            if isinstance(node, h5py.Group):
                waiting.append((f"{name}/", node, depth + 1))
            elif not isinstance(node, h5py.Dataset):
                raise FormatError(path=path, reason=f"{name} is neither a group nor an array")
            yield name, node


def _place(node: Any, name: str, path: str) -> ArrayPlace:
    creation = node.id.get_create_plist()
    if (
        creation.get_layout() != h5py.h5d.CONTIGUOUS
        or creation.get_nfilters()
        or creation.get_external_count()
        or node.id.get_type().committed()
    ):
        raise FormatError(path=path, reason=f"{name} is compressed or stored elsewhere")
    dtype, shape = node.dtype, node.shape
    named = _text(node, "dtype", name, path) if "dtype" in node.attrs else None
    wanted = OWN_DTYPES.get(named, dtype) if named is not None else dtype
    if shape is None or wanted.itemsize != dtype.itemsize:
        raise FormatError(path=path, reason=f"{name} has no usable shape or type")
    opaque = dtype.kind == "V" and dtype.fields is None and dtype.subdtype is None
    if dtype.kind not in _NUMBERS and not (opaque and wanted is not dtype):
        raise FormatError(path=path, reason=f"{name} has dtype {dtype}, which is not numeric")
    size = math.prod(shape) * dtype.itemsize  # not HDF5's count, which may overflow
    start = node.id.get_offset() if size else 0
    if start is None or node.id.get_storage_size() != size:
        raise FormatError(
            path=path, reason=f"{name} claims {size} bytes that the file does not have"
        )
    return ArrayPlace(name, dtype_name(wanted), shape, start)


def _text(node: Any, key: str, name: str, path: str) -> str:
    attribute = node.attrs.get_id(key)
    if isinstance(attribute.get_type(), h5py.h5t.TypeStringID) and attribute.shape == ():
        value = node.attrs[key]
        if isinstance(value, str):
            return value
    raise FormatError(path=path, reason=f"attribute {key} of {name or '/'} is not text")

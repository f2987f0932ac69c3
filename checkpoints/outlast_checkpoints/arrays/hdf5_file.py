"""Arrays to HDF5 files and back, in the layout that Keras' `load_weights` reads.

The HDF5 library only lays the file out (see `hdf5_template`). This module writes the bytes in one
pass from front to back and hashes them on the way. A full disk is therefore an ordinary failed
write, never an error inside the library. The library's lock is not held during the write, and
nothing is read back to compute the hash.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from outlast_checkpoints.arrays import direct_io, page_cache
from outlast_checkpoints.arrays.hdf5_template import OWN_DTYPES, Template, template_of
from outlast_checkpoints.errors import FormatError, UsageError
from outlast_checkpoints.format.snapshot import ArrayFile

_PIECE = 4 << 20  # bytes written and hashed at once: still in the CPU's cache
_MAX_DEPTH = 64
_NUMBERS = "biufc"
_NOTHING = np.empty(0, np.uint8)


def write_arrays(
    path: Path, file: ArrayFile, *, past_cache: bool = False, let_go: bool = False
) -> tuple[int, str]:
    """Write a new file; return its size in bytes and its hash ("xxh3:…"). Does not sync.

    past_cache: write a large file with direct I/O. let_go: take the arrays out of `file` and
    release each as soon as it is written. Raises `FileExistsError`, `OSError` from the disk, and
    `UsageError` for an array that is neither numeric nor boolean.
    """
    arrays = as_arrays(file.taken() if let_go else file)
    large = sum(array.nbytes for array in arrays.values()) >= page_cache.WORTHWHILE
    pieces = _pieces(template_of(arrays, file.group_attributes), arrays)
    hasher = xxhash.xxh3_128()
    size = 0
    with open(path, "xb", buffering=0) as out:
        writer = (
            direct_io.DirectWriter(out.fileno())
            if large and past_cache
            else _PlainWriter(out.fileno())
        )
        for piece in pieces:
            hasher.update(piece)
            writer.write(piece)
            size += len(piece)
        writer.end()
    return size, f"xxh3:{hasher.hexdigest()}"


def file_pieces(file: ArrayFile) -> Iterator[bytes | bytearray | memoryview]:
    """Yield the bytes of the file that `write_arrays` would write, from front to back.

    The same arrays and attributes always give the same bytes. Raises the same `UsageError`.
    """
    arrays = as_arrays(file)
    return _pieces(template_of(arrays, file.group_attributes), arrays)


def as_arrays(file: ArrayFile) -> dict[str, np.ndarray[Any, Any]]:
    """Return a file's arrays by sorted path, as contiguous numpy arrays.

    Raises `UsageError` for an array that is neither numeric nor boolean.
    """
    return {name: _as_array(name, value) for name, value in sorted(file.arrays.items())}


def read_file(content: memoryview, path: str) -> ArrayFile:
    """Return all arrays of a file by path, and the text attributes of its groups.

    content: the file's bytes; the arrays are views of it. path: the file's name, for errors. Raises
    `FormatError` for links, filters, external and virtual storage, references and named types. It
    also refuses arrays or texts that claim more bytes than the file has, so that nothing in a file
    is used twice.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    texts: dict[str, dict[str, str]] = {}
    array_bytes = text_bytes = len(content)
    with _reading(content, path) as file:
        for name, node in _walk(file, path):
            if isinstance(node, h5py.Dataset):
                arrays[name] = _read(node, name, path, content, array_bytes)
                array_bytes -= arrays[name].nbytes
                continue
            for key in node.attrs:
                text = _text(node, key, name, path)
                text_bytes -= len(text.encode(errors="replace"))
                if text_bytes < 0:
                    reason = "its attributes claim more bytes than the file has"
                    raise FormatError(path=path, reason=reason)
                texts.setdefault(name, {})[key] = text
    return ArrayFile(arrays, texts)


def _as_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value, order="C")
    if array.dtype.kind not in _NUMBERS and array.dtype.name not in OWN_DTYPES:
        problem = f"{name} has dtype {array.dtype}, which is not numeric"
        raise UsageError(field="snapshot", problem=problem, hint="Convert it to a numeric array.")
    return array


def _pieces(
    template: Template, arrays: dict[str, np.ndarray[Any, Any]]
) -> Iterator[bytes | bytearray | memoryview]:
    """Yield the file's content from front to back: small parts joined, large arrays as they are.

    An array is removed from `arrays` when it is yielded.
    """
    gathered = bytearray()
    for before, name in zip(template.around, [*template.order, None], strict=True):
        gathered += before
        span = arrays.pop(name).reshape(-1).view(np.uint8) if name is not None else _NOTHING
        if len(gathered) + span.nbytes <= _PIECE:
            gathered += span.data
        else:
            yield gathered
            gathered = bytearray()
            for piece in range(0, span.nbytes, _PIECE):
                yield span.data[piece : piece + _PIECE]
    yield gathered


class _PlainWriter:
    """Writes through the page cache. The disk starts on a large file while it is being written."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._size = self._on_its_way = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        self._size += len(view)
        while view:
            view = view[os.write(self._file, view) :]
        if self._size - self._on_its_way >= page_cache.WORTHWHILE:
            page_cache.begin_to_write(self._file, self._on_its_way, self._size)
            self._on_its_way = self._size

    def end(self) -> None: ...


class _Content(io.RawIOBase):
    """Bytes in memory as a file that HDF5 reads."""

    def __init__(self, content: memoryview) -> None:
        super().__init__()
        self._content = content
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._content))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._content[self._at : self._at + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


@contextmanager
def _reading(content: memoryview, path: str) -> Iterator[Any]:
    """Open a file for reading. Every error of the HDF5 library becomes a `FormatError`."""
    try:
        with h5py.File(_Content(content), "r") as file:
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


def _read(node: Any, name: str, path: str, content: memoryview, left: int) -> np.ndarray[Any, Any]:
    """Return an array. left: bytes of the file that earlier arrays have not claimed."""
    creation = node.id.get_create_plist()
    if (
        creation.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
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
    if size > left or node.id.get_storage_size() != size:
        raise FormatError(
            path=path, reason=f"{name} claims {size} bytes that the file does not have"
        )
    start = node.id.get_offset()
    if size and start is not None and start + size <= len(content):
        array = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)
        if not array.flags.aligned:
            array = array.copy()
    else:
        array = np.empty(shape, dtype)
        if size:
            node.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array.view(wanted)


def _text(node: Any, key: str, name: str, path: str) -> str:
    attribute = node.attrs.get_id(key)
    if isinstance(attribute.get_type(), h5py.h5t.TypeStringID) and attribute.shape == ():
        value = node.attrs[key]
        if isinstance(value, str):
            return value
    raise FormatError(path=path, reason=f"attribute {key} of {name or '/'} is not text")

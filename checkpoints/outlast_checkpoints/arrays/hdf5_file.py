"""Arrays to HDF5 files, in the layout that Keras' `load_weights` reads.

The HDF5 library only lays the file out (see `hdf5_template`). This module writes the bytes in one
pass from front to back and hashes them on the way. A full disk is therefore an ordinary failed
write, never an error inside the library. The library's lock is not held during the write, and
nothing is read back to compute the hash. `array_reader` reads the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from outlast_checkpoints.arrays import direct_io, page_cache
from outlast_checkpoints.arrays.array_table import OWN_DTYPES
from outlast_checkpoints.arrays.file_hasher import FileHasher
from outlast_checkpoints.arrays.hdf5_template import Template, template_of
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.snapshot import ArrayFile

_PIECE = 4 << 20  # bytes written and hashed at once: still in the CPU's cache
_NUMBERS = "biufc"
_NOTHING = np.empty(0, np.uint8)


def write_arrays(
    path: Path,
    file: ArrayFile,
    *,
    past_cache: bool = False,
    release_written: bool = False,
    hasher: FileHasher | None = None,
    follow: Callable[[Path, int], Callable[[int], None] | None] | None = None,
) -> tuple[int, str]:
    """Write a new file; return its size in bytes and its hash ("xxh3:…"). Does not sync.

    past_cache: write a large file with direct I/O. release_written: take the arrays out of `file`
    and release each as soon as it is written. hasher: hashes the file too; end it after the call,
    when the file is synced. follow: called with the file and the size that it will have; what it
    returns is called with the number of bytes that are in the file. Raises `FileExistsError`,
    `OSError` from the disk, and `UsageError` for an array that is neither numeric nor boolean.
    """
    arrays = as_arrays(file.taken() if release_written else file)
    large = sum(array.nbytes for array in arrays.values()) >= page_cache.WORTHWHILE
    template = template_of(arrays, file.group_attributes)
    whole = sum(map(len, template.around)) + sum(array.nbytes for array in arrays.values())
    pieces = _pieces(template, arrays)
    hasher = hasher or FileHasher()
    size = 0
    with open(path, "xb", buffering=0) as out:
        writer = (
            direct_io.DirectWriter(out.fileno())
            if large and past_cache
            else _PlainWriter(out.fileno())
        )
        grown = follow(path, whole) if follow else None
        for piece in pieces:
            hasher.update(piece)
            writer.write(piece)
            size += len(piece)
            if grown:
                grown(writer.written)
        writer.end()
        if grown:
            grown(size)
    return size, hasher.xxh3


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

    @property
    def written(self) -> int:
        return self._size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        self._size += len(view)
        while view:
            view = view[os.write(self._file, view) :]
        if self._size - self._on_its_way >= page_cache.WORTHWHILE:
            page_cache.begin_to_write(self._file, self._on_its_way, self._size)
            self._on_its_way = self._size

    def end(self) -> None: ...

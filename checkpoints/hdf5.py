"""Arrays to HDF5 and back, in the layout that Keras' own `load_weights` reads.

HDF5 only lays the file out, in memory: datasets are allocated but not filled. The bytes are then
written by this file itself in one pass from front to back, layout and arrays as they come, and
hashed on the way. So a full disk is met by an ordinary write and never inside the HDF5 library,
whose lock is not held meanwhile, and nothing has to be read back to know its hash.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import xxhash

from checkpoints.errors import FormatError, UsageError
from checkpoints.snapshot import ArrayFile

_PAGE = 4096
_PIECE = 4 << 20  # bytes written and hashed at once: still in the processor's cache
_MAX_DEPTH = 64
_NUMBERS = "biufc"
_OWN_DTYPES = {  # stored as opaque bytes, named by an attribute, as Keras does for bfloat16
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


def write_arrays(path: Path, file: ArrayFile) -> tuple[int, str]:
    """Write a new file and return its size in bytes and its hash ("xxh3:…"). Does not sync.

    Raises `FileExistsError`, `OSError` as the disk does, `UsageError` for an array that is
    neither numbers nor booleans.
    """
    hasher = xxhash.xxh3_128()
    size = 0
    pieces = file_pieces(file)
    with open(path, "xb", buffering=0) as out:
        for piece in pieces:
            hasher.update(piece)
            _write_all(out.fileno(), piece)
            size += len(piece)
    return size, f"xxh3:{hasher.hexdigest()}"


def file_pieces(file: ArrayFile) -> Iterator[bytes | bytearray | memoryview]:
    """Return the content of the file that `write_arrays` writes, from front to back.

    The same arrays and attributes always give the same bytes. Raises `UsageError` as it does.
    """
    arrays = as_arrays(file)
    skeleton = _Skeleton()
    return _pieces(skeleton, _lay_out(skeleton, arrays, file))


def as_arrays(file: ArrayFile) -> dict[str, np.ndarray[Any, Any]]:
    """Return a file's arrays by path, sorted, as numpy's own and contiguous.

    Raises `UsageError` for an array that is neither numbers nor booleans.
    """
    return {name: _as_array(name, value) for name, value in sorted(file.arrays.items())}


def read_arrays(path: Path) -> dict[str, Any]:
    """Return every array of a file by its path in it. Raises `FormatError` for anything odd.

    Links, filters and external or virtual storage are refused, and sizes are checked against the
    file's own before memory is taken.
    """
    arrays = {}
    with _reading(path) as file:
        size = path.stat().st_size
        for name, node in _walk(file, path):
            if isinstance(node, h5py.Dataset):
                arrays[name] = _read(node, name, path, size)
    return arrays


def read_attributes(path: Path) -> dict[str, dict[str, str]]:
    """Return the text attributes of every group that has some, by the group's path."""
    found = {}
    with _reading(path) as file:
        for name, node in _walk(file, path):
            if isinstance(node, h5py.Group) and len(node.attrs):
                found[name] = {key: _text(node, key, name, path) for key in node.attrs}
    return found


class _Skeleton(io.RawIOBase):
    """A sparse file in memory. HDF5 writes its layout here; where arrays go stays empty."""

    def __init__(self) -> None:
        super().__init__()
        self._pages: dict[int, bytearray] = {}
        self._at = 0
        self.end = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        count = max(0, min(len(view), self.end - self._at))
        view[:count] = b"".join(self.read_span(self._at, self._at + count))
        self._at += count
        return count

    def write(self, data: Any) -> int:
        view = memoryview(data)
        done = 0
        while done < len(view):
            page, inside = divmod(self._at + done, _PAGE)
            count = min(_PAGE - inside, len(view) - done)
            content = self._pages.setdefault(page, bytearray(_PAGE))
            content[inside : inside + count] = view[done : done + count]
            done += count
        self._at += done
        self.end = max(self.end, self._at)
        return done

    def truncate(self, size: int | None = None) -> int:
        self.end = self._at if size is None else size
        return self.end

    def read_span(self, start: int, end: int) -> Iterator[bytes]:
        """Give the bytes of a span, page by page; what was never written is zero."""
        while start < end:
            page, inside = divmod(start, _PAGE)
            count = min(_PAGE - inside, end - start)
            content = self._pages.get(page)
            yield bytes(count) if content is None else bytes(content[inside : inside + count])
            start += count


def _as_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value, order="C")
    if array.dtype.kind not in _NUMBERS and array.dtype.name not in _OWN_DTYPES:
        problem = f"{name} holds {array.dtype}, not numbers"
        raise UsageError(field="snapshot", problem=problem, hint="Convert it to an array.")
    return array


def _lay_out(
    skeleton: _Skeleton, arrays: dict[str, np.ndarray[Any, Any]], file: ArrayFile
) -> list[tuple[int, np.ndarray[Any, Any]]]:
    """Let HDF5 write everything but the arrays; return where each of those goes, in order."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # the same arrays give the same bytes at any time
    linking = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    linking.set_create_intermediate_group(True)
    linking.set_char_encoding(h5py.h5t.CSET_UTF8)
    spans = []
    with h5py.File(skeleton, "w") as out:
        for name, array in arrays.items():
            space = (
                h5py.h5s.create_simple(array.shape)
                if array.shape
                else h5py.h5s.create(h5py.h5s.SCALAR)
            )
            kind = h5py.h5t.py_create(array.dtype, logical=True)
            made = h5py.h5d.create(
                out.id, name.strip("/").encode(), kind, space, dcpl=creation, lcpl=linking
            )
            if array.dtype.name in _OWN_DTYPES:
                h5py.Dataset(made).attrs["dtype"] = array.dtype.name
            if array.nbytes:
                spans.append((made.get_offset(), array.reshape(-1).view(np.uint8)))
        for group, attributes in file.group_attributes.items():
            at = out.require_group(group.strip("/") or "/")
            for key, text in attributes.items():
                at.attrs[key] = text
    return sorted(spans, key=lambda span: span[0])


def _pieces(
    skeleton: _Skeleton, spans: list[tuple[int, np.ndarray[Any, Any]]]
) -> Iterator[bytes | bytearray | memoryview]:
    """Give the file's content from front to back: small things gathered, arrays as they are."""
    gathered = bytearray()
    at = 0
    end = max([skeleton.end, *(start + span.nbytes for start, span in spans)])
    for start, span in [*spans, (end, np.empty(0, np.uint8))]:
        if start < at:
            raise RuntimeError("HDF5 laid two arrays over each other")
        for page in skeleton.read_span(at, start):
            gathered += page
        if len(gathered) + span.nbytes <= _PIECE:
            gathered += span.data
        else:
            yield gathered
            gathered = bytearray()
            for piece in range(0, span.nbytes, _PIECE):
                yield span.data[piece : piece + _PIECE]
        at = start + span.nbytes
    yield gathered


def _write_all(file: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a file to read; whatever HDF5 stumbles over is an error of the file's format."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (FileNotFoundError, FormatError):
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise FormatError(path=str(path), reason=str(error)) from error


def _walk(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Give every group and dataset by its path, groups first. Follows no links."""
    yield "", file
    waiting = [("", file, 0)]
    seen = set()
    while waiting:
        prefix, group, depth = waiting.pop()
        for key in group:
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise FormatError(path=str(path), reason=f"{name} is a link to somewhere else")
            node = group[key]
            address = h5py.h5o.get_info(node.id).addr
            if address in seen or depth > _MAX_DEPTH:
                raise FormatError(path=str(path), reason=f"{name} is linked to twice")
            seen.add(address)
            if isinstance(node, h5py.Group):
                waiting.append((f"{name}/", node, depth + 1))
            elif not isinstance(node, h5py.Dataset):
                raise FormatError(path=str(path), reason=f"{name} is no array")
            yield name, node


def _read(node: Any, name: str, path: Path, file_size: int) -> np.ndarray[Any, Any]:
    creation = node.id.get_create_plist()
    if (
        creation.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
        or creation.get_nfilters()
        or creation.get_external_count()
    ):
        raise FormatError(path=str(path), reason=f"{name} is not stored plainly")
    dtype = node.dtype
    named = _text(node, "dtype", name, path) if "dtype" in node.attrs else None
    wanted = _OWN_DTYPES.get(named, dtype) if named is not None else dtype
    if node.shape is None or wanted.itemsize != dtype.itemsize:
        raise FormatError(path=str(path), reason=f"{name} has no usable shape or type")
    if dtype.kind not in _NUMBERS and wanted is dtype:
        raise FormatError(path=str(path), reason=f"{name} holds {dtype}, not numbers")
    size = node.size * dtype.itemsize
    if size > file_size or node.id.get_storage_size() != size:
        raise FormatError(path=str(path), reason=f"{name} claims {size} bytes, which it has not")
    array = np.empty(node.shape, dtype)
    if size:
        node.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array.view(wanted)


def _text(node: Any, key: str, name: str, path: Path) -> str:
    attribute = node.attrs.get_id(key)
    if isinstance(attribute.get_type(), h5py.h5t.TypeStringID) and attribute.shape == ():
        value = node.attrs[key]
        if isinstance(value, str):
            return value
    raise FormatError(path=str(path), reason=f"attribute {key} of {name or '/'} is no text")

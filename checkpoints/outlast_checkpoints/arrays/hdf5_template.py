"""HDF5 templates: the bytes that HDF5 writes around the arrays of a file, and our array table.

HDF5 lays the file out in memory; datasets are allocated but not filled. Arrays with the same names,
dtypes and shapes give the same template, so it is cached: for a small model HDF5 takes longer than
all the rest of a save.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from outlast_checkpoints.arrays import array_table
from outlast_checkpoints.arrays.array_table import OWN_DTYPES, ArrayPlace, ArrayTable, GroupText
from outlast_checkpoints.errors import UsageError

_PAGE = 4096
_APART = 64  # bytes; arrays of this size or more start at a multiple of it, for aligned views
_KEPT = 8  # templates; a job has two files, and a last epoch or a second phase may differ
_Array = tuple[str, np.dtype[Any], tuple[int, ...]]  # path, type, shape
_Attribute = tuple[str, str, str]  # group, name, text


@dataclass(frozen=True, slots=True)
class Template:
    """The bytes around the arrays of a file.

    order: paths of the non-empty arrays, in file order. around: the bytes before the first array,
    between two, and after the last: one entry more than `order` has.
    """

    order: tuple[str, ...]
    around: tuple[bytes, ...]


def template_of(
    arrays: Mapping[str, np.ndarray[Any, Any]], attributes: Mapping[str, Mapping[str, str]]
) -> Template:
    """Return the template of a file with these arrays and these text attributes of groups.

    Raises `UsageError` where the file could not be read back, and `OSError`, `RuntimeError` or
    `ValueError` for what HDF5 refuses.
    """
    return _laid_out(
        tuple((path, array.dtype, array.shape) for path, array in arrays.items()),
        tuple((g, key, text) for g, texts in attributes.items() for key, text in texts.items()),
    )


@functools.lru_cache(maxsize=_KEPT)
def _laid_out(arrays: tuple[_Array, ...], attributes: tuple[_Attribute, ...]) -> Template:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # so that the same arrays always give the same bytes
    linking = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    linking.set_create_intermediate_group(True)
    linking.set_char_encoding(h5py.h5t.CSET_UTF8)
    memory = _SparseFile()
    places: dict[str, ArrayPlace] = {}
    with h5py.File(memory, "w", alignment_threshold=_APART, alignment_interval=_APART) as out:
        for path, dtype, shape in arrays:
            space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
            stored = np.dtype(f"V{dtype.itemsize}") if dtype.name in OWN_DTYPES else dtype
            kind = h5py.h5t.py_create(stored, logical=True)
            name = path.strip("/").encode()
            made = h5py.h5d.create(out.id, name, kind, space, dcpl=creation, lcpl=linking)
            if dtype.name in OWN_DTYPES:
                h5py.Dataset(made).attrs["dtype"] = dtype.name
            offset = made.get_offset() if space.get_simple_extent_npoints() else 0
            named = array_table.normal(path), array_table.dtype_name(dtype)
            places[path] = ArrayPlace(*named, shape, offset)
        for group, key, text in attributes:
            out.require_group(group.strip("/") or "/").attrs[key] = text
    spans = sorted((place.offset, place.size, path) for path, place in places.items() if place.size)
    end = max([memory.end, *(start + size for start, size, _ in spans)])
    around = _around(memory, spans, end)
    around[-1] += _table(places.values(), attributes, end)
    return Template(tuple(path for *_, path in spans), tuple(around))


def _table(places: Iterable[ArrayPlace], attributes: Iterable[_Attribute], end: int) -> bytes:
    """Return the bytes of a file's table. Raises `UsageError` if reading would refuse it."""
    texts = (GroupText(array_table.normal(group), *text) for group, *text in attributes)
    table = ArrayTable(tuple(places), tuple(texts))
    behind = array_table.behind(table)
    problem = array_table.problem(table, end)
    if len(behind) > array_table.LARGEST:
        problem = f"it has {len(table.arrays)} arrays, whose table is too large"
    if problem:
        hint = "Rename its arrays, or save fewer."
        raise UsageError(field="snapshot", problem=problem, hint=hint)
    return behind


def _around(memory: _SparseFile, spans: list[tuple[int, int, str]], end: int) -> list[bytes]:
    around = []
    at = 0
    for start, size, _ in [*spans, (end, 0, "")]:
        if start < at:
            raise RuntimeError("HDF5 laid two arrays over each other")
        around.append(b"".join(memory.read_span(at, start)))
        at = start + size
    return around


class _SparseFile(io.RawIOBase):
    """A sparse file in memory. HDF5 writes its layout here; the arrays' places stay empty."""

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
        """Yield the bytes of a span page by page. Unwritten bytes are zero."""
        while start < end:
            page, inside = divmod(start, _PAGE)
            count = min(_PAGE - inside, end - start)
            content = self._pages.get(page)
            yield bytes(count) if content is None else bytes(content[inside : inside + count])
            start += count

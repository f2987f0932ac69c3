"""Unchanged arrays: found by their hashes, so that they are written once and then linked.

Only hashes decide, never what a framework calls trainable. Of a commit only the hashes are kept,
no arrays. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import FileEntry
from outlast_checkpoints.format.snapshot import Progress

if TYPE_CHECKING:
    import numpy as np

_SMALL = 64 << 10  # bytes; smaller arrays are always written
_LEAST = 1 << 20  # bytes; less is not worth a second file
_SHARE = 10  # nor is less than one in so many of the file's bytes
_ENDING = ".h5"

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class ArrayHash:
    """The hashes of an array.

    head: hash of its dtype, shape and first bytes. whole: hash of everything, or None if the head
    had already changed: so hashing trained arrays costs next to nothing.
    """

    head: bytes
    whole: bytes | None


ArrayHashes = Mapping[str, ArrayHash]


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """A committed file of unchanged arrays: its checkpoint, manifest entry and array paths."""

    checkpoint: CheckpointId
    entry: FileEntry
    paths: frozenset[str]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a commit saw of a file: the hashes by path, and its file of unchanged arrays."""

    progress: Progress
    hashes: ArrayHashes
    part: FrozenPart | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """How to write a file now.

    hashes: hashes for the next commit to compare with. link: an existing part to link. fresh: paths
    to write to a new part. Without `link` and `fresh` the file is written whole.
    """

    hashes: ArrayHashes
    link: FrozenPart | None = None
    fresh: frozenset[str] = frozenset()


def split(arrays: Arrays, progress: Progress, last: Seen | None) -> Split:
    """Compare a file's arrays with the last commit's, and decide how to write them.

    The end of a phase is always written whole, so that `load_weights` can read it.
    """
    large = {path: array for path, array in arrays.items() if array.nbytes >= _SMALL}
    if progress.finished or not _is_worthwhile(large, arrays):
        return Split({})
    before = {} if last is None else last.hashes
    hashes = {path: _hash(array, before.get(path)) for path, array in large.items()}
    if last is None:
        return Split(hashes)
    unchanged = frozenset(p for p in hashes if hashes[p].whole and hashes[p] == before.get(p))
    # Between two saves at the same place nothing changes, so equality proves nothing.
    trained = progress.phase == last.progress.phase and progress.step > last.progress.step
    part = last.part
    if part is not None and part.paths <= unchanged:
        more = trained and _is_worthwhile(unchanged - part.paths, arrays)
        return Split(hashes, fresh=unchanged) if more else Split(hashes, link=part)
    return Split(
        hashes, fresh=unchanged if trained and _is_worthwhile(unchanged, arrays) else frozenset()
    )


def part_name(name: str) -> str:
    """Return the name of a file's part, such as "model.weights.frozen.h5"."""
    return f"{name.removesuffix(_ENDING)}.frozen{_ENDING}"


def _is_worthwhile(paths: Collection[str], arrays: Arrays) -> bool:
    size = sum(arrays[path].nbytes for path in paths)
    return size >= max(_LEAST, sum(array.nbytes for array in arrays.values()) / _SHARE)


def _hash(array: np.ndarray[Any, Any], before: ArrayHash | None) -> ArrayHash:
    data = array.reshape(-1).view("uint8").data
    hasher = xxhash.xxh3_128(f"{array.dtype.name}{array.shape}".encode())
    hasher.update(data[:_SMALL])
    head = hasher.digest()
    if before is not None and head != before.head:
        return ArrayHash(head, None)
    hasher.update(data[_SMALL:])
    return ArrayHash(head, hasher.digest())

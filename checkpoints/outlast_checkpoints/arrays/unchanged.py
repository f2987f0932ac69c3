"""Which arrays of a file have not changed since the last commit, so that they are written once.

Told by the hashes of the arrays alone, never by what a framework calls trainable; what is kept of
a commit are those hashes, no array. Pure: nothing is read or written here.
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

_SMALL = 64 << 10  # bytes; smaller arrays are written every time, and not looked at
_LEAST = 1 << 20  # bytes that another file, its sync and its place in the manifest are worth
_SHARE = 10  # and at least one in so many of the file's bytes
_ENDING = ".h5"

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class Print:
    """What is remembered of an array.

    head: hash of its type, its shape and its first bytes. whole: of all of it; None where the head
    had changed already, so that hashing what is trained costs next to nothing.
    """

    head: bytes
    whole: bytes | None


Prints = Mapping[str, Print]


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """A file of unchanged arrays, as a commit named it: whose, which, and the paths in it."""

    checkpoint: CheckpointId
    entry: FileEntry
    paths: frozenset[str]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a file's arrays by a commit. prints: hashes by path. part: if it had one."""

    progress: Progress
    prints: Prints
    part: FrozenPart | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """How to write a file now.

    prints: for the next commit to compare with. link: a part to name again as it is. fresh: paths
    for a new part. Neither: the file is written whole.
    """

    prints: Prints
    link: FrozenPart | None = None
    fresh: frozenset[str] = frozenset()


def split(arrays: Arrays, progress: Progress, last: Seen | None) -> Split:
    """Compare the arrays of a file with the last commit's, and say how to write them.

    The end of a phase is whole, for it is what a training is for: `load_weights` reads it.
    """
    large = {path: array for path, array in arrays.items() if array.nbytes >= _SMALL}
    if progress.finished or not _pays(large, arrays):
        return Split({})
    before = {} if last is None else last.prints
    prints = {path: _print(array, before.get(path)) for path, array in large.items()}
    if last is None:
        return Split(prints)
    unchanged = frozenset(p for p in prints if prints[p].whole and prints[p] == before.get(p))
    # Between two saves of one place nothing changes, frozen or not.
    trained = progress.phase == last.progress.phase and progress.step > last.progress.step
    part = last.part
    if part is not None and part.paths <= unchanged:
        more = trained and _pays(unchanged - part.paths, arrays)
        return Split(prints, fresh=unchanged) if more else Split(prints, link=part)
    return Split(prints, fresh=unchanged if trained and _pays(unchanged, arrays) else frozenset())


def part_name(name: str) -> str:
    """Return what the part of a file is called: "model.weights.frozen.h5"."""
    return f"{name.removesuffix(_ENDING)}.frozen{_ENDING}"


def _pays(paths: Collection[str], arrays: Arrays) -> bool:
    size = sum(arrays[path].nbytes for path in paths)
    return size >= max(_LEAST, sum(array.nbytes for array in arrays.values()) / _SHARE)


def _print(array: np.ndarray[Any, Any], before: Print | None) -> Print:
    data = array.reshape(-1).view("uint8").data
    hasher = xxhash.xxh3_128(f"{array.dtype.name}{array.shape}".encode())
    hasher.update(data[:_SMALL])
    head = hasher.digest()
    if before is not None and head != before.head:
        return Print(head, None)
    hasher.update(data[_SMALL:])
    return Print(head, hasher.digest())

"""The files of one checkpoint: written and hashed, checked, read back.

What did not change since the checkpoint before is not written: see `frozen`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outlast_checkpoints.arrays import unchanged as frozen
from outlast_checkpoints.arrays.hashing import Digests, read_checked
from outlast_checkpoints.arrays.unchanged import FrozenPart, Seen
from outlast_checkpoints.errors import CheckpointDamaged, FormatError, NotFound, UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import FileEntry, Manifest
from outlast_checkpoints.format.sealed_json import checksum
from outlast_checkpoints.format.snapshot import ArrayFile, Snapshot
from outlast_checkpoints.storage.base import Storage

if TYPE_CHECKING:
    import numpy as np

_ARRAYS = ".h5"


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a file of a checkpoint (file: "manifest.json" or one it names).

    For an attempt's origin, `checkpoint` is the attempt's folder.
    """

    checkpoint: str
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.checkpoint}: {self.file}: {self.reason}"

    def error(self) -> CheckpointDamaged:
        """Return the error that says so."""
        return CheckpointDamaged(checkpoint=self.checkpoint, file=self.file, reason=self.reason)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a checkpoint, every byte of it checked.

    files: arrays by file and path in it. attributes: text by file, group and name.
    documents: the other files.
    """

    manifest: Manifest
    files: dict[str, dict[str, np.ndarray[Any, Any]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """What was written of a snapshot.

    entries: what a manifest says about the files. seen: by file, what the next snapshot is to be
    compared with.
    """

    entries: list[FileEntry] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)


def write(
    storage: Storage,
    checkpoint: CheckpointId,
    snapshot: Snapshot,
    last: Mapping[str, Seen] | None = None,
    *,
    over: bool = False,
    past_cache: bool = False,
) -> Written:
    """Write a snapshot's files, durably. over: over those that an earlier try has left.
    past_cache: large ones past the system's page cache.

    last: what the last commit saw of its files. Arrays that have not changed since go to a file of
    their own where that pays, and are not written again by the checkpoints that follow.
    """
    written = Written()
    for name in snapshot.files:
        entries, seen = _write_file(
            storage,
            checkpoint,
            snapshot,
            name,
            (last or {}).get(name),
            over=over,
            past_cache=past_cache,
        )
        written.entries.extend(entries)
        if seen is not None:
            written.seen[name] = seen
    for name, document in snapshot.documents.items():
        with storage.stage(_path(checkpoint, name, arrays=False), over=over) as path:
            path.write_bytes(document)
        written.entries.append(FileEntry(name, len(document), checksum(document)))
    return written


def check(storage: Storage, manifest: Manifest, digests: Digests | None = None) -> list[Damage]:
    """Read and hash every file that a manifest names; return what is wrong.

    digests: what other checkpoints' files were found to be, so that a shared one is read once.
    """
    digests = digests or Digests()
    found = (check_file(storage, manifest, entry, digests) for entry in manifest.files)
    return [damage for damage in found if damage is not None]


def check_file(
    storage: Storage, manifest: Manifest, entry: FileEntry, digests: Digests
) -> Damage | None:
    """Read and hash one file of a checkpoint; return what is wrong with it."""
    path = layout.checkpoint_file(manifest.id, entry.name)
    reason = digests.difference(storage, path, entry)
    return None if reason is None else Damage(manifest.checkpoint, entry.name, reason)


def check_size(storage: Storage, manifest: Manifest, entry: FileEntry) -> Damage | None:
    """Return what the size of a file alone tells of what is wrong with it."""
    try:
        size = storage.size(layout.checkpoint_file(manifest.id, entry.name))
    except NotFound:
        return Damage(manifest.checkpoint, entry.name, "it is missing")
    if size == entry.size:
        return None
    reason = f"it has {size} bytes instead of {entry.size}"
    return Damage(manifest.checkpoint, entry.name, reason)


def load(storage: Storage, manifest: Manifest) -> Loaded:
    """Return what a manifest names, checked. Raises `CheckpointDamaged`."""
    loaded = Loaded(manifest)
    for entry in manifest.files:
        if not entry.name.endswith(_ARRAYS):
            with _checked(storage, manifest, entry) as content:
                loaded.documents[entry.name] = bytes(content)
        elif entry.part_of is None:
            file = load_file(storage, manifest, entry.name)
            loaded.files[entry.name] = dict(file.arrays)
            loaded.attributes[entry.name] = {g: dict(a) for g, a in file.group_attributes.items()}
    return loaded


def load_file(storage: Storage, manifest: Manifest, name: str) -> ArrayFile:
    """Return an array file, its parts merged into it, checked. Raises `CheckpointDamaged`."""
    from outlast_checkpoints.arrays.hdf5_file import read_file

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    attributes: dict[str, dict[str, str]] = {}
    for entry in manifest.files:
        if name in (entry.name, entry.part_of):
            with _checked(storage, manifest, entry) as content:
                found = read_file(content, entry.name)
                for path in found.arrays.keys() & arrays.keys():
                    raise FormatError(path=entry.name, reason=f"{path} is in another file as well")
                arrays |= found.arrays
                attributes |= {
                    group: dict(texts) for group, texts in found.group_attributes.items()
                }
    return ArrayFile(arrays, attributes)


def _write_file(
    storage: Storage,
    checkpoint: CheckpointId,
    snapshot: Snapshot,
    name: str,
    last: Seen | None,
    *,
    over: bool,
    past_cache: bool,
) -> tuple[list[FileEntry], Seen | None]:
    """Write an array file whole, or without its unchanged arrays, which are a part of their own."""
    from outlast_checkpoints.arrays.hdf5_file import as_arrays

    file, part_name = snapshot.files[name], frozen.part_name(name)
    written = functools.partial(
        _write_arrays,
        storage,
        checkpoint,
        over=over,
        past_cache=past_cache,
        let_go=snapshot.let_go,
    )
    possible = part_name not in snapshot.files and layout.is_name(part_name)
    if not (possible and storage.capabilities.links):
        return [written(name, file)], None
    arrays = as_arrays(file.taken() if snapshot.let_go else file)
    how = frozen.split(arrays, snapshot.progress, last)
    part = None
    if how.link is not None:
        source = layout.checkpoint_file(how.link.checkpoint, part_name)
        # Where it cannot be linked (its checkpoint was deleted, say), all is written.
        if storage.link(source, layout.checkpoint_file(checkpoint, part_name)):
            part = FrozenPart(checkpoint, how.link.entry, how.link.paths)
    elif how.fresh:
        unchanged = ArrayFile({path: arrays[path] for path in how.fresh})
        entry = written(part_name, unchanged, name)
        part = FrozenPart(checkpoint, entry, how.fresh)
    if part is not None:
        arrays = {path: array for path, array in arrays.items() if path not in part.paths}
    rest = ArrayFile(arrays, file.group_attributes)
    whole = written(name, rest)
    entries = [whole, *([part.entry] if part else [])]
    return entries, Seen(snapshot.progress, how.prints, part)


def _write_arrays(
    storage: Storage,
    checkpoint: CheckpointId,
    name: str,
    file: ArrayFile,
    part_of: str | None = None,
    *,
    over: bool,
    past_cache: bool,
    let_go: bool,
) -> FileEntry:
    from outlast_checkpoints.arrays.hdf5_file import write_arrays

    with storage.stage(_path(checkpoint, name, arrays=True), over=over) as path:
        size, digest = write_arrays(path, file, past_cache=past_cache, let_go=let_go)
    return FileEntry(name, size, digest, part_of)


@contextmanager
def _checked(storage: Storage, manifest: Manifest, entry: FileEntry) -> Iterator[memoryview]:
    """Give a file's content, every byte of it right. Raises `CheckpointDamaged`.

    It is read once: what was hashed is what is used, and nothing that the disk says afterwards.
    """
    try:
        with storage.fetch(layout.checkpoint_file(manifest.id, entry.name)) as local:
            content, reason = read_checked(local, entry)
        if content is not None:
            yield content
            return
    except NotFound:
        reason = "it is missing"
    except FormatError as error:
        reason = error.fields["reason"]
    raise Damage(manifest.checkpoint, entry.name, reason).error()


def _path(checkpoint: CheckpointId, name: str, *, arrays: bool) -> str:
    layout.check_name("file", name)
    if name == layout.MANIFEST_FILE or name.endswith(_ARRAYS) is not arrays:
        problem = f"{name!r} is no name for {'arrays' if arrays else 'a document'}"
        raise UsageError(field="snapshot", problem=problem, hint="Arrays end in .h5, others not.")
    return layout.checkpoint_file(checkpoint, name)

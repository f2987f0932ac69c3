"""The files of one checkpoint: written and hashed, verified, and loaded.

Arrays that have not changed since the previous checkpoint are linked, not written; see `unchanged`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast_checkpoints.arrays import unchanged
from outlast_checkpoints.arrays.file_hasher import FileHasher, hashes_of
from outlast_checkpoints.arrays.hashing import Digests, read_checked
from outlast_checkpoints.arrays.unchanged import FrozenPart, Seen
from outlast_checkpoints.errors import CheckpointDamaged, FormatError, NotFound, UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import FileEntry, Manifest
from outlast_checkpoints.format.snapshot import ArrayFile, Snapshot
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import file_mac

if TYPE_CHECKING:
    import numpy as np

Follow = Callable[[str, Path, int], Callable[[int], None] | None]

_ARRAYS = ".h5"
_NAMING = "Names of array files end in .h5, others do not."


@dataclass(frozen=True, slots=True)
class Damage:
    """Damage to one file of a checkpoint.

    Attributes:
        checkpoint: The checkpoint's name; for a damaged `origin.json`, the attempt's folder.
        file: The file's name: "manifest.json", or one that the manifest lists.
        reason: What is wrong, for people.
    """

    checkpoint: str
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.checkpoint}: {self.file}: {self.reason}"

    def error(self) -> CheckpointDamaged:
        """Return the damage as an exception."""
        return CheckpointDamaged(checkpoint=self.checkpoint, file=self.file, reason=self.reason)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a checkpoint, every byte checked.

    Attributes:
        manifest: Its manifest.
        files: Arrays by file name, then by dataset path, with the saved shapes and dtypes.
        attributes: Text attributes by file name, group path and name.
        documents: All other files by name, as bytes.
    """

    manifest: Manifest
    files: dict[str, dict[str, np.ndarray[Any, Any]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """The result of writing a snapshot.

    entries: the manifest entries of the files. seen: by file, what to compare the next snapshot
    with.
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
    follow: Follow | None = None,
) -> Written:
    """Write a snapshot's files durably.

    last: what the last commit saw of its files. Where it pays, unchanged arrays go to a separate
    file, which later checkpoints link. over: overwrite files of an earlier try. past_cache: write
    large files with direct I/O. follow: called when an array file is begun, with its path in the
    storage, the local file and its size at the end; what it returns is called with the bytes that
    are in the file.
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
            follow=follow,
        )
        written.entries.extend(entries)
        if seen is not None:
            written.seen[name] = seen
    for name, document in snapshot.documents.items():
        place = _path(checkpoint, name, arrays=False)
        with storage.stage(place, over=over) as path:
            path.write_bytes(document)
        hashes = hashes_of(document, file_mac(storage, place))
        written.entries.append(FileEntry(name, len(document), hashes.hash, mac=hashes.strong))
    return written


def check(storage: Storage, manifest: Manifest, digests: Digests | None = None) -> list[Damage]:
    """Read and hash every file that a manifest lists; return what is wrong.

    digests: hashes found for other checkpoints, so that a shared file is read once.
    """
    digests = digests or Digests()
    found = (check_file(storage, manifest, entry, digests) for entry in manifest.files)
    return [damage for damage in found if damage is not None]


def check_file(
    storage: Storage, manifest: Manifest, entry: FileEntry, digests: Digests
) -> Damage | None:
    """Read and hash one file of a checkpoint; return its damage, if any.

    Of an array file, the places of the arrays are checked as well.
    """
    from outlast_checkpoints.arrays import array_reader

    path = layout.checkpoint_file(manifest.id, entry.name)
    reason = digests.difference(storage, path, entry)
    if reason is None and entry.name.endswith(_ARRAYS):
        try:
            array_reader.check_file(storage, path, entry)
        except NotFound:
            reason = "it is missing"
        except FormatError as error:
            reason = error.fields["reason"]
    return None if reason is None else Damage(manifest.checkpoint, entry.name, reason)


def check_size(storage: Storage, manifest: Manifest, entry: FileEntry) -> Damage | None:
    """Compare only the size of a file; return its damage, if any."""
    try:
        size = storage.size(layout.checkpoint_file(manifest.id, entry.name))
    except NotFound:
        return Damage(manifest.checkpoint, entry.name, "it is missing")
    if size == entry.size:
        return None
    reason = f"it has {size} bytes instead of {entry.size}"
    return Damage(manifest.checkpoint, entry.name, reason)


def load(storage: Storage, manifest: Manifest) -> Loaded:
    """Read and check everything that a manifest lists. Raises `CheckpointDamaged`."""
    loaded = Loaded(manifest)
    for entry in manifest.files:
        if not entry.name.endswith(_ARRAYS):
            loaded.documents[entry.name] = load_document(storage, manifest, entry)
        elif entry.part_of is None:
            file = load_file(storage, manifest, entry.name)
            loaded.files[entry.name] = dict(file.arrays)
            loaded.attributes[entry.name] = {g: dict(a) for g, a in file.group_attributes.items()}
    return loaded


def load_document(storage: Storage, manifest: Manifest, entry: FileEntry) -> bytes:
    """Read and check a file that holds no arrays. Raises `CheckpointDamaged`."""
    with _checked(storage, manifest, entry) as content:
        return bytes(content)


def load_file(storage: Storage, manifest: Manifest, name: str) -> ArrayFile:
    """Read and check an array file with its parts. Raises `CheckpointDamaged`."""
    from outlast_checkpoints.arrays import array_reader

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    attributes: dict[str, dict[str, str]] = {}
    for entry in manifest.files:
        if name in (entry.name, entry.part_of):
            with _checked(storage, manifest, entry) as content:
                fetch = functools.partial(storage.fetch, _stored(manifest, entry))
                found = array_reader.read_file(content, fetch, entry.name)
                for path in found.arrays.keys() & arrays.keys():
                    raise FormatError(path=entry.name, reason=f"{path} is in two files")
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
    follow: Follow | None,
) -> tuple[list[FileEntry], Seen | None]:
    """Write an array file, whole or with its unchanged arrays in a separate part."""
    from outlast_checkpoints.arrays.hdf5_file import as_arrays

    file, part_name = snapshot.files[name], unchanged.part_name(name)
    written = functools.partial(
        _write_arrays,
        storage,
        checkpoint,
        over=over,
        past_cache=past_cache,
        release_written=snapshot.release_written,
        follow=follow,
    )
    possible = part_name not in snapshot.files and layout.is_name(part_name)
    if not (possible and storage.capabilities.links):
        return [written(name, file)], None
    arrays = as_arrays(file.taken() if snapshot.release_written else file)
    how = unchanged.split(arrays, snapshot.progress, last)
    part = None
    if how.link is not None:
        source = layout.checkpoint_file(how.link.checkpoint, part_name)
        # If it cannot be linked (its checkpoint was deleted, say), everything is written.
        if storage.link(source, layout.checkpoint_file(checkpoint, part_name)):
            part = FrozenPart(checkpoint, how.link.entry, how.link.paths)
    elif how.fresh:
        fresh = ArrayFile({path: arrays[path] for path in how.fresh})
        entry = written(part_name, fresh, name)
        part = FrozenPart(checkpoint, entry, how.fresh)
    if part is not None:
        arrays = {path: array for path, array in arrays.items() if path not in part.paths}
    rest = ArrayFile(arrays, file.group_attributes)
    whole = written(name, rest)
    entries = [whole, *([part.entry] if part else [])]
    return entries, Seen(snapshot.progress, how.hashes, part)


def _write_arrays(
    storage: Storage,
    checkpoint: CheckpointId,
    name: str,
    file: ArrayFile,
    part_of: str | None = None,
    *,
    over: bool,
    past_cache: bool,
    release_written: bool,
    follow: Follow | None,
) -> FileEntry:
    from outlast_checkpoints.arrays.hdf5_file import write_arrays

    stored = _path(checkpoint, name, arrays=True)
    hasher = FileHasher(file_mac(storage, stored))
    try:
        with storage.stage(stored, over=over) as path:
            size, digest = write_arrays(
                path,
                file,
                past_cache=past_cache,
                release_written=release_written,
                hasher=hasher,
                follow=functools.partial(follow, stored) if follow else None,
            )
    finally:
        hashes = hasher.end()  # the disk has synced meanwhile
    return FileEntry(name, size, digest, part_of, mac=hashes.strong)


@contextmanager
def _checked(storage: Storage, manifest: Manifest, entry: FileEntry) -> Iterator[memoryview]:
    """Yield a file's content, every byte checked. Raises `CheckpointDamaged`.

    The file is read once, so exactly the hashed bytes are used.
    """
    try:
        content, reason = read_checked(storage, _stored(manifest, entry), entry)
        if content is not None:
            yield content
            return
    except NotFound:
        reason = "it is missing"
    except FormatError as error:
        reason = error.fields["reason"]
    raise Damage(manifest.checkpoint, entry.name, reason).error()


def _stored(manifest: Manifest, entry: FileEntry) -> str:
    return layout.checkpoint_file(manifest.id, entry.name)


def _path(checkpoint: CheckpointId, name: str, *, arrays: bool) -> str:
    layout.check_name("file", name)
    if name == layout.MANIFEST_FILE or name.endswith(_ARRAYS) is not arrays:
        problem = f"{name!r} cannot be the name of {'an array file' if arrays else 'a document'}"
        raise UsageError(field="snapshot", problem=problem, hint=_NAMING)
    return layout.checkpoint_file(checkpoint, name)

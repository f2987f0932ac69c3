"""The files of one checkpoint: written and hashed, checked, read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from checkpoints import layout
from checkpoints.envelope import checksum
from checkpoints.errors import CheckpointDamaged, FormatError, NotFound, UsageError
from checkpoints.layout import CheckpointId
from checkpoints.manifest import FileEntry, Manifest
from checkpoints.snapshot import Snapshot
from checkpoints.storage import Storage

if TYPE_CHECKING:
    import numpy as np

_ARRAYS = ".h5"
_PIECE = 4 << 20


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


def write(storage: Storage, checkpoint: CheckpointId, snapshot: Snapshot) -> list[FileEntry]:
    """Write a snapshot's files, durably, and return what a manifest says about them."""
    from checkpoints.hdf5 import write_arrays

    entries = []
    for name, arrays in snapshot.files.items():
        with storage.stage(_path(checkpoint, name, arrays=True)) as path:
            size, digest = write_arrays(path, arrays)
        entries.append(FileEntry(name, size, digest))
    for name, document in snapshot.documents.items():
        with storage.stage(_path(checkpoint, name, arrays=False)) as path:
            path.write_bytes(document)
        entries.append(FileEntry(name, len(document), checksum(document)))
    return entries


def check(storage: Storage, manifest: Manifest) -> list[Damage]:
    """Read and hash every file that a manifest names; return what is wrong."""
    damages = []
    for entry in manifest.files:
        try:
            with storage.fetch(layout.checkpoint_file(manifest.id, entry.name)) as local:
                reason = _difference(local, entry)
        except NotFound:
            reason = "it is missing"
        if reason is not None:
            damages.append(Damage(manifest.checkpoint, entry.name, reason))
    return damages


def load(storage: Storage, manifest: Manifest) -> Loaded:
    """Return what a manifest names, checked. Raises `CheckpointDamaged`."""
    from checkpoints.hdf5 import read_arrays, read_attributes

    loaded = Loaded(manifest)
    for entry in manifest.files:
        try:
            with storage.fetch(layout.checkpoint_file(manifest.id, entry.name)) as local:
                reason = _difference(local, entry)
                if reason is None and entry.name.endswith(_ARRAYS):
                    loaded.files[entry.name] = read_arrays(local)
                    loaded.attributes[entry.name] = read_attributes(local)
                elif reason is None:
                    loaded.documents[entry.name] = local.read_bytes()
        except NotFound:
            reason = "it is missing"
        except FormatError as error:
            reason = error.fields["reason"]
        if reason is not None:
            raise Damage(manifest.checkpoint, entry.name, reason).error()
    return loaded


def _path(checkpoint: CheckpointId, name: str, *, arrays: bool) -> str:
    layout.check_name("file", name)
    if name == layout.MANIFEST_FILE or name.endswith(_ARRAYS) is not arrays:
        problem = f"{name!r} is no name for {'arrays' if arrays else 'a document'}"
        raise UsageError(field="snapshot", problem=problem, hint="Arrays end in .h5, others not.")
    return layout.checkpoint_file(checkpoint, name)


def _difference(local: Path, entry: FileEntry) -> str | None:
    """Return in which way a file is not the one that the manifest names, or None."""
    hasher = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_PIECE, max(1, entry.size))))
    try:
        size = local.stat().st_size
        if size != entry.size:
            return f"it has {size} bytes instead of {entry.size}"
        with open(local, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    if f"xxh3:{hasher.hexdigest()}" != entry.hash:
        return "its content has changed (the hash differs)"
    return None

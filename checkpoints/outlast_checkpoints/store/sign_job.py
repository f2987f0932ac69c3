"""Signs a whole job with the first key: a new one, or the first that the job has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import msgspec

from outlast_checkpoints.arrays.hashing import (
    Inode,
    changed,
    hashed,
    pieces,
    shared_inode,
    strong_of,
)
from outlast_checkpoints.errors import (
    CheckpointDamaged,
    FormatError,
    FormatTooNew,
    NotAuthentic,
    NotFound,
)
from outlast_checkpoints.format import layout, lineage, manifest
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import FileEntry, HistoryMark
from outlast_checkpoints.history.attempt_rows import AttemptRows
from outlast_checkpoints.storage import file_mac
from outlast_checkpoints.storage.documents import opened, raw_document
from outlast_checkpoints.storage.signed import DOCUMENT, SignedStorage


@dataclass
class Signing:
    """The result of signing a job.

    signed: documents that got a MAC of the first key. kept: documents that had one. left: damaged
    documents, which were left as they are, with the reason.
    """

    signed: int = 0
    kept: int = 0
    left: dict[str, str] = field(default_factory=dict)


def sign_job(storage: SignedStorage, *, trust: bool = False) -> Signing:
    """Sign every document of a job with the first key.

    It can be repeated after an interruption. Nobody may run the job meanwhile.

    Args:
        storage: The job.
        trust: Sign also what no known key has signed, as it is. Checkpoints whose files have no
            MAC of the first key are read whole.

    Raises:
        NotAuthentic: A document was not written by a holder of a key, and `trust` is False.
        StorageError: The storage cannot be read or written.
    """
    done = Signing()
    macs = _Macs(storage)
    for path in chain([layout.SPEC], _paths(storage)):  # the spec is the identity of the others
        try:
            _sign(storage, path, done, macs, trust=trust)
        except (NotAuthentic, FormatTooNew):
            raise
        except (FormatError, CheckpointDamaged) as error:
            done.left[path] = error.fields["reason"]
    return done


def _sign(storage: SignedStorage, path: str, done: Signing, macs: _Macs, *, trust: bool) -> None:
    data = raw_document(storage, path)
    document = opened(storage.inner if trust else storage, path, data)
    if path.rpartition("/")[2] == layout.MANIFEST_FILE:
        document = _with_macs(storage, path, document, macs)
    elif path.endswith("/" + layout.origin(1).rpartition("/")[2]):
        document = _with_history(storage, path, document)
    signed = storage.sign(path, document)
    if signed == data:
        done.kept += 1
    else:
        storage.inner.replace(path, signed)
        done.signed += 1


def _paths(storage: SignedStorage) -> Iterator[str]:
    """Yield the paths of all documents but the spec."""
    for name in storage.list(""):
        if name.endswith(DOCUMENT) and name != layout.SPEC:
            yield name
    for name in storage.list(layout.JOURNAL):
        if layout.parse_journal_event(name) is not None:
            yield f"{layout.JOURNAL}/{name}"
    for number in filter(None, map(layout.parse_attempt, storage.list(layout.ATTEMPTS))):
        folder = layout.attempt_dir(number)
        for name in storage.list(folder):
            if name.endswith(DOCUMENT):
                yield f"{folder}/{name}"
    for found in filter(None, map(CheckpointId.parse, storage.list(layout.CHECKPOINTS))):
        if storage.exists(layout.manifest(found)):
            yield layout.manifest(found)


def _with_macs(storage: SignedStorage, path: str, document: bytes, macs: _Macs) -> bytes:
    """Return a manifest with MACs of all its files, and SHA-256 of its history."""
    made = manifest.decode(document, path)
    files = tuple(
        macs.entry(layout.checkpoint_file(made.id, entry.name), entry) for entry in made.files
    )
    history = made.history and _mark(storage, made.history)
    if (files, history) == (made.files, made.history):
        return document
    number = manifest.format_of(files)
    return manifest.encode(
        msgspec.structs.replace(made, format=number, files=files, history=history)
    )


class _Macs:
    """Manifest entries with a MAC of the first key. A file with several names is read once."""

    def __init__(self, storage: SignedStorage) -> None:
        self._storage = storage
        self._made: dict[tuple[Inode, FileEntry], FileEntry] = {}

    def entry(self, path: str, entry: FileEntry) -> FileEntry:
        """Return a file's entry, with a new MAC if it has none of the first key, nor SHA-256.

        The bytes that get a MAC are those that are compared with the entry. Raises `FormatError` if
        they differ from it.
        """
        old = entry.mac and file_mac.parts(entry.mac)
        first = self._storage.keys.ids[0]
        if (old and old.key == first) or (entry.mac is None and entry.sha256 is not None):
            return entry
        try:
            inode = shared_inode(self._storage, path)
            if inode is None:
                return self._renewed(path, entry)
            if (inode, entry) not in self._made:
                self._made[inode, entry] = self._renewed(path, entry)
            return self._made[inode, entry]
        except NotFound:
            raise FormatError(path=path, reason=f"{entry.name}: it is missing") from None

    def _renewed(self, path: str, entry: FileEntry) -> FileEntry:
        fresh = self._storage.file_mac(path)

        def read() -> Iterator[memoryview | bytes]:
            for piece in pieces(self._storage, path):
                fresh.update(piece)
                yield piece

        found = hashed(read(), strong=strong_of(self._storage, path, entry))
        if reason := changed(entry, found):
            raise FormatError(path=path, reason=f"{entry.name}: {reason}")
        return msgspec.structs.replace(entry, mac=fresh.hexdigest())


def _with_history(storage: SignedStorage, path: str, document: bytes) -> bytes:
    origin = lineage.decode(document, path)
    history = origin.history and _mark(storage, origin.history)
    if history == origin.history:
        return document
    return lineage.encode(msgspec.structs.replace(origin, history=history))


def _mark(storage: SignedStorage, mark: HistoryMark) -> HistoryMark:
    if mark.sha256 is not None:
        return mark
    digest = AttemptRows(storage, mark.attempt, mark.mark).sha256()
    return msgspec.structs.replace(mark, sha256=digest)

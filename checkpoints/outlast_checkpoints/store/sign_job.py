"""Signs a whole job with the first key: a new one, or the first that the job has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import msgspec

from outlast_checkpoints.arrays.hashing import Digests
from outlast_checkpoints.errors import CheckpointDamaged, FormatError, FormatTooNew, NotAuthentic
from outlast_checkpoints.format import layout, lineage, manifest
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import FileEntry, HistoryMark, Manifest
from outlast_checkpoints.history.attempt_rows import AttemptRows
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
        trust: Sign also what no known key has signed, as it is. Its checkpoints are read whole, to
            compute SHA-256 of their files.

    Raises:
        NotAuthentic: A document was not written by a holder of a key, and `trust` is False.
        StorageError: The storage cannot be read or written.
    """
    done = Signing()
    digests = Digests()
    for path in chain([layout.SPEC], _paths(storage)):  # the spec is the identity of the others
        try:
            _sign(storage, path, done, digests, trust=trust)
        except (NotAuthentic, FormatTooNew):
            raise
        except (FormatError, CheckpointDamaged) as error:
            done.left[path] = error.fields["reason"]
    return done


def _sign(
    storage: SignedStorage, path: str, done: Signing, digests: Digests, *, trust: bool
) -> None:
    data = raw_document(storage, path)
    document = opened(storage.inner if trust else storage, path, data)
    if path.rpartition("/")[2] == layout.MANIFEST_FILE:
        document = _with_sha256(storage, path, document, digests)
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


def _with_sha256(storage: SignedStorage, path: str, document: bytes, digests: Digests) -> bytes:
    """Return a manifest with SHA-256 of all its files and of its history."""
    made = manifest.decode(document, path)
    files = tuple(_entry(storage, made, entry, digests) for entry in made.files)
    history = made.history and _mark(storage, made.history)
    if (files, history) == (made.files, made.history):
        return document
    number = manifest.format_of(files)
    return manifest.encode(
        msgspec.structs.replace(made, format=number, files=files, history=history)
    )


def _entry(storage: SignedStorage, made: Manifest, entry: FileEntry, digests: Digests) -> FileEntry:
    if entry.sha256 is not None:
        return entry
    path = layout.checkpoint_file(made.id, entry.name)
    if reason := digests.difference(storage, path, entry):
        raise FormatError(path=path, reason=f"{entry.name}: {reason}")
    found = digests.of(storage, path, sha256=True)
    return msgspec.structs.replace(entry, sha256=found.sha256)


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

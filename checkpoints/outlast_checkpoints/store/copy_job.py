"""Copies a whole job from one storage to another and verifies it there.

The spec is copied last, so an incomplete copy is not a job. Until then a note in the target says
which job it is, and an interrupted copy continues from there. The order is that of a training:
history before checkpoints, a checkpoint's files before its manifest, the journal last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from outlast_checkpoints.arrays.hashing import Meter, Unread
from outlast_checkpoints.errors import (
    AlreadyExists,
    CheckpointDamaged,
    JobChanged,
    NotFound,
    PlaceTaken,
    StorageError,
)
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import FileEntry, Manifest
from outlast_checkpoints.format.sealed_json import checksum, seal, unseal
from outlast_checkpoints.storage.base import Storage, join
from outlast_checkpoints.storage.documents import opened, raw_document, unsigned
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.files import Damage
from outlast_checkpoints.store.transfer import Tally, Transfer

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 8
_OF_ATTEMPTS = (".json", ".jsonl", ".log")
_FORMAT = 1


@dataclass
class Copied:
    """The result of a copy.

    tally: files and bytes. checkpoints: those copied. damages: damage in the source, which was
    copied unchanged.
    """

    tally: Tally
    checkpoints: list[CheckpointId] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)


class _Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The note in an incomplete copy: the hash of the job's spec."""

    format: int = _FORMAT
    spec: str


def copy_job(
    source: Storage, target: Storage, *, at_once: int = _AT_ONCE, meter: Meter | None = None
) -> Copied:
    """Copy the job in `source` to `target`, and verify every byte there.

    The source is only read. Files that are correct in `target` are not copied again, so an earlier
    copy is brought up to date. at_once: files copied in parallel. meter: receives the progress in
    bytes. Raises `PlaceTaken` if something else is in `target`, `JobChanged` if the job changed
    meanwhile, and `StorageError`. After an error call it again: the target is not a job yet, or is
    the job it was before.
    """
    return _Copy(source, target, at_once, meter or Unread()).run()


class _Copy:
    def __init__(self, source: Storage, target: Storage, at_once: int, meter: Meter) -> None:
        # Documents are copied with their MACs, which stay valid. What is verified is the source's.
        self._verified, self._source = source, unsigned(source)
        self._target = unsigned(target)
        self._meter = meter
        self._transfer = Transfer(self._source, self._target, meter, self._verified)
        self._pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="copy")
        self._copied = Copied(self._transfer.tally)

    def run(self) -> Copied:
        try:
            spec = self._document(layout.SPEC)
            fresh = self._take_place(spec)
            events = self._new_events()
            attempts = list(self._attempt_files())
            manifests = self._manifests()
            self._expect(attempts, manifests)
            self._each(self._attempt_file, attempts)
            for checkpoint, manifest in manifests:
                self._checkpoint(checkpoint, manifest)
            if self._copied.damages and not self._copied.checkpoints:
                raise self._copied.damages[0].error()  # a job without checkpoints would start over
            if self._seqs(self._source) != events[0]:
                raise JobChanged(root=self._source.root)
            self._journal(events[1], at_once=fresh)
            if fresh:
                self._transfer.document(layout.SPEC, spec)
            self._target.delete(layout.COPYING)
            return self._copied
        finally:
            self._pool.shutdown(cancel_futures=True)

    # -- the target --------------------------------------------------------------------------

    def _take_place(self, spec: bytes) -> bool:
        """Check that the target is empty or has this job; return whether it is not a job yet."""
        with suppress(NotFound):
            if raw_document(self._target, layout.SPEC) == spec:
                return False
            raise self._taken("it holds another job")
        note = seal(_Note(spec=checksum(spec)))
        try:
            data = raw_document(self._target, layout.COPYING)
        except NotFound:
            if self._target.list(""):
                raise self._taken("it is not empty") from None
            self._target.create(layout.COPYING, note)
            return True
        path = join(self._target.root, layout.COPYING)
        if unseal(data, path, _Note, _FORMAT).spec != checksum(spec):
            raise self._taken("it holds an incomplete copy of another job")
        return True

    def _new_events(self) -> tuple[list[int], list[tuple[int, bytes]]]:
        """Return the numbers of all events, and the events that the target lacks."""
        seqs = self._seqs(self._source)
        there = self._seqs(self._target)
        known = set(there)

        def read(seq: int) -> tuple[int, bytes] | None:
            path = layout.journal_event(seq)
            data = self._document(path)
            if seq not in known:
                return seq, data
            if raw_document(self._target, path) != data:
                raise self._taken(f"the copy there has been run itself (since {path})")
            return None

        new = self._each(read, seqs)
        if known - set(seqs):
            own = layout.journal_event(min(known - set(seqs)))
            raise self._taken(f"the copy there has been run itself (since {own})")
        return seqs, [event for event in new if event is not None]

    def _taken(self, problem: str) -> PlaceTaken:
        return PlaceTaken(root=self._target.root, problem=problem)

    # -- the source ---------------------------------------------------------------------------

    @staticmethod
    def _seqs(storage: Storage) -> list[int]:
        found = map(layout.parse_journal_event, storage.list(layout.JOURNAL))
        return sorted(seq for seq in found if seq is not None)

    def _document(self, path: str) -> bytes:
        """Return a document as it is stored. With a key, it is verified."""
        data = raw_document(self._source, path)
        opened(self._verified, path, data)
        return data

    def _attempt_files(self) -> Iterator[str]:
        names = self._source.list(layout.ATTEMPTS)
        for number in filter(None, map(layout.parse_attempt, names)):
            folder = layout.attempt_dir(number)
            for name in self._source.list(folder):
                if name.endswith(_OF_ATTEMPTS):
                    yield f"{folder}/{name}"
        top = self._source.list("")
        yield from (
            path
            for path in (layout.MACHINE, layout.SUPERVISOR_OUTPUT, layout.METRICS_PLOT)
            if path in top
        )
        yield from filter(layout.is_kept, top)

    def _manifests(self) -> list[tuple[CheckpointId, Manifest | None]]:
        store = CheckpointStore(self._verified)

        def read(checkpoint: CheckpointId) -> tuple[CheckpointId, Manifest | None]:
            try:
                return checkpoint, store.manifest(checkpoint)
            except CheckpointDamaged as error:
                damage = Damage(str(checkpoint), layout.MANIFEST_FILE, error.fields["reason"])
                self._copied.damages.append(damage)
                return checkpoint, None

        return self._each(read, store.ids())

    def _expect(
        self, paths: list[str], manifests: list[tuple[CheckpointId, Manifest | None]]
    ) -> None:
        self._meter.expect(sum(self._each(self._source.size, paths)))
        self._meter.expect(sum(manifest.size for _, manifest in manifests if manifest))

    # -- copying -----------------------------------------------------------------------------

    def _checkpoint(self, checkpoint: CheckpointId, manifest: Manifest | None) -> None:
        """Copy a checkpoint, manifest last. A damaged one is copied unchanged."""
        entries: list[FileEntry | str] = []
        if manifest is not None:
            entries += manifest.files
        else:
            folder = self._source.list(layout.checkpoint_dir(checkpoint))
            entries += [name for name in folder if name != layout.MANIFEST_FILE]
        damages = self._each(lambda entry: self._entry(checkpoint, entry), entries)
        self._copied.damages += [damage for damage in damages if damage is not None]
        path = layout.manifest(checkpoint)
        try:
            data = self._document(path) if manifest else raw_document(self._source, path)
        except StorageError:
            if manifest is not None:
                raise
            return  # reported already
        self._transfer.document(path, data)
        self._copied.checkpoints.append(checkpoint)

    def _attempt_file(self, path: str) -> None:
        if path.endswith(".json"):
            self._document(path)  # it has a limit
        self._transfer.file(path)

    def _entry(self, checkpoint: CheckpointId, entry: FileEntry | str) -> Damage | None:
        """Copy a file of a checkpoint; return its damage in the source, if any."""
        if isinstance(entry, str):
            self._transfer.file(layout.checkpoint_file(checkpoint, entry))
            return None
        reason = self._transfer.named(layout.checkpoint_file(checkpoint, entry.name), entry)
        return None if reason is None else Damage(str(checkpoint), entry.name, reason)

    def _journal(self, events: list[tuple[int, bytes]], *, at_once: bool) -> None:
        """Add events. To an existing job they are added one by one, as a training does."""

        def add(event: tuple[int, bytes]) -> None:
            path = layout.journal_event(event[0])
            try:
                self._transfer.create(path, event[1])
            except AlreadyExists:
                raise self._taken(f"the copy there has been run itself (since {path})") from None

        if at_once:
            self._each(add, events)
        else:
            for event in events:
                add(event)

    def _each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        return list(self._pool.map(function, items))

"""A whole job from one storage to another: what counts of it, checked at the other end.

A copy becomes a job with its last file, the spec: until then a note beside what has arrived says
whose it is, and a copy that was cut short goes on from there. Within it the order is that of a
training: history before checkpoints, a checkpoint's files before its manifest, the journal last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from checkpoints import layout
from checkpoints.content import Damage
from checkpoints.digest import Digests, Meter, Unread, hashed, pieces
from checkpoints.envelope import checksum, seal, unseal
from checkpoints.errors import (
    AlreadyExists,
    CheckpointDamaged,
    JobChanged,
    NotFound,
    PlaceTaken,
    StorageError,
)
from checkpoints.layout import CheckpointId
from checkpoints.manifest import FileEntry, Manifest
from checkpoints.storage import Storage, join
from checkpoints.store import CheckpointStore

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 8
_OF_ATTEMPTS = (".json", ".jsonl", ".log")
_FORMAT = 1


@dataclass
class Copied:
    """What became of a copy. Sizes are bytes.

    written: copied now. kept: were there already, and right. linked: share a file with another
    checkpoint of the copy. damages: what is damaged in the source too, and was copied as it is.
    """

    checkpoints: list[CheckpointId] = field(default_factory=list)
    files: int = 0
    written: int = 0
    kept: int = 0
    linked: int = 0
    damages: list[Damage] = field(default_factory=list)


class _Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose unfinished copy this is: the hash of the job's spec."""

    format: int = _FORMAT
    spec: str


def copy_job(
    source: Storage, target: Storage, *, at_once: int = _AT_ONCE, meter: Meter | None = None
) -> Copied:
    """Copy the job in `source` to `target`, or what is missing there of it; check every byte.

    The source is only read. What is in `target` already and right is not copied again. A job that
    was copied before and has gone on since is brought up to date.
    Raises `PlaceTaken` when something else is there, `JobChanged` when the job went on meanwhile,
    `StorageError`. After an error the copy is not a job yet, or the one it was; call it again.
    """
    return _Copy(source, target, at_once, meter or Unread()).run()


class _Copy:
    def __init__(self, source: Storage, target: Storage, at_once: int, meter: Meter) -> None:
        self._source, self._target = source, target
        self._meter = meter
        self._digests = Digests()
        self._pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="copy")
        self._copied = Copied()
        self._lock = threading.Lock()
        self._there: dict[str, set[str]] = {}  # names by folder, as they were found in the copy
        self._parts: dict[FileEntry, str] = {}  # where the copy has a part that others link

    def run(self) -> Copied:
        try:
            spec = self._source.read(layout.SPEC)
            fresh = self._take_place(spec)
            events = self._new_events()
            attempts = list(self._attempt_files())
            manifests = self._manifests()
            self._expect(attempts, manifests)
            self._each(self._file, attempts)
            for checkpoint, manifest in manifests:
                self._checkpoint(checkpoint, manifest)
            if self._copied.damages and not self._copied.checkpoints:
                raise self._copied.damages[0].error()  # a job with none would start over
            if self._seqs(self._source) != events[0]:
                raise JobChanged(root=self._source.root)
            self._journal(events[1], at_once=fresh)
            if fresh:
                self._document(layout.SPEC, spec)
            self._target.delete(layout.COPYING)
            return self._copied
        finally:
            self._pool.shutdown(cancel_futures=True)

    # -- whether it may go there --------------------------------------------------------------

    def _take_place(self, spec: bytes) -> bool:
        """Make sure that the place is free or has this job; return whether it is no job yet."""
        with suppress(NotFound):
            if self._target.read(layout.SPEC) == spec:
                return False
            raise self._taken("another job is there")
        note = seal(_Note(spec=checksum(spec)))
        try:
            data = self._target.read(layout.COPYING)
        except NotFound:
            if self._target.list(""):
                raise self._taken("it is not empty") from None
            self._target.create(layout.COPYING, note)
            return True
        path = join(self._target.root, layout.COPYING)
        if unseal(data, path, _Note, _FORMAT).spec != checksum(spec):
            raise self._taken("the unfinished copy of another job is there")
        return True

    def _new_events(self) -> tuple[list[int], list[tuple[int, bytes]]]:
        """Return the numbers of all events, and the events that the copy does not have yet."""
        seqs = self._seqs(self._source)
        there = self._seqs(self._target)
        known = set(there)

        def read(seq: int) -> tuple[int, bytes] | None:
            path = layout.journal_event(seq)
            data = self._source.read(path)
            if seq not in known:
                return seq, data
            if self._target.read(path) != data:
                raise self._taken(f"the copy there has gone on by itself (from {path})")
            return None

        new = self._each(read, seqs)
        if known - set(seqs):
            own = layout.journal_event(min(known - set(seqs)))
            raise self._taken(f"the copy there has gone on by itself (from {own})")
        return seqs, [event for event in new if event is not None]

    def _taken(self, problem: str) -> PlaceTaken:
        return PlaceTaken(root=self._target.root, problem=problem)

    # -- what there is ------------------------------------------------------------------------

    @staticmethod
    def _seqs(storage: Storage) -> list[int]:
        found = map(layout.parse_journal_event, storage.list(layout.JOURNAL))
        return sorted(seq for seq in found if seq is not None)

    def _attempt_files(self) -> Iterator[str]:
        names = self._source.list(layout.ATTEMPTS)
        for number in filter(None, map(layout.parse_attempt, names)):
            folder = layout.attempt_dir(number)
            for name in self._source.list(folder):
                if name.endswith(_OF_ATTEMPTS):
                    yield f"{folder}/{name}"
        top = self._source.list("")
        yield from (path for path in (layout.SUPERVISOR_OUTPUT, layout.METRICS_PLOT) if path in top)

    def _manifests(self) -> list[tuple[CheckpointId, Manifest | None]]:
        store = CheckpointStore(self._source)

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

    # -- the copying itself -------------------------------------------------------------------

    def _checkpoint(self, checkpoint: CheckpointId, manifest: Manifest | None) -> None:
        """Copy a checkpoint, manifest last; one that is damaged is no better and no worse then."""
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
            data = self._source.read(path)
        except StorageError:
            if manifest is not None:
                raise
            return  # that it cannot be read has been said
        self._document(path, data)
        self._copied.checkpoints.append(checkpoint)

    def _entry(self, checkpoint: CheckpointId, entry: FileEntry | str) -> Damage | None:
        """Copy a file of a checkpoint; return what is wrong with it in the source."""
        if isinstance(entry, str):
            self._file(layout.checkpoint_file(checkpoint, entry))
            return None
        path = layout.checkpoint_file(checkpoint, entry.name)
        if self._has(path) and self._digests.difference(self._target, path, entry) is None:
            self._count(kept=entry.size)
        elif not self._link(path, entry):
            try:
                digest = self._write(path)
            except _Unreadable as error:
                return Damage(str(checkpoint), entry.name, error.reason)
            if digest != entry.hash:
                reason = "its content has changed (the hash differs)"
                return Damage(str(checkpoint), entry.name, reason)
        if entry.part_of is not None:
            self._parts.setdefault(entry, path)
        return None

    def _has(self, path: str) -> bool:
        """Return whether the copy had a file when it was begun; a folder is listed once."""
        folder, _, name = path.rpartition("/")
        with self._lock:
            if folder not in self._there:
                self._there[folder] = set(self._target.list(folder))
            return name in self._there[folder]

    def _link(self, path: str, entry: FileEntry) -> bool:
        """Give a part that the copy has already one more name, where that can be done."""
        source = self._parts.get(entry)
        if source is None or not self._target.capabilities.links:
            return False
        self._target.delete(path)
        if not self._target.link(source, path):
            return False
        self._count(linked=entry.size)
        return True

    def _file(self, path: str) -> None:
        """Copy a file that no manifest names, unless the copy has the same."""
        with suppress(NotFound):
            size = self._source.size(path) if self._has(path) else -1
            if size >= 0 and self._target.size(path) == size:
                mine = self._digests.of(self._source, path)
                if self._digests.of(self._target, path) == mine:
                    self._count(kept=size)
                    return
        try:
            self._write(path)
        except _Unreadable as error:
            raise error.cause from None

    def _write(self, path: str) -> str:
        """Copy a file, whatever is there now; return its hash, the same at both ends."""
        size = 0

        def read() -> Iterator[memoryview | bytes]:
            nonlocal size
            source = pieces(self._source, path)
            while True:
                try:
                    piece = next(source, None)
                except StorageError as error:
                    if self._source.local_path(path) is None and not isinstance(error, NotFound):
                        raise
                    raise _Unreadable(error) from error
                if piece is None:
                    return
                file.write(piece)
                size += len(piece)
                yield piece

        with self._target.stage(path, over=True) as local, open(local, "wb") as file:
            digest = hashed(read(), self._meter)
        if self._digests.of(self._target, path) != digest:
            full = join(self._target.root, path)
            raise StorageError(action="copy", path=full, reason="it arrived changed")
        self._count(written=size, metered=True)
        return digest

    def _journal(self, events: list[tuple[int, bytes]], *, at_once: bool) -> None:
        """Add events. To what is a job already one by one, as a training adds them."""

        def add(event: tuple[int, bytes]) -> None:
            path = layout.journal_event(event[0])
            try:
                self._target.create(path, event[1])
            except AlreadyExists:
                if self._target.read(path) != event[1]:
                    problem = f"the copy there has gone on by itself (from {path})"
                    raise self._taken(problem) from None
            self._count(written=len(event[1]), metered=True)

        if at_once:
            self._each(add, events)
        else:
            for event in events:
                add(event)

    def _document(self, path: str, data: bytes) -> None:
        """Publish a small file whole, unless the copy has the same."""
        try:
            self._target.create(path, data)
        except AlreadyExists:
            if self._target.read(path) != data:
                self._target.replace(path, data)
        self._count()

    def _count(
        self, *, kept: int = 0, linked: int = 0, written: int = 0, metered: bool = False
    ) -> None:
        with self._lock:
            self._copied.files += 1
            self._copied.kept += kept
            self._copied.linked += linked
            self._copied.written += written
        if not metered:
            self._meter.done(kept + linked)

    def _each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        return list(self._pool.map(function, items))


class _Unreadable(Exception):
    """A file of the source cannot be read, for good: its disk says so."""

    def __init__(self, cause: StorageError) -> None:
        self.cause = cause
        missing = isinstance(cause, NotFound)
        self.reason = "it is missing" if missing else f"it cannot be read: {cause.fields['reason']}"
        super().__init__(self.reason)

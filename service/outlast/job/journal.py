"""The journal of a job: one immutable file for each event, created exclusively.

Only the number is in the file's name. So two writers of event 7 collide, and exactly one of them
wins: an append is a compare-and-swap on the state of the job.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import Final

import msgspec

from outlast.errors import InvalidTransition, JobUnknown
from outlast.job import process_identity
from outlast.job.cluster_slot import Slot
from outlast.job.events import Claimed, Event
from outlast.job.lifecycle import Action, Job, State, transition
from outlast.job.process_identity import Identity
from outlast_checkpoints.errors import (
    AlreadyExists,
    FormatError,
    FormatTooNew,
    KeyMissing,
    NotAuthentic,
    NotFound,
    StorageError,
    Superseded,
)
from outlast_checkpoints.format import layout, typed_json
from outlast_checkpoints.format.sealed_json import UNREADABLE
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import is_signed, opened, raw_document

FORMAT: Final = 1


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as it is stored."""

    seq: int
    """Number of the event, from 1."""
    event: Event
    """What happened."""
    state: State
    """State of the job after the event."""
    attempt: int
    """Newest attempt of the job after the event."""
    at: float
    """Time in unix seconds by the writer's clock; for people only."""
    by: Identity
    """The process that wrote it."""
    previous: str = ""
    """SHA-256 of the document of the event before it, in hex; "" for the first."""
    nonce: str = ""
    """Random; tells a write whose answer was lost from another writer's."""
    format: int = FORMAT
    """Version of the format."""


class Journal:
    """The events of the job in `storage`. Each is read once and folded into the job.

    With a key, each event must name the one before it, and none may be missing before a later one.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.RLock()  # several threads call the fence
        self._entries: list[Entry] = []
        self._hashes: list[str] = []  # of the documents of the events
        self._looked = False  # whether the events were listed, to find a missing one
        self._needs_key = False
        self._jobs: list[Job] = []
        self._actions: list[tuple[Action, ...]] = []
        self._lost: set[str] = set()  # nonces of failed writes that may still arrive

    @property
    def root(self) -> str:
        """The folder or URL of the job."""
        return self._storage.root

    def read(self) -> list[Entry]:
        """Return all events, oldest first. Only new ones are read from the storage.

        Raises:
            FormatError: an event is unreadable, or is not allowed after those before it.
            NotAuthentic: a key is set, and no holder of it wrote an event, or one is missing.
        """
        with self._lock:
            self._read_new()
            if not self._looked and is_signed(self._storage):
                self._require_all(self._newest_seq())
            self._looked = True
            return list(self._entries)

    def _read_new(self) -> None:
        while (found := self._load(len(self._entries) + 1)) is not None:
            self._take(*found)

    def _require_all(self, newest: int) -> None:
        """Raise `NotAuthentic` if an event before number `newest`, which exists, is missing."""
        if newest > len(self._entries):
            self._read_new()  # it may have been written after the last look
        if newest > len(self._entries):
            path = layout.journal_event(len(self._entries) + 1)
            raise NotAuthentic(path=path, reason="it is missing, and a later event exists")

    def job(self) -> Job | None:
        """Return the current job; None when none was submitted."""
        self.read()
        return self._jobs[-1] if self._jobs else None

    def existing_job(self) -> Job:
        """Return the current job. Raises `JobUnknown`."""
        job = self.job()
        if job is None:
            raise JobUnknown(root=self._storage.root)
        return job

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, seq: int) -> Entry:
        """Return event number `seq` (from 1) of those that were read."""
        return self._entries[seq - 1]

    def job_after(self, seq: int) -> Job:
        """Return the job after event number `seq` (from 1)."""
        return self._jobs[seq - 1]

    def actions_after(self, seq: int) -> tuple[Action, ...]:
        """Return the actions that follow from event number `seq` (from 1)."""
        return self._actions[seq - 1]

    def append(self, event: Event) -> Job:
        """Append an event and return the job after it.

        If another writer was first, its event is read and the append is repeated after it.

        Raises:
            InvalidTransition: the event is not allowed in the state of the job.
        """
        return self.act(event)[0]

    def act(self, event: Event) -> tuple[Job, tuple[Action, ...]]:
        """Append an event; return the job after it and the actions that follow from it."""
        with self._lock:
            while (done := self._try(event)) is None:
                pass
            return done

    def _try(self, event: Event) -> tuple[Job, tuple[Action, ...]] | None:
        """Try to append once; return None when another writer took the number."""
        self.read()
        if (seq := self._arrived(event)) is not None:
            return self.job_after(seq), self.actions_after(seq)
        # Do not read again: an event that arrives from now on takes the number.
        job, actions = self._transition(self._jobs[-1] if self._jobs else None, event)
        if self._needs_key:
            raise KeyMissing(root=self._storage.root)
        entry = Entry(
            seq=len(self._entries) + 1,
            event=event,
            state=job.state,
            attempt=job.attempt,
            at=time.time(),
            by=process_identity.here(),
            previous=self._hashes[-1] if self._hashes else "",
            nonce=os.urandom(8).hex(),
        )
        path = layout.journal_event(entry.seq)
        data = msgspec.json.format(msgspec.json.encode(entry), indent=2) + b"\n"
        self._lost.add(entry.nonce)  # until the result is known
        try:
            self._storage.create(path, data)
        except StorageError as error:
            found = self._load(entry.seq)  # the file shows whose it is
            there = None if found is None else found[0]
            if there is None and not isinstance(error, AlreadyExists):
                raise
            if there is None or there.nonce != entry.nonce:
                self._lost.remove(entry.nonce)
                if isinstance(error, AlreadyExists):
                    return None
                raise
        self._lost.remove(entry.nonce)
        self._keep(entry, job, actions, _hash(data))
        return job, actions

    def _arrived(self, event: Event) -> int | None:
        """Return the number of an event whose write seemed to fail and that has arrived since."""
        for entry in self._entries:
            if entry.nonce in self._lost and _tells_the_same(entry.event, event):
                self._lost.remove(entry.nonce)
                return entry.seq
        return None

    def newest(self) -> Entry | None:
        """Return the newest event with one listing and one read; None if there is no job."""
        seq = self._newest_seq()
        found = self._load(seq) if seq else None
        return None if found is None else found[0]

    def latest_attempt(self) -> int:
        """Return the newest claimed attempt, 0 before the first. Cheap when nothing is new."""
        with self._lock:
            newest = self._newest_seq()
            if newest > len(self._entries):
                self.read()
                if is_signed(self._storage):
                    self._require_all(newest)
            return self._jobs[-1].attempt if self._jobs else 0

    def fence(self, attempt: int) -> None:
        """Raise `Superseded` if an attempt newer than `attempt` was claimed."""
        newest = self.latest_attempt()
        if newest > attempt:
            raise Superseded(attempt=attempt, by=newest)

    def claim(self, owner: Identity, slot: Slot | None = None) -> tuple[Job, tuple[Action, ...]]:
        """Claim the next attempt for `owner`. Raises `InvalidTransition` if it is taken."""
        attempt = self.existing_job().attempt + 1
        return self.act(Claimed(attempt=attempt, owner=owner, slot=slot))

    def _newest_seq(self) -> int:
        names = reversed(self._storage.list(layout.JOURNAL))  # sorted by number
        found = map(layout.parse_journal_event, names)
        return next((seq for seq in found if seq is not None), 0)

    def _take(self, entry: Entry, digest: str) -> None:
        before = self._hashes[-1] if self._hashes else ""
        if entry.previous != before and is_signed(self._storage):
            path = layout.journal_event(entry.seq)
            raise NotAuthentic(path=path, reason="it does not follow the event before it")
        try:
            job, actions = self._transition(self._jobs[-1] if self._jobs else None, entry.event)
        except InvalidTransition as error:
            raise FormatError(path=layout.journal_event(entry.seq), reason=str(error)) from error
        self._keep(entry, job, actions, digest)

    def _keep(self, entry: Entry, job: Job, actions: tuple[Action, ...], digest: str) -> None:
        self._entries.append(entry)
        self._hashes.append(digest)
        self._jobs.append(job)
        self._actions.append(actions)

    def _transition(self, job: Job | None, event: Event) -> tuple[Job, tuple[Action, ...]]:
        try:
            return transition(job, event)
        except InvalidTransition as error:
            raise InvalidTransition(
                **{**error.fields, "recent_events": self._recent_events()}
            ) from None

    def _recent_events(self, last: int = 8) -> str:
        lines = [
            f"{entry.seq} {entry.event.__struct_config__.tag} -> {entry.state.value}"
            f" (attempt {entry.attempt}, by {entry.by})"
            for entry in self._entries[-last:]
        ]
        return " So far: " + "; ".join(lines) if lines else ""

    def _load(self, seq: int) -> tuple[Entry, str] | None:
        """Return an event and the hash of its document; None if there is none."""
        path = layout.journal_event(seq)
        try:
            stored = raw_document(self._storage, path, often=True)
        except NotFound:
            return None
        data = opened(self._storage, path, stored)
        self._needs_key |= data != stored and not is_signed(self._storage)
        try:
            found = typed_json.decode(data, _Format).format
            if found > FORMAT:
                raise FormatTooNew(path=path, found=found, known=FORMAT)
            entry = typed_json.decode(data, Entry)
        except UNREADABLE as error:
            reason = (
                f"{error}. If a copy of the job was cut short, copy this file again; if it is the "
                "newest event, you may delete it, and the job continues without it"
            )
            raise FormatError(path=path, reason=reason) from None
        if entry.seq != seq:
            raise FormatError(path=path, reason=f"it has the number {entry.seq}")
        return entry, _hash(data)


def _hash(document: bytes) -> str:
    return hashlib.sha256(document).hexdigest()


def _tells_the_same(one: Event, other: Event) -> bool:
    """Return whether two events are the same; each kind happens once in an attempt."""
    if type(one) is not type(other):
        return False
    attempt = getattr(one, "attempt", None)
    return one == other if attempt is None else attempt == getattr(other, "attempt", None)


class _Format(msgspec.Struct):
    format: int = FORMAT

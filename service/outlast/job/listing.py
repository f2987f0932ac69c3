"""Lists all jobs below a root: each with its newest event and, while it runs, its heartbeat.

This takes one listing and one small read for each job, or two while it runs. Several jobs are read
at a time, because most of the time is spent waiting for the disk or the bucket.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from outlast.job import heartbeat
from outlast.job.events import (
    Claimed,
    Ended,
    Queued,
    Reached,
    Released,
    Resumed,
    StopRequested,
    Submitted,
)
from outlast.job.heartbeat import Beat
from outlast.job.journal import Entry, Journal
from outlast.job.process_identity import Identity
from outlast_checkpoints.errors import StorageError, named
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage

_AT_ONCE = 4  # more threads would only compete for Python's lock
_PORTION = 64  # jobs that one thread takes at a time


class Listed(NamedTuple):
    """A job in a list."""

    name: str
    """Name of the job."""
    entry: Entry | None = None
    """Its newest event; None if it cannot be read."""
    beat: Beat | None = None
    """Its newest heartbeat; None also if the newest event has the progress."""
    owner: Identity | None = None
    """The process that acts for the job now."""
    problem: str = ""
    """Why the job cannot be read."""

    @property
    def reached(self) -> Reached | None:
        """How far the job has come; None if unknown."""
        return self.beat.reached() if self.beat else _reached(self.entry)


def listed(root: Storage) -> list[Listed]:
    """Return the jobs below `root`, by name. Raises `StorageError` if it cannot be reached."""
    names = root.list("")
    portions = [names[at : at + _PORTION] for at in range(0, len(names), _PORTION)]
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as readers:
        done = readers.map(lambda portion: _portion(root, portion), portions)
        return [found for some in done for found in some]


def _portion(root: Storage, names: Iterable[str]) -> list[Listed]:
    looked = (_look(root, name) for name in names)
    return [found for found in looked if found is not None]


def _look(root: Storage, name: str) -> Listed | None:
    """Return the job `name`; None if there is no such job."""
    storage = root.sub(name)
    try:
        # A readable event proves that this is a job, without a look at the spec.
        journal = Journal(storage)
        entry = journal.newest()
        if entry is None:
            return Listed(name, problem="no journal") if storage.exists(layout.SPEC) else None
        looks = entry.attempt > 0 and _reached(entry) is None
        beat = heartbeat.read(storage, entry.attempt) if looks else None
        owner = _owner(journal, entry)
    except Exception as error:  # noqa: BLE001  (one job does not hide the others)
        return Listed(name, problem=str(named(error))) if _holds_job(storage) else None
    return Listed(name, entry, beat, owner)


def _owner(journal: Journal, entry: Entry) -> Identity | None:
    """Return the owner. Usually it has written the newest event; else the journal is read."""
    if entry.state.final or isinstance(entry.event, Submitted | Queued | Released | Resumed):
        return None
    if isinstance(entry.event, StopRequested):
        return journal.existing_job().owner
    return entry.event.owner if isinstance(entry.event, Claimed) else entry.by


def _reached(entry: Entry | None) -> Reached | None:
    """Return the progress in the newest event, if that event ended an attempt."""
    return entry.event.reached if entry is not None and isinstance(entry.event, Ended) else None


def _holds_job(storage: Storage) -> bool:
    try:
        return storage.exists(layout.SPEC)
    except StorageError as error:
        if error.fields.get("errno") == errno.ENOTDIR:  # a file, not a job
            return False
        raise

"""All jobs below a root, each told by its newest event, and at work by its attempt's last beat.

That is a listing and one small read a job, two while it is at work. On a disk that has none of it
in memory, and in a bucket always, waiting for them is what takes the time: many jobs are read at
once.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from outlast.job import heartbeat
from outlast.job.events import Ended, Reached
from outlast.job.heartbeat import Beat
from outlast.job.journal import Entry, Journal
from outlast_checkpoints.errors import OutlastError, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage

_AT_ONCE = 4  # more get into each other's way, for Python runs one at a time
_PORTION = 64  # jobs that one reader takes at a time


class Listed(NamedTuple):
    """A job as a list shows it. entry: None when it cannot be read, for what `problem` says.

    beat: None also when the newest event tells how far the job has come.
    """

    name: str
    entry: Entry | None = None
    beat: Beat | None = None
    problem: str = ""

    @property
    def reached(self) -> Reached | None:
        """How far the job has come; None when nobody says so."""
        return self.beat.reached() if self.beat else _told(self.entry)


def listed(root: Storage) -> list[Listed]:
    """Return the jobs below `root` by name. Raises `StorageError` when it is out of reach."""
    names = root.list("")
    portions = [names[at : at + _PORTION] for at in range(0, len(names), _PORTION)]
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as readers:
        done = readers.map(lambda portion: _portion(root, portion), portions)
        return [found for some in done for found in some]


def _portion(root: Storage, names: Iterable[str]) -> list[Listed]:
    looked = (_look(root, name) for name in names)
    return [found for found in looked if found is not None]


def _look(root: Storage, name: str) -> Listed | None:
    """Return the job `name`, None when there is none of that name."""
    storage = root.sub(name)
    try:
        # An event that reads well needs no look whether there is a spec beside it.
        entry = Journal(storage).newest()
        if entry is None:
            return Listed(name, problem="no journal") if storage.exists(layout.SPEC) else None
        looks = entry.attempt > 0 and _told(entry) is None
        beat = heartbeat.read(storage, entry.attempt) if looks else None
    except OutlastError as error:
        return Listed(name, problem=str(error)) if _holds_job(storage) else None
    return Listed(name, entry, beat)


def _told(entry: Entry | None) -> Reached | None:
    """Return how far the job has come by the event that ended its attempt, the newest one."""
    return entry.event.reached if entry is not None and isinstance(entry.event, Ended) else None


def _holds_job(storage: Storage) -> bool:
    try:
        return storage.exists(layout.SPEC)
    except StorageError as error:
        if error.fields.get("errno") == errno.ENOTDIR:  # a file of somebody's
            return False
        raise

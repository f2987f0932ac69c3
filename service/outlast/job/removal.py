"""Deletes a job. A deletion that was cut short can be repeated, and nothing can resume the rest."""

from __future__ import annotations

import shutil

from outlast.errors import InvalidTransition, JobNotEnded
from outlast.job.events import Removed
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.spec import JobSpec
from outlast.job.spool_settings import existing_spool
from outlast.job.submission import load_spec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import unsigned


def is_half_removed(storage: Storage) -> bool:
    """Return whether a deletion of the job in `storage` was cut short."""
    if not storage.exists(layout.SPEC):  # and with it the identity that a signed event belongs to
        storage = unsigned(storage)
    entry = Journal(storage).newest()
    return entry is not None and entry.state is State.REMOVED


def check_ended(storage: Storage, name: str) -> JobSpec:
    """Return the spec of a job that has ended.

    Raises:
        JobUnknown: there is no such job.
        JobNotEnded: the job has not ended.
    """
    spec = load_spec(storage)
    job = Journal(storage).job()
    if job is not None and not job.state.final:
        raise JobNotEnded(job=name, state=job.state.value)
    return spec


def remove(root: Storage, name: str) -> None:
    """Delete the job `name` below `root`, and its spool on this machine.

    The event *removed* comes first, so a resume at the same moment either wins, and nothing is
    deleted, or is refused. The spec is deleted next, the journal last: what a deletion that was cut
    short leaves behind is known as removed.

    Raises:
        JobUnknown: there is no such job.
        JobNotEnded: the job has not ended.
    """
    storage = root.sub(name)
    if not is_half_removed(storage):
        spec = check_ended(storage, name)
        _record(storage, name)
        if (spool := existing_spool(storage, spec)) is not None:
            shutil.rmtree(spool.path, ignore_errors=True)
    storage.delete(layout.SPEC)
    storage.delete_tree(layout.CHECKPOINTS)
    storage.delete_tree(layout.ATTEMPTS)
    for event in storage.list(layout.JOURNAL):  # by number: the newest one is the last
        storage.delete(f"{layout.JOURNAL}/{event}")
    root.delete_tree(name)


def _record(storage: Storage, name: str) -> None:
    journal = Journal(storage)
    if journal.job() is None:  # its submitter died after writing the spec
        return
    try:
        journal.append(Removed())
    except InvalidTransition:
        raise JobNotEnded(job=name, state=journal.existing_job().state.value) from None

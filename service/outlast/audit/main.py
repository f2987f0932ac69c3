"""The process of an audit beside a training: `python -m outlast.audit.main JOB_URL`.

It runs at the lowest priority. It begins at the newest checkpoint, waits for the next one of the
same phase, trains the steps between them again, and records the outcome in the job's journal.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Final

from outlast.audit import interval as intervals
from outlast.audit.audit import require_script, train_again
from outlast.audit.scratch import scratch
from outlast.audit.verdict import Verdict
from outlast.exit_codes import DONE, NOT_EXACT, RESUMABLE
from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast.job.submission import load_spec
from outlast_checkpoints.errors import NoCheckpoint, OutlastError
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore

_POLL: Final = 1.0  # seconds between two looks for a new checkpoint
_POLL_REMOTE: Final = 10.0  # each look costs several requests
_LEAST_PRIORITY: Final = 19


def audit_next(storage: Storage) -> Verdict | None:
    """Audit the interval that begins at the newest checkpoint; wait for its end.

    Returns None if the job has ended before.

    Raises:
        AuditImpossible: the job has no script.
        AuditFailed: the interval could not be trained again.
        StorageError: the storage cannot be read.
    """
    spec = load_spec(storage)
    require_script(spec)
    found = None
    while found is None and not _over(storage):
        try:
            found = _from_newest(storage, spec)
        except NoCheckpoint:  # pruned before it could be kept; a later one will do
            _wait(storage)
    return found


def _from_newest(storage: Storage, spec: JobSpec) -> Verdict | None:
    """Audit from the newest checkpoint; None if its phase or the job ends before the interval."""
    first = max(CheckpointStore(storage).ids(), default=None)
    if first is None or first.stage is Stage.END:
        _wait(storage)
        return None
    began = time.time()
    with scratch(storage) as folder:
        folder.begin(storage, spec, first)
        while True:
            over = _over(storage)  # the last checkpoint precedes the end
            ids = CheckpointStore(storage).ids()
            chosen = intervals.following(ids, first)
            if chosen is not None:
                return train_again(storage, spec, folder, chosen, began)
            if over or max(ids, default=first).phase > first.phase:
                return None
            _wait(storage)


def _over(storage: Storage) -> bool:
    return Journal(storage).existing_job().state.final


def _wait(storage: Storage) -> None:
    time.sleep(_POLL if storage.capabilities.local else _POLL_REMOTE)
    if os.getppid() != _parent:
        sys.exit(RESUMABLE)  # its supervisor is gone


def main(argv: list[str]) -> int:
    """Audit the job at the URL `argv[0]`; return the exit code."""
    os.nice(_LEAST_PRIORITY)
    with suppress(AttributeError, OSError):  # not Linux, or not allowed
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    signal.signal(signal.SIGTERM, _leave)
    try:
        verdict = audit_next(open_storage(argv[0]))
        return DONE if verdict is None or verdict.exact else NOT_EXACT
    except OutlastError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _leave(_signum: int, _frame: FrameType | None) -> None:
    sys.exit(RESUMABLE)  # the folder is deleted and the attempt killed on the way


_parent = os.getppid()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Makes a job continue from another of its checkpoints.

A rewind is an attempt that trains nothing: its claim excludes all other processes and supersedes
older attempts, and its origin is the checkpoint. So a rewind is complete once the origin exists,
and has no effect before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from outlast.errors import InvalidTransition
from outlast.job import process_identity, takeover
from outlast.job.events import Ended, Resumed
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.submission import load_spec, resume_unfinished
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store import rewinding
from outlast_checkpoints.store.checkpoint_store import CheckpointStore


def rewind(
    storage: Storage, to: CheckpointId, *, on_wait: Callable[[str], None] | None = None
) -> None:
    """Make the job pending, so that its next attempt continues from checkpoint `to`.

    The checkpoints and rows beyond it leave the lineage and stay where they are.

    Args:
        storage: Storage of the job.
        to: The checkpoint; it may be one that an earlier rewind has set aside.
        on_wait: Called once with a text about what is waited for.

    Raises:
        NoCheckpoint: no such checkpoint is committed.
        CheckpointDamaged: it is damaged; nothing has changed.
        JobBusy: another process has the job.
    """
    if damages := CheckpointStore(storage).verify(to):
        raise damages[0].error()
    job = resume_unfinished(storage, on_wait=on_wait)
    journal = Journal(storage)
    if job.state.final:
        journal.append(Resumed(by=str(process_identity.here())))
    try:
        claimed, _ = journal.claim(process_identity.here())
    except InvalidTransition:
        raise takeover.busy(load_spec(storage).job, journal.existing_job()) from None
    reason = "the rewind failed"
    try:
        rewinding.rewind(storage, claimed.attempt, to)
        reason = f"the job continues from {to}"
    except OutlastError as error:
        reason = f"the rewind failed: {error}"
        raise
    finally:
        ended = Ended(
            attempt=claimed.attempt, outcome=Outcome.REWOUND, reason=reason, stepped=False
        )
        with suppress(InvalidTransition):  # somebody has written this process off
            journal.append(ended)

"""Whether a job continues before the fault that ended its attempt."""

from __future__ import annotations

from typing import NamedTuple

from outlast.job.heartbeat import Beat
from outlast.job.lifecycle import Job
from outlast.job.outcome import Outcome
from outlast.job.rollback import Policy, Rollback
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_reader import CheckpointReader


class Decision(NamedTuple):
    """How an attempt ended, with what follows from its fault."""

    outcome: Outcome
    """How the attempt ended."""
    reason: str
    """Why, for people."""
    rollback: Rollback | None = None
    """The rollback, if there is one."""


def decide(
    storage: Storage, spec: JobSpec, job: Job, beat: Beat | None, outcome: Outcome, reason: str
) -> Decision:
    """Return the end of an attempt, as a rollback if the job's policy allows one for its fault.

    Args:
        storage: Storage of the job.
        spec: Spec of the job.
        job: The job, with the attempt in flight.
        beat: Last heartbeat of the attempt.
        outcome: How the attempt ended.
        reason: Why, for people.

    Raises:
        StorageError: the checkpoints cannot be listed.
    """
    fault = None if beat is None else beat.fault
    if outcome is not Outcome.DIVERGED or fault is None or spec.on_nan != "rollback":
        return Decision(outcome, reason)
    policy, checkpoints = Policy.parse(spec.rollback), CheckpointReader(storage).ids()
    decided = policy.decide(job.attempt, fault, job.rollbacks, checkpoints)
    if isinstance(decided, str):
        return Decision(outcome, f"{fault}; {decided}")
    return Decision(Outcome.ROLLED_BACK, str(decided), decided)

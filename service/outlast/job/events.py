"""The events of a job: what happened, with everything that the decision about it needs."""

from __future__ import annotations

from typing import Any

import msgspec

from outlast.job.cluster_slot import Slot
from outlast.job.outcome import Outcome
from outlast.job.process_identity import Identity
from outlast.job.rollback import Rollback


class Submitted(msgspec.Struct, frozen=True, kw_only=True, tag="submitted", tag_field="kind"):
    """The job exists."""

    max_retries: int = 3
    """Consecutive attempts without a new checkpoint that are retried before the job fails."""


class Queued(msgspec.Struct, frozen=True, kw_only=True, tag="queued", tag_field="kind"):
    """A cluster has accepted the job and will start a supervisor for it."""

    engine: str
    """Name of the engine that has the job."""
    handle: dict[str, Any] = {}
    """Finds the job in the cluster; only the engine reads it, except for "id"."""

    def __post_init__(self) -> None:
        if not isinstance(self.handle.get("id"), str):
            raise ValueError("the handle has no id")


class Claimed(msgspec.Struct, frozen=True, kw_only=True, tag="claimed", tag_field="kind"):
    """An owner starts an attempt. From now on every older attempt is superseded."""

    attempt: int
    """Number of the attempt, from 1; the fencing token."""
    owner: Identity
    """The process that acts for the job."""
    slot: Slot | None = None
    """The owner's slot in a cluster; None outside a cluster."""


class Launched(msgspec.Struct, frozen=True, kw_only=True, tag="launched", tag_field="kind"):
    """The backend has started the attempt."""

    attempt: int
    """Number of the attempt."""
    handle: dict[str, Any] = {}
    """Finds the attempt again; only the backend reads it."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started", tag_field="kind"):
    """The attempt has written its first heartbeat."""

    attempt: int
    """Number of the attempt."""


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """How far an attempt came, according to its last heartbeat."""

    phase: int | None = None
    """Index of the phase, from 0; None before the first phase."""
    step: int = 0
    """Steps done in the phase."""
    total_steps: int | None = None
    """Steps of the whole phase; None if unknown."""
    epoch: int = 0
    """Epochs done in the phase."""
    epochs: int | None = None
    """Epochs of the whole phase; None if unknown."""
    logs: dict[str, float | None] = {}
    """Newest metrics; None where a value is not finite."""
    last_checkpoint: str | None = None
    """Id of the newest committed checkpoint."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended", tag_field="kind"):
    """The attempt is over."""

    attempt: int
    """Number of the attempt."""
    outcome: Outcome
    """How the attempt ended."""
    reason: str = ""
    """Why it ended so, for people."""
    exit_code: int | None = None
    """Exit code of the process, if it had one."""
    signal: int | None = None
    """Signal that ended the process, if one did."""
    advanced: bool = False
    """Whether the attempt committed a checkpoint beyond the one that it started from."""
    checkpoint: str | None = None
    """Id of the newest such checkpoint."""
    delay: float = 0.0
    """Seconds to wait before a retry; includes backoff and jitter."""
    exception: str | None = None
    """Exception that ended the script, with its place; None if a retry may help."""
    stepped: bool = True
    """Whether the attempt trained a step; True if unknown."""
    reached: Reached | None = None
    """How far the attempt came, so that a list of jobs need not read heartbeats."""
    rollback: Rollback | None = None
    """Where the job continues after a fault; None if it does not, or met none."""


class StopRequested(
    msgspec.Struct, frozen=True, kw_only=True, tag="stop-requested", tag_field="kind"
):
    """Somebody wants the job to stop."""

    by: str = ""
    """Who wants it: a process, or "Ctrl-C"."""
    now: bool = False
    """Whether to kill the attempt instead of letting it save."""


class Released(msgspec.Struct, frozen=True, kw_only=True, tag="released", tag_field="kind"):
    """The owner left, or is gone, between two attempts. Anybody may resume the job."""

    reason: str = ""
    """Why the owner left, for people."""


class Resumed(msgspec.Struct, frozen=True, kw_only=True, tag="resumed", tag_field="kind"):
    """Somebody resumes a job that has ended. Its retry budget starts anew."""

    by: str = ""
    """The process that resumed the job."""


class Removed(msgspec.Struct, frozen=True, kw_only=True, tag="removed", tag_field="kind"):
    """Somebody deletes the job. Nothing can follow."""


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag="forked", tag_field="kind"):
    """The job begins at a checkpoint of another one, with that one's history up to there."""

    parent: str
    """Folder or URL of the other job."""
    checkpoint: str
    """Id of the checkpoint."""
    attempt: int
    """The attempt that wrote it; the attempts of this job are counted on from there."""


class Audited(msgspec.Struct, frozen=True, kw_only=True, tag="audited", tag_field="kind"):
    """An interval of the training was trained again and compared. The state does not change."""

    first: str
    """Id of the checkpoint at which the interval begins."""
    last: str
    """Id of the checkpoint at which it ends."""
    exact: bool
    """Whether nothing differs."""
    difference: str = ""
    """The first difference, for people."""
    count: int = 0
    """Number of differences."""
    seconds: float = 0.0
    """How long the audit took."""


Event = (
    Submitted
    | Queued
    | Claimed
    | Launched
    | Started
    | Ended
    | StopRequested
    | Released
    | Resumed
    | Removed
    | Forked
    | Audited
)

"""The context of a training process: the attempt of a job that it is.

Under `outlast run`, the context is set before the script starts. A bare script
(`python train.py`) gets one from `open_bare` when it first uses its `job_dir`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from structlog.typing import FilteringBoundLogger

from outlast import exit_codes
from outlast.attempt.signals import StopFlag
from outlast.job.audit_target import AuditTarget
from outlast.job.heartbeat import Status
from outlast.job.rank import Rank
from outlast.job.rollback import Rollback
from outlast.job.save_interval import Failures
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.known_commits import KnownCommit
from outlast_checkpoints.store.spool import Spool

if TYPE_CHECKING:
    from outlast_checkpoints.store.checkpoint_store import Loaded


@dataclass
class AttemptContext:
    """The attempt that this process is."""

    storage: Storage
    """Storage of the job."""
    spec: JobSpec
    """Spec of the job."""
    attempt: int
    """Number of the attempt."""
    stop: StopFlag
    """Whether to leave; the loop reads it between two compiled calls."""
    status: Status
    """Values of the next heartbeat; the training sets them."""
    log: FilteringBoundLogger
    """Log of the attempt."""
    fence: Callable[[], None]
    """Raises `Superseded` if a newer attempt was claimed."""
    supervised: bool
    """Whether a supervisor watches this process."""
    local_dir: Path | None
    """Folder of the job on this machine; None if its storage is elsewhere."""
    began: float = field(default_factory=time.time)
    """When this process became the attempt, in seconds since the epoch."""
    failures: Failures = field(default_factory=Failures)
    """Failures of earlier attempts."""
    known_commits: Sequence[KnownCommit] = ()
    """Checkpoints that earlier attempts have reported."""
    rollbacks: Sequence[Rollback] = ()
    """Rollbacks of the job so far, oldest first."""
    before_training: Callable[[], None] = lambda: None
    """Called before the first phase; may restart the process."""
    spool: Spool | None = None
    """Where checkpoints wait to be sent; None if the storage is on this machine."""
    read_deadline: Callable[[], float | None] = lambda: None
    """Returns the seconds until the deadline that the supervisor set; None without one."""
    before_exit: Callable[[int], int] = lambda code: code
    """Called with the exit code; returns the exit code to use."""
    audit: AuditTarget | None = None
    """Where to save and stop, in the attempt of an audit; None in any other."""
    exit_code: int | None = field(default=None)
    """Exit code of the script, once it is known."""
    rank: Rank = field(default_factory=Rank)
    """Rank of this process in the attempt."""
    read_ahead: Callable[[], Loaded | None] = lambda: None
    """Returns the newest checkpoint once, if it was read in the background; waits for that."""

    def leave_by(self) -> float | None:
        """Return when this machine is taken, in monotonic seconds; None if unknown."""
        stop = self.stop
        if stop.leave_by is None and stop.requested:
            left = self.read_deadline()
            stop.leave_by = None if left is None else time.monotonic() + left
        return stop.leave_by

    def time_left(self) -> float | None:
        """Return the seconds until this machine is taken; None if unknown."""
        by = self.leave_by()
        return None if by is None else max(0.0, by - time.monotonic())

    def leave(self, code: int = exit_codes.RESUMABLE) -> NoReturn:
        """Exit with the state saved (75); an `except Exception` in the script does not catch it."""
        self.exit_code = code
        raise SystemExit(code)


_current: AttemptContext | None = None


def current() -> AttemptContext | None:
    """Return the context of this process; None in a bare script without an open job."""
    return _current


def set_current(context: AttemptContext | None) -> None:
    """Set the context that `current` returns."""
    global _current
    _current = context

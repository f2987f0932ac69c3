"""What the training in this process belongs to: an attempt of a job.

Under `outlast run` the attempt sets the context before the script starts. A bare script
(`python train.py`) gets one from `open_bare` when it first names its `job_dir`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from structlog.typing import FilteringBoundLogger

from outlast import exit_codes
from outlast.attempt.signals import StopFlag
from outlast.job.heartbeat import Status
from outlast.job.rank import Rank
from outlast.job.save_interval import Failures
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.spool import Spool

if TYPE_CHECKING:
    from outlast_checkpoints.store.checkpoint_store import Loaded


@dataclass
class AttemptContext:
    """The attempt that this process is.

    storage: the job's folder. stop: read it between two compiled calls. status: set it, the
    heartbeat tells it. log: bound to job and attempt. fence: raises `Superseded` when a newer
    attempt was claimed. supervised: under a supervisor. local_dir: the job's folder on this
    machine, None when it is elsewhere. failures: of the attempts before. before_training: called
    before the first phase; may start the script anew. spool: where checkpoints wait to be sent,
    None in a job that is on this machine. look_for_departure: returns the seconds that are left, as
    the supervisor has said; None when it has not. before_exit: called with what this process is
    about to exit with, returns what it does exit with. exit_code: the former, once it is known.
    rank: which of the attempt's processes this one is. read_ahead: returns the newest checkpoint
    where it was read while the script began, once; waits until that is done.
    """

    storage: Storage
    spec: JobSpec
    attempt: int
    stop: StopFlag
    status: Status
    log: FilteringBoundLogger
    fence: Callable[[], None]
    supervised: bool
    local_dir: Path | None
    failures: Failures = field(default_factory=Failures)
    before_training: Callable[[], None] = lambda: None
    spool: Spool | None = None
    look_for_departure: Callable[[], float | None] = lambda: None
    before_exit: Callable[[int], int] = lambda code: code
    exit_code: int | None = field(default=None)
    rank: Rank = field(default_factory=Rank)
    read_ahead: Callable[[], Loaded | None] = lambda: None

    def leave_by(self) -> float | None:
        """Return when this machine is taken, monotonic seconds; None when nobody has said so."""
        stop = self.stop
        if stop.leave_by is None and stop.requested:
            left = self.look_for_departure()
            stop.leave_by = None if left is None else time.monotonic() + left
        return stop.leave_by

    def time_left(self) -> float | None:
        """Return the seconds until this machine is taken; None when nobody has said when."""
        by = self.leave_by()
        return None if by is None else max(0.0, by - time.monotonic())

    def leave(self, code: int = exit_codes.RESUMABLE) -> NoReturn:
        """Leave the script with its state saved (75), past any `except Exception` of its own."""
        self.exit_code = code
        raise SystemExit(code)


_current: AttemptContext | None = None


def current() -> AttemptContext | None:
    """Return the attempt that this process is, None in a bare script that has opened no job."""
    return _current


def set_current(context: AttemptContext | None) -> None:
    """Make `context` what `current` returns."""
    global _current
    _current = context

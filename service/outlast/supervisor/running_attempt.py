"""The running attempt as its supervisor knows it: handle, last heartbeat, deadline."""

from __future__ import annotations

import signal as signals
from contextlib import suppress
from typing import Final, Literal

from outlast import exit_codes
from outlast.backends.base import Backend, Exit, Handle
from outlast.errors import BackendFailed
from outlast.job.heartbeat import Beat, Watch
from outlast.job.logs import LogTail
from outlast.job.outcome import Outcome, judge
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage

STACKS_WITHIN: Final = 2.0  # seconds that a stalled attempt has to write the stacks of its threads


class RunningAttempt:
    """What the supervisor remembers of an attempt between two looks.

    Attributes:
        number: Number of the attempt.
        handle: The backend's handle of it.
        beat: Its newest heartbeat.
        verdict: Outcome and reason, once the supervisor killed the attempt.
        unseen: Why the backend cannot tell how the attempt is; None while it can.
        lost: Whether backend and heartbeat have both been silent for too long.
        stalled: Whether it made no progress within the stall timeout.
        noticed: Whether it knows by when this machine is taken.
    """

    def __init__(
        self,
        spec: JobSpec,
        storage: Storage,
        backend: Backend,
        handle: Handle,
        number: int,
        now: float,
    ) -> None:
        self.number = number
        self.handle = handle
        self.watch = Watch(now)
        self.tail = LogTail(storage, number, "log")
        self.beat: Beat | None = None
        self.verdict: tuple[Outcome, str] | None = None
        self.unseen: str | None = None
        self.lost = False
        self.stalled = False
        self.noticed = False
        self.output_seen = 0
        self.output_at = now
        self.rows_at = now
        self.beat_at = now
        self._spec = spec
        self._backend = backend
        self._leave_by: float | None = None
        self._late: tuple[Outcome, str] | None = None
        self._killed = False
        self._hurry = False

    @property
    def why(self) -> str:
        """Why the supervisor killed the attempt, for people."""
        return self.verdict[1] if self.verdict is not None else "it had ended, but did not exit"

    def reported_end(self, end: Exit) -> Exit:
        """Return how the attempt ended: as its heartbeat says where the backend has no code."""
        reported = None if self.beat is None else self.beat.ended
        return end if reported is None or end.code is not None else Exit(code=reported)

    def judged(self, end: Exit) -> tuple[Outcome, str]:
        """Return outcome and reason of the ended attempt. `end`: what the backend saw."""
        reported = self.reported_end(end)
        if self.verdict is not None and reported.code != exit_codes.DONE:
            return self.verdict
        if self.unseen is not None and end == Exit():
            return Outcome.LOST, f"no heartbeat, and {self.unseen}"
        return judge(reported.code, reported.signal, None if self.beat is None else self.beat.error)

    def stop(
        self,
        now: float,
        how: Literal["stop", "now", "preempted"],
        within: float | None = None,
    ) -> None:
        """Ask the attempt to save and leave, or kill it now. You may ask again.

        Args:
            now: Monotonic seconds.
            how: "stop" for a user's request, "now" to kill it, "preempted" when this machine is
                taken.
            within: Seconds that the attempt has; default: the grace of the job.
        """
        if how == "now":
            self._late = (Outcome.STOPPED, "killed on request")
            self._leave_by, self._hurry = now, True
            return
        outcome = Outcome.STOPPED if how == "stop" else Outcome.PREEMPTED
        within = self._spec.grace if within is None else within
        self._late = self._late or (outcome, _too_late(within))
        if self._leave_by is None:
            self._leave_by = now + within
            self._signal(signals.SIGTERM)

    def shorten(self, now: float, within: float) -> None:
        """Shorten the time of an attempt that was asked to leave to `within` seconds from now."""
        if self._leave_by is not None and now + within < self._leave_by:
            self._leave_by = now + within
            if self._late is not None:
                self._late = self._late[0], _too_late(within)

    def stall(self, now: float, idle: float) -> None:
        """Have the attempt write the stacks of its threads to output.log, then kill it."""
        self.stalled = self._hurry = True
        self._signal(signals.SIGQUIT)
        self._late = (Outcome.STALLED, f"no progress for {idle:.0f} s; stacks are in output.log")
        self._leave_by = now + STACKS_WITHIN

    def overdue(self, now: float) -> bool:
        """Kill the attempt when its time is up; return whether this call killed it."""
        if self._killed:
            return False
        if self._leave_by is None:
            if self.beat is not None and self.beat.ended is not None:
                self._leave_by = now + self._spec.grace  # an interpreter may hang at its end
            return False
        if now < self._leave_by or (self._saving and not self._hurry):
            return False
        try:
            self._backend.kill(self.handle)
        except BackendFailed:
            return False  # retried at the next look
        self.verdict = self._late
        self._killed = True
        return True

    @property
    def _saving(self) -> bool:
        # A save in progress may finish; only a second Ctrl-C ends it.
        return self.beat is not None and self.beat.activity == "saving"

    def _signal(self, signum: int) -> None:
        with suppress(BackendFailed):  # the attempt is killed when its time is up
            self._backend.signal(self.handle, signum)


def _too_late(within: float) -> str:
    return f"did not leave within {within:g} s and was killed"

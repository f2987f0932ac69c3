"""One attempt as its supervisor sees it: where it is, what it last said, by when it has to go."""

from __future__ import annotations

import signal as signals
from contextlib import suppress
from typing import Final, Literal

from outlast.backends.base import Backend, Handle
from outlast.errors import BackendFailed
from outlast.job.heartbeat import Beat, Watch
from outlast.job.logs import LogTail
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage

STACKS_WITHIN: Final = 2.0  # seconds a stalled attempt has to write the stacks of its threads


class Flight:
    """All that the supervisor remembers of an attempt between two looks.

    verdict: outcome and reason once the supervisor itself ended it. unseen: why the backend
    cannot tell how it is. lost: neither backend nor heartbeat has shown it for too long. noticed:
    it was told by when this machine is taken.
    """

    def __init__(
        self,
        spec: JobSpec,
        storage: Storage,
        backend: Backend,
        handle: Handle,
        attempt: int,
        now: float,
    ) -> None:
        self.attempt = attempt
        self.handle = handle
        self.watch = Watch(now)
        self.tail = LogTail(storage, attempt, "log")
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
        """Why the supervisor ended it, for people."""
        return self.verdict[1] if self.verdict is not None else "it had ended, but did not exit"

    def stop(
        self,
        now: float,
        how: Literal["stop", "now", "preempted"],
        within: float | None = None,
    ) -> None:
        """Ask it to save and leave, or kill it now; asking again is harmless.

        within: seconds that it has, None: the grace.
        """
        if how == "now":
            self._late = (Outcome.STOPPED, "killed at once, as asked")
            self._leave_by, self._hurry = now, True
            return
        outcome = Outcome.STOPPED if how == "stop" else Outcome.PREEMPTED
        within = self._spec.grace if within is None else within
        self._late = self._late or (outcome, _too_late(within))
        if self._leave_by is None:
            self._leave_by = now + within
            self._signal(signals.SIGTERM)

    def hurry(self, now: float, within: float) -> None:
        """Let one that has been asked to leave have no more than so many seconds from now on."""
        if self._leave_by is not None and now + within < self._leave_by:
            self._leave_by = now + within
            if self._late is not None:
                self._late = self._late[0], _too_late(within)

    def stall(self, now: float, idle: float) -> None:
        """Let it write the stacks of its threads into output.log, then it has to go."""
        self.stalled = self._hurry = True
        self._signal(signals.SIGQUIT)
        self._late = (Outcome.STALLED, f"no progress for {idle:.0f} s; stacks are in output.log")
        self._leave_by = now + STACKS_WITHIN

    def overdue(self, now: float) -> bool:
        """Kill it when its time is up; return whether that happened now."""
        if self._killed:
            return False
        if self._leave_by is None:
            if self.beat is not None and self.beat.ended is not None:
                self._leave_by = (
                    now + self._spec.grace
                )  # its own end may take a while, not for ever
            return False
        if now < self._leave_by or (self._saving and not self._hurry):
            return False
        try:
            self._backend.kill(self.handle)
        except BackendFailed:
            return False  # tried again at the next look
        self.verdict = self._late
        self._killed = True
        return True

    @property
    def _saving(self) -> bool:
        # what is being saved now is what the grace is for; a second Ctrl-C ends it all the same
        return self.beat is not None and self.beat.activity == "saving"

    def _signal(self, signum: int) -> None:
        with suppress(BackendFailed):  # then it is killed when its time is up
            self._backend.signal(self.handle, signum)


def _too_late(within: float) -> str:
    return f"did not leave within {within:g} s and was killed"

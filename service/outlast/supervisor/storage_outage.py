"""The job's storage is away: since when, and when to ask it again. What it misses waits here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from outlast.job.log_events import LogEvent
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage.private_rng import rng
from outlast_checkpoints.storage.retry_budget import BRIEF, patience

_PAUSES: Final = (1.0, 15.0)  # seconds between two questions: at first, at most


class StorageOutage:
    """What one observer knows of a storage that may be away; it never raises `StorageError`.

    since: by the clock, None while it is there. error: the last one.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.log: FilteringBoundLogger | None = None
        self.since: float | None = None
        self.error: StorageError | None = None
        self._clock = clock
        self._tries = 0
        self._ask_at = 0.0
        self._waiting: deque[Callable[[], None]] = deque()
        self._catching_up = False

    @property
    def waiting(self) -> bool:
        """Whether something has to be done yet that needs the storage."""
        return bool(self._waiting)

    @property
    def due(self) -> bool:
        """Whether the storage is there, or it is time to ask whether it is there again."""
        return self.since is None or self._clock() >= self._ask_at

    def ask(self, question: Callable[[], None]) -> bool:
        """Do what needs the storage, if that is due; return whether it was done."""
        done = self._ask(question)
        if done and not self._waiting:  # it can be read, but what waits has to be written
            self._worked()
        return done

    def _ask(self, question: Callable[[], None]) -> bool:
        if not self.due:
            return False
        try:
            with patience(BRIEF):
                question()
        except StorageError as error:
            self._failed(error)
            return False
        return True

    def do(self, action: Callable[[], None]) -> None:
        """Do what must be done, now or when the storage is back, after what waits already."""
        self._waiting.append(action)
        self.catch_up()

    def catch_up(self) -> None:
        """Do what waits, as far as the storage lets it."""
        if self._catching_up:
            return  # what is being done has added to it
        self._catching_up = True
        try:
            while self._waiting:
                try:
                    if not self._ask(self._waiting[0]):
                        return
                except BaseException:
                    self._waiting.popleft()  # it has failed, and not for want of the storage
                    raise
                self._waiting.popleft()
                self._worked()
        finally:
            self._catching_up = False

    def _failed(self, error: StorageError) -> None:
        first, longest = _PAUSES
        self.error = error
        if self.since is None:
            self.since, self._tries = self._clock(), 0
            if self.log is not None:
                self.log.warning(
                    LogEvent.STORE_LOST, error=str(error), hint="the supervisor keeps trying"
                )
        pause = min(longest, first * 2.0**self._tries)
        self._tries = min(self._tries + 1, 16)
        self._ask_at = self._clock() + pause * rng.uniform(0.75, 1.0)

    def _worked(self) -> None:
        if self.since is not None:
            seconds = round(self._clock() - self.since, 3)
            self.since, self.error = None, None
            if self.log is not None:
                self.log.info(LogEvent.STORE_RECOVERED, away_for=seconds)

"""Outages of the job's storage: when to try again, and what waits to be written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from outlast.job.log_events import LogEvent
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage.private_rng import rng
from outlast_checkpoints.storage.retry_budget import BRIEF, patience

_PAUSES: Final = (1.0, 15.0)  # first and longest seconds between two tries


class StorageOutage:
    """Runs actions on a storage that may be away; never raises `StorageError`.

    Attributes:
        since: Since when the storage is away, by the clock; None while it works.
        error: The last error.
        log: Log for the beginning and the end of an outage.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.log: FilteringBoundLogger | None = None
        self.since: float | None = None
        self.error: StorageError | None = None
        self._clock = clock
        self._tries = 0
        self._ask_at = 0.0
        self._waiting: deque[Callable[[], object]] = deque()
        self._catching_up = False

    @property
    def waiting(self) -> bool:
        """Whether an action waits for the storage."""
        return bool(self._waiting)

    @property
    def due(self) -> bool:
        """Whether the storage works, or it is time to try it again."""
        return self.since is None or self._clock() >= self._ask_at

    def ask(self, question: Callable[[], object]) -> bool:
        """Run a read on the storage, if that is due; return whether it succeeded."""
        done = self._ask(question)
        if done and not self._waiting:  # reading works, but waiting actions have to write
            self._worked()
        return done

    def _ask(self, question: Callable[[], object]) -> bool:
        if not self.due:
            return False
        try:
            with patience(BRIEF):
                question()
        except StorageError as error:
            self._failed(error)
            return False
        return True

    def do(self, action: Callable[[], object]) -> None:
        """Run an action now or when the storage is back, after all waiting actions."""
        self._waiting.append(action)
        self.catch_up()

    def catch_up(self) -> None:
        """Run the waiting actions, as far as the storage works."""
        if self._catching_up:
            return  # called by an action
        self._catching_up = True
        try:
            while self._waiting:
                try:
                    if not self._ask(self._waiting[0]):
                        return
                except BaseException:
                    self._waiting.popleft()  # it failed for another reason
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

"""`ProgressReporter`: what a training reports, as values of the heartbeat and lines of the log."""

from __future__ import annotations

import time
from typing import Any

from structlog.typing import FilteringBoundLogger

from outlast.job.heartbeat import Status
from outlast.job.rollback import Fault
from outlast.job.speed import Speed
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.snapshot import Progress
from outlast_checkpoints.store.spool_sender import Backlog


class ProgressReporter:
    """Reports the progress of an attempt, phase by phase.

    Attributes:
        log: Log of the attempt.
    """

    def __init__(self, status: Status, log: FilteringBoundLogger) -> None:
        self.log = log
        self._status = status
        self._speed = Speed()

    @property
    def last_checkpoint(self) -> str | None:
        """Id of the newest committed checkpoint."""
        return self._status.last_checkpoint

    def activity(self, name: str) -> None:
        """Report that the training begins with something else, such as "validating"."""
        self._status.activity = name
        self._status.tick()

    def tick(self) -> None:
        """Report that the current activity makes progress."""
        self._status.tick()

    def error(self, error: BaseException) -> None:
        """Report the error that ends the attempt."""
        self._status.error = f"{type(error).__name__}: {error}"

    def fault(self, fault: Fault) -> None:
        """Report the step whose loss ends the attempt."""
        self._status.error, self._status.fault = str(fault), fault

    # -- the phase -------------------------------------------------------------------------

    def phase_begins(
        self, index: int, name: str | None, *, epochs: int | None, steps_per_epoch: int | None
    ) -> None:
        """Report the phase that the following steps belong to."""
        status, self._speed = self._status, Speed()
        status.phase, status.phase_name = index, name
        status.epochs, status.steps_per_epoch = epochs, steps_per_epoch
        status.total_steps = None

    def resumed(self, progress: Progress) -> None:
        """Report that the state of a checkpoint is restored."""
        status = self._status
        status.step, status.epoch, status.batch = progress.step, progress.epoch, progress.batch
        status.tick()

    def steps(
        self, count: int, *, step: int, epoch: int, batch: int, logs: dict[str, Any], seconds: float
    ) -> None:
        """Report `count` new steps, which took `seconds`.

        `step`, `epoch` and `batch` are the position after them. `logs` are those of the last one.
        """
        status = self._status
        status.steps_done += count
        self._speed.note(time.monotonic(), step, count, seconds)
        status.steps_per_second = self._speed.steps_per_second
        status.step, status.epoch, status.batch = step, epoch, batch
        if status.epochs is not None and status.steps_per_epoch is not None:
            status.total_steps = step + (status.epochs - epoch) * status.steps_per_epoch - batch
        self.trained(logs)

    def left_out(self, *, step: int, epoch: int, batch: int) -> None:
        """Report the position after batches that were not trained on."""
        status = self._status
        status.step, status.epoch, status.batch = step, epoch, batch
        self.activity("training")

    def trained(self, logs: dict[str, Any]) -> None:
        """Report the newest logs, of a step or of an epoch."""
        self._status.logs = {k: v for k, v in logs.items() if isinstance(v, float)}
        self.activity("training")

    # -- checkpoints -----------------------------------------------------------------------

    def resumes_from(self, checkpoint: str, step: int) -> None:
        """Report the checkpoint that the attempt resumes from."""
        self._status.restored_from = self._status.last_checkpoint = checkpoint
        self._status.last_checkpoint_at_step = step

    def save_begun(self, held_seconds: float) -> None:
        """Report a save. Holding its snapshot took `held_seconds`, which count as saving."""
        self._status.move(held_seconds, "saving")
        self._status.saves += 1

    def save_postponed(self) -> int:
        """Report that a save is due while an earlier one is written. Return how many were."""
        self._status.saves_postponed += 1
        return self._status.saves_postponed

    def writer_event(self, event: str, fields: dict[str, Any], backlog: Backlog | None) -> None:
        """Report an event of the writer. `backlog` is what waits to be sent, if known."""
        status = self._status
        if backlog is not None:
            status.away_since, status.spool = backlog.away_since, backlog.path
            status.spooled, status.spooled_bytes = backlog.count, backlog.size
        if event in ("saved", "spooled"):
            saved = CheckpointId.parse(fields["checkpoint"])
            assert saved is not None
            status.last_checkpoint, status.last_checkpoint_at_step = str(saved), saved.step
            status.tick()
        if "seconds" in fields:
            fields = {**fields, "seconds": round(fields["seconds"], 4)}
        if "error" in fields:
            self.log.warning(event, **{**fields, "error": str(fields["error"])})
        elif event == "spooled":
            # Warn only while the storage is away, not if a checkpoint just waits its turn.
            say = self.log.info if status.away_since is None else self.log.warning
            say(event, **fields, path=status.spool)
        else:
            self.log.info(event, **fields)

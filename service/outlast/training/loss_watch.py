"""`LossWatch`: what happens at a loss that is not finite, and which batches rollbacks leave out."""

from __future__ import annotations

import math
import time

from structlog.typing import FilteringBoundLogger

from outlast.job.log_events import LogEvent
from outlast.job.rollback import Fault, LeftOut
from outlast.training.errors import Diverged, RollbackNeeded
from outlast.training.job import TrainingJob


class LossWatch:
    """Looks at the loss of each step of one phase.

    Attributes:
        left_out: The steps that are not trained.
    """

    def __init__(self, job: TrainingJob, phase: int, log: FilteringBoundLogger) -> None:
        self.left_out = LeftOut(job.ctx.rollbacks, phase)
        self._job = job
        self._phase = phase
        self._log = log

    def check(self, step: int, epoch: int, batch: int, loss: float | None) -> None:
        """Act as the job's `on_nan` says if the loss is not finite.

        Raises:
            Diverged: the job stops at such a loss.
            RollbackNeeded: the supervisor has to roll the job back.
        """
        ctx = self._job.ctx
        if ctx.spec.on_nan == "ignore" or not isinstance(loss, float) or math.isfinite(loss):
            return
        error = Diverged(value=loss, step=step, epoch=epoch)
        if ctx.spec.on_nan == "stop" or not ctx.supervised:
            raise error
        fault = Fault(
            phase=self._phase, step=step, epoch=epoch, batch=batch, value=str(float(loss))
        )
        self._job.reporter.fault(fault)
        self._log.error(
            LogEvent.LOSS_NOT_FINITE, loss=fault.value, step=step, epoch=epoch, batch=batch
        )
        ctx.exit_code = error.exit_code
        raise RollbackNeeded

    def leave_out(self, step: int, epoch: int, batch: int, count: int) -> None:
        """Record `count` batches from `batch` on that are not trained, after `step` steps."""
        for i in range(count):
            place = {"phase": self._phase, "step": step + i + 1, "epoch": epoch, "batch": batch + i}
            row = {"kind": "left_out", **place, "time": time.time(), "logs": {}}
            self._job.history.append(row)
        self._job.reporter.left_out(step=step + count, epoch=epoch, batch=batch + count)
        self._log.warning(
            LogEvent.BATCHES_LEFT_OUT,
            step=step + 1,
            epoch=epoch,
            batch=batch,
            count=count,
            why="the job was rolled back before them, because a loss was not finite",
        )

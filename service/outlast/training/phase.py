"""`Phase`: a running phase. It decides when to save and when to leave, and knows no model."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from outlast.exit_codes import RESUMABLE
from outlast.job.log_events import LogEvent
from outlast.job.save_interval import Failures, SaveCost, first, interval
from outlast.job.save_schedule import SaveEvery
from outlast.job.speed import Speed
from outlast.training.errors import Diverged, StateSaved
from outlast.training.handler_warnings import put_handlers_back, warn_of_error
from outlast.training.job import TrainingJob
from outlast_checkpoints.errors import OutlastError, StorageError, Superseded
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.format.snapshot import Progress, Snapshot

HISTORY_FLUSH_S = 1.0
CALL_TARGET_S = 0.1  # target duration of a call, since a stop request waits for its end
MOMENT_S = 1.0  # a faster save is made even if no time is left
MARGIN = 1.25  # assumed ratio of a save's duration to that of the last one


@dataclass(frozen=True)
class HeldSnapshot:
    """A snapshot, and the length of the history when it was taken."""

    snapshot: Snapshot
    mark: HistoryMark
    held_ms: float


class Phase:
    """The running phase. `take` takes a snapshot of the training at a given progress."""

    def __init__(
        self,
        job: TrainingJob,
        index: int,
        name: str | None,
        *,
        epochs: int | None,
        steps_per_epoch: int | None,
        seed: int,
        take: Callable[[Progress], Snapshot],
    ) -> None:
        self.job = job
        self.index = index
        self.name = name
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.step = 0
        self._take = take
        self._cadence = SaveEvery.parse(job.ctx.spec.save_every)
        self._began = self._last_save = self._last_flush = time.monotonic()
        self._last_step_saved = -1
        self._pace: float | None = None  # of the compiled calls alone
        self._speed = Speed()
        self._cost = SaveCost()
        self._interval = first(job.ctx.failures)  # seconds, for an automatic cadence
        self._writing = self._postponed = False
        self.log = job.ctx.log.bind(phase=index)
        status = job.ctx.status
        status.phase, status.phase_name = index, name
        status.epochs, status.steps_per_epoch = epochs, steps_per_epoch

    # -- the length of the next call -------------------------------------------------------

    def steps_allowed(self, limit: int) -> int:
        """Return the steps of the next call: up to the next save, and for about 0.1 s."""
        fitting = 1 if self._pace is None else max(1, int(CALL_TARGET_S / self._pace))
        return self._cadence.steps_until_due(self.step, min(limit, fitting))

    # -- recording -------------------------------------------------------------------------

    def record_steps(
        self,
        epoch: int,
        batch: int,
        rows: list[dict[str, float]],
        own: list[float | None],
        seconds: float,
    ) -> None:
        """Write the history rows of new steps. `batch` is the first one's index in its epoch."""
        now = time.time()
        for i, (logs, own_loss) in enumerate(zip(rows, own, strict=True)):
            self.step += 1
            row: dict[str, Any] = {
                "kind": "step",
                "phase": self.index,
                "step": self.step,
                "epoch": epoch,
                "batch": batch + i,
                "time": now,
                "logs": _storable(logs),
            }
            if own_loss is not None:
                row["batch_loss"] = own_loss
            self.job.history.append(row)
            self._check_finite(epoch, own_loss if own_loss is not None else logs.get("loss"))
        self.job.ctx.status.steps_done += len(rows)
        self._speed.note(time.monotonic(), self.step, len(rows), seconds)
        pace = seconds / len(rows)
        self._pace = pace if self._pace is None else 0.5 * self._pace + 0.5 * pace
        self._cost.steps(len(rows), seconds, writing=self._writing)
        self._show(epoch, batch + len(rows), rows[-1])

    def record_epoch(self, epoch: int, logs: dict[str, float]) -> None:
        """Write the history row of a finished epoch, including `val_*`."""
        self.job.history.append(
            {
                "kind": "epoch",
                "phase": self.index,
                "step": self.step,
                "epoch": epoch,
                "time": time.time(),
                "logs": _storable(logs),
            }
        )
        self.job.ctx.status.activity = "training"
        self.job.ctx.status.logs = {k: v for k, v in logs.items() if isinstance(v, float)}
        self.job.ctx.status.tick()

    def record_start(self, data: dict[str, Any]) -> None:
        """Write the history row of the phase's start. `data` describes the training data."""
        params = {
            "epochs": self.epochs,
            "steps": self.steps_per_epoch,
            "seed": self.seed,
            **data,
        }
        self.job.history.append(
            {
                "kind": "phase",
                "phase": self.index,
                "step": 0,
                "name": self.name,
                "params": params,
                "time": time.time(),
            }
        )

    def _check_finite(self, epoch: int, loss: float | None) -> None:
        if (
            self.job.ctx.spec.on_nan == "stop"
            and isinstance(loss, float)
            and not math.isfinite(loss)
        ):
            raise Diverged(value=loss, step=self.step, epoch=epoch)

    def _show(self, epoch: int, batch: int, logs: dict[str, float]) -> None:
        status = self.job.ctx.status
        status.activity = "training"
        status.step, status.epoch, status.batch = self.step, epoch, batch
        if self.epochs is not None and self.steps_per_epoch is not None:
            ahead = (self.epochs - epoch) * self.steps_per_epoch - batch
            status.total_steps = self.step + ahead
        status.logs = {k: v for k, v in logs.items() if isinstance(v, float)}
        status.steps_per_second = self._speed.steps_per_second
        status.tick()

    def resumed(self, checkpoint: str, progress: Progress, *, seconds: float, data: str) -> None:
        """Note that the state is that of `checkpoint`, so it needs no save."""
        self.step = self._last_step_saved = progress.step
        self._last_save = time.monotonic()
        status = self.job.ctx.status
        status.step, status.epoch, status.batch = progress.step, progress.epoch, progress.batch
        status.tick()
        self.log.info(
            LogEvent.RESUMED,
            checkpoint=checkpoint,
            step=progress.step,
            epoch=progress.epoch,
            batch=progress.batch,
            seconds=round(seconds, 3),
            data=data,
        )

    # -- saving and leaving ----------------------------------------------------------------

    def hold(self, epoch: int, batch: int, stage: Stage, *, let_go: bool = False) -> HeldSnapshot:
        """Hold the complete state at this progress, without copying variables.

        With `let_go`, the writer releases each array once it is written, so the save is tried only
        once; see `Snapshot`. It has no effect if a failed save ends the attempt.
        """
        started = time.perf_counter()
        progress = Progress(
            phase=self.index,
            phase_name=self.name,
            step=self.step,
            epoch=epoch,
            batch=batch,
            stage=stage,
            epochs=self.epochs,
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
        )
        let_go = let_go and self.job.ctx.spec.on_save_error != "stop"
        snapshot = replace(self._take(progress), let_go=let_go)
        mark = self.job.history.mark()
        return HeldSnapshot(snapshot, mark, (time.perf_counter() - started) * 1e3)

    def at_border(self, epoch: int, batch: int) -> None:
        """Handle the border between two calls: save if due, or save and leave if requested."""
        self._raise_pending()
        stop = put_handlers_back(self.job.ctx.stop, self.log)
        # Before the first step of an epoch, the previous epoch is complete, so a resume repeats
        # neither its validation nor its callbacks.
        stage = Stage.EPOCH if batch == 0 and self.step > 0 else Stage.STEP
        if stop.reason is not None:
            self.leave(self.hold(epoch, batch, stage))
        if stop.save_and_go_on:
            stop.save_and_go_on = False
            self.commit(self.hold(epoch, batch, stage, let_go=True), "signal")
            return
        self._flush_history()
        due = self._cadence.step_due(self.step) and self.step != self._last_step_saved
        late = (
            self._cadence.steps is not None
            and self.step - max(self._last_step_saved, 0) >= self._cadence.steps
        )
        self._writing = self.job.writer.busy
        since = time.monotonic() - self._last_save
        timed = self._cadence.time_due(since) or self._chosen_time_due(since)
        # A save that falls due during a write waits for the first border at which the writer is
        # free. So the loop never blocks for it, and writes never pile up.
        if not (due or late or timed):
            return
        if not self._writing:
            reason = "step" if due or late else "time"
            self.commit(self.hold(epoch, batch, stage, let_go=True), reason)
        elif not self._postponed:
            self._postponed = True
            self.job.ctx.status.saves_postponed += 1
            count = self.job.ctx.status.saves_postponed
            self.log.info(
                LogEvent.SAVE_POSTPONED,
                step=self.step,
                why="an earlier save is being written",
                count=count,
            )

    def at_epoch_end(self, epoch: int) -> None:
        """Handle an epoch's end, after validation and callbacks, before the next epoch begins."""
        if self.job.ctx.stop.reason is not None:
            self.leave(self.hold(epoch + 1, 0, Stage.EPOCH))
        since = time.monotonic() - self._last_save
        # A resume from here repeats no validation, so it pays to save early.
        early = self._chosen_time_due(2 * since) and not self.job.writer.busy
        if self._cadence.epoch or early:
            self.commit(self.hold(epoch + 1, 0, Stage.EPOCH, let_go=True), "epoch")

    def commit(self, held: HeldSnapshot, reason: str) -> None:
        """Hand the held state to the writer. Waits only for an earlier write to finish."""
        self._last_save = time.monotonic()
        self._last_step_saved = held.snapshot.progress.step
        self._cost.held(held.held_ms / 1e3)
        self.job.ctx.status.move(held.held_ms / 1e3, "saving")
        self._writing, self._postponed = True, False
        self.job.ctx.status.saves += 1
        self.log.debug(
            LogEvent.SNAPSHOT_HELD, reason=reason, step=self.step, ms=round(held.held_ms, 2)
        )
        try:
            self.job.writer.submit(held.snapshot, reason, held.mark, held_ms=held.held_ms)
        except OutlastError as error:
            self._save_failed(error)
            self.job.writer.submit(held.snapshot, reason, held.mark, held_ms=held.held_ms)

    def _chosen_time_due(self, since: float) -> bool:
        """Return whether an automatic cadence is due `since` seconds after the last save."""
        if self._cadence.overhead is None:
            return False
        if self.job.written_in is not None:
            self._cost.written(self.job.written_in)
            self.job.written_in = None
            self._choose_interval(self._cadence.overhead)
        return since >= self._interval

    def _choose_interval(self, overhead: float) -> None:
        cost, before = self._cost, self.job.ctx.failures
        under_way = before.seconds + time.monotonic() - self._began
        failures = Failures(before.count, under_way, before.lives)
        chosen = interval(cost, failures, overhead)
        if not 0.8 <= chosen / (self._interval or 1e-9) <= 1.25:
            self.log.info(
                LogEvent.SAVE_INTERVAL_CHOSEN,
                seconds=round(chosen, 2),
                cost_ms=round(cost.seconds * 1e3, 1),
                cost_measured=cost.measured,
                overhead=f"{cost.seconds / chosen:.2%}",
                written_in_s=round(cost.writing, 3),
                failures=failures.count,
                mean_time_between_failures_s=round(failures.mean_time_between),
            )
            self._interval = chosen

    def ending(self, epoch: int) -> Callable[[], None] | None:
        """Hold the state at which the script leaves the phase, and return what saves it for good.

        Returns `None` if the state cannot be held; then the phase stays unfinished.
        """
        try:
            held = self.hold(epoch, 0, Stage.END)
        except Exception:  # noqa: BLE001 - the error that left the phase matters more
            return None
        return functools.partial(self.commit_now, held, "left")

    def commit_now(self, held: HeldSnapshot, reason: str) -> None:
        """Save, and wait until the checkpoint is durable. Raises after a second failure."""
        self.job.ctx.status.activity = "saving"
        self.commit(held, reason)
        self.job.writer.wait()
        error = self.job.writer.take_error()
        if error is not None:
            self._save_failed(error)
            self.job.writer.submit(held.snapshot, reason, held.mark, held_ms=held.held_ms)
            self.job.writer.wait()
            error = self.job.writer.take_error()
        if error is not None:
            raise error

    def leave(self, held: HeldSnapshot) -> None:
        """Save the held state and leave the script. Always raises."""
        reason = self.job.ctx.stop.reason or "stop"
        warn_of_error(self.job.ctx.stop, self.log)
        if reason == "superseded":
            self.job.ctx.fence()
        if self._fits():
            self.commit_now(held, "stop")
            self.log.info(LogEvent.STATE_SAVED, step=held.snapshot.progress.step, why=reason)
        self.job.ctx.exit_code = RESUMABLE
        if reason == "SIGINT" and not self.job.ctx.supervised:
            raise KeyboardInterrupt
        raise StateSaved(reason)

    def _fits(self) -> bool:
        """Return whether there is time for one more save before this machine is preempted.

        It first waits for a write in progress. An interrupted save is useless, and an attempt that
        is killed during it counts as a failure.
        """
        if self.job.ctx.time_left() is None:
            return True
        self.job.ctx.status.activity = "saving"
        self.job.writer.wait()
        left, takes = self.job.ctx.time_left(), self.job.save_takes
        if left is None or takes is None or MARGIN * takes <= max(left, MOMENT_S):
            return True
        self.log.warning(
            LogEvent.SAVE_SKIPPED,
            takes_s=round(takes, 2),
            left_s=round(left, 2),
            checkpoint=self.job.ctx.status.last_checkpoint,
            hint="the last checkpoint is kept; later steps will be retrained",
        )
        return False

    def _raise_pending(self) -> None:
        error = self.job.writer.take_error()
        if error is not None:
            self._save_failed(error)

    def _save_failed(self, error: BaseException) -> None:
        # Superseded and bugs end the attempt. Storage errors do so only if that is the policy,
        # because the older checkpoints stay valid and the next save tries again.
        if isinstance(error, Superseded) or not isinstance(error, StorageError):
            raise error
        if self.job.ctx.spec.on_save_error == "stop":
            raise error
        self.log.warning(
            LogEvent.SAVE_FAILED,
            error=str(error),
            hint="training continues; the next save tries again",
        )

    def _flush_history(self) -> None:
        now = time.monotonic()
        if now - self._last_flush >= HISTORY_FLUSH_S:
            self._last_flush = now
            try:
                self.job.history.flush()
            except StorageError as error:
                self._save_failed(error)


def _storable(logs: dict[str, Any]) -> dict[str, Any]:
    """Convert logs for a history row: a metric with several values becomes a list."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in logs.items()}

"""`Phase`: a running phase. It decides when to save and when to leave, and knows no model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from outlast.exit_codes import RESUMABLE
from outlast.job.audit_target import moment
from outlast.job.log_events import LogEvent
from outlast.job.save_schedule import SaveEvery
from outlast.training.chosen_interval import ChosenInterval
from outlast.training.errors import StateSaved
from outlast.training.handler_warnings import reinstall_handlers, warn_of_error
from outlast.training.job import TrainingJob
from outlast.training.loss_watch import LossWatch
from outlast.training.state.kept_files import with_kept_files
from outlast.training.state.unsaved_warnings import warn_of_hidden_ops
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
        place: str | None,
        epochs: int | None,
        steps_per_epoch: int | None,
        seed: int,
        take: Callable[[Progress], Snapshot],
    ) -> None:
        self.job = job
        self.index = index
        self.name = name
        self.place = place
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.step = 0
        self._ctx = job.ctx
        self._spec = job.ctx.spec
        self._stop = job.ctx.stop
        self._reporter = job.reporter
        self._take = take
        self._cadence = SaveEvery.parse(self._spec.save_every)
        self._last_save = self._last_flush = time.monotonic()
        self._last_step_saved = -1
        self._pace: float | None = None  # of the compiled calls alone
        self._writing = self._postponed = False
        self._audit = job.ctx.audit
        self.log = job.reporter.log.bind(phase=index)
        self._losses = LossWatch(job, index, self.log)
        share = self._cadence.overhead
        self._chosen = None if share is None else ChosenInterval(share, job.ctx.failures, self.log)
        job.reporter.phase_begins(index, name, epochs=epochs, steps_per_epoch=steps_per_epoch)

    # -- the length of the next call -------------------------------------------------------

    def steps_allowed(self, limit: int) -> int:
        """Return the steps of the next call: up to the next save, and for about 0.1 s."""
        fitting = 1 if self._pace is None else max(1, int(CALL_TARGET_S / self._pace))
        most = min(limit, fitting)
        if self._audit is not None:
            most = self._audit.steps_until(self.index, self.step, most)
        most = self._losses.left_out.until(self.step, most)
        return self._cadence.steps_until_due(self.step, most)

    def left_out(self, group: int = 1) -> int:
        """Return how many of the next batches a rollback leaves out, in whole groups."""
        return self._losses.left_out.next_steps(self.step, group)

    # -- recording -------------------------------------------------------------------------

    def record_steps(
        self,
        epoch: int,
        batch: int,
        rows: list[dict[str, float]],
        batch_losses: list[float | None],
        seconds: float,
    ) -> None:
        """Write the history rows of new steps. `batch` is the first one's index in its epoch."""
        now = time.time()
        for i, (logs, batch_loss) in enumerate(zip(rows, batch_losses, strict=True)):
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
            if batch_loss is not None:
                row["batch_loss"] = batch_loss
            self.job.history.append(row)
            loss = batch_loss if batch_loss is not None else logs.get("loss")
            self._losses.check(self.step, epoch, batch + i, loss)
        pace = seconds / len(rows)
        self._pace = pace if self._pace is None else 0.5 * self._pace + 0.5 * pace
        if self._chosen is not None:
            self._chosen.cost.steps(len(rows), seconds, writing=self._writing)
        self._reporter.steps(
            len(rows),
            step=self.step,
            epoch=epoch,
            batch=batch + len(rows),
            logs=rows[-1],
            seconds=seconds,
        )

    def leave_out(self, epoch: int, batch: int, count: int) -> None:
        """Note that `count` batches, from `batch` on, were taken and not trained on."""
        self._losses.leave_out(self.step, epoch, batch, count)
        self.step += count

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
        self._reporter.trained(logs)

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

    def resumed(self, checkpoint: str, progress: Progress, *, seconds: float, data: str) -> None:
        """Note that the state is that of `checkpoint`, so it needs no save."""
        self.step = self._last_step_saved = progress.step
        self._last_save = time.monotonic()
        self._reporter.resumed(progress)
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

    def hold(
        self, epoch: int, batch: int, stage: Stage, *, release_written: bool = False
    ) -> HeldSnapshot:
        """Hold the complete state at this progress, without copying variables.

        With `release_written`, the writer releases each array once it is written, so the save is
        tried only once; see `Snapshot`. It has no effect if a failed save ends the attempt.
        """
        started = time.perf_counter()
        progress = Progress(
            phase=self.index,
            phase_name=self.name,
            place=self.place,
            step=self.step,
            epoch=epoch,
            batch=batch,
            stage=stage,
            epochs=self.epochs,
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
        )
        release_written = release_written and self._spec.on_save_error != "stop"
        snapshot = with_kept_files(replace(self._take(progress), release_written=release_written))
        mark = self.job.history.mark()
        return HeldSnapshot(snapshot, mark, (time.perf_counter() - started) * 1e3)

    def at_border(self, epoch: int, batch: int, *, trained: bool = False) -> None:
        """Handle the border between two calls: save if due, or save and leave if requested.

        `trained` says whether all batches of the epoch are trained.
        """
        self._raise_pending()
        stop = reinstall_handlers(self._stop, self.log)
        warn_of_hidden_ops(self.log)
        # Before the first step of an epoch, the previous epoch is complete, so a resume repeats
        # neither its validation nor its callbacks.
        stage = Stage.EPOCH if batch == 0 and self.step > 0 else Stage.STEP
        if stop.reason is not None or self._ends_audit(stage, begun=True, trained=trained):
            self.leave(self.hold(epoch, batch, stage))
        if stop.save_and_continue:
            stop.save_and_continue = False
            self.commit(self.hold(epoch, batch, stage, release_written=True), "signal")
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
            self.commit(self.hold(epoch, batch, stage, release_written=True), reason)
        elif not self._postponed:
            self._postponed = True
            self.log.info(
                LogEvent.SAVE_POSTPONED,
                step=self.step,
                why="an earlier save is being written",
                count=self._reporter.save_postponed(),
            )

    def at_epoch_end(self, epoch: int) -> None:
        """Handle an epoch's end, after validation and callbacks, before the next epoch begins."""
        if self._stop.reason is not None or self._ends_audit(Stage.EPOCH):
            self.leave(self.hold(epoch + 1, 0, Stage.EPOCH))
        since = time.monotonic() - self._last_save
        # A resume from here repeats no validation, so it pays to save early.
        early = self._chosen_time_due(2 * since) and not self.job.writer.busy
        if self._cadence.epoch or early:
            self.commit(self.hold(epoch + 1, 0, Stage.EPOCH, release_written=True), "epoch")

    def commit(self, held: HeldSnapshot, reason: str) -> None:
        """Hand the held state to the writer. Waits only for an earlier write to finish."""
        self._last_save = time.monotonic()
        self._last_step_saved = held.snapshot.progress.step
        if self._chosen is not None:
            self._chosen.cost.held(held.held_ms / 1e3)
        self._reporter.save_begun(held.held_ms / 1e3)
        self._writing, self._postponed = True, False
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
        if self._chosen is None:
            return False
        if self.job.written_in is not None:
            self._chosen.written(self.job.written_in)
            self.job.written_in = None
        return self._chosen.due(since)

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
        self._reporter.activity("saving")
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
        if held.snapshot.progress.finished:
            self.job.note_end(held.snapshot.progress)
            if self._ends_audit(Stage.END):
                self.job.ctx.exit_code = RESUMABLE
                raise StateSaved("audit")

    def _ends_audit(self, stage: Stage, *, begun: bool = False, trained: bool = False) -> bool:
        """Return whether this is the attempt of an audit, and it has come to its end."""
        at = moment(self.step, stage, begun=begun, trained=trained)
        return self._audit is not None and self._audit.reached(self.index, at)

    def leave(self, held: HeldSnapshot) -> None:
        """Save the held state and leave the script. Always raises."""
        reason = self._stop.reason or "stop"
        warn_of_error(self._stop, self.log)
        if reason == "superseded":
            self._ctx.fence()
        if self._fits():
            self.commit_now(held, "stop")
            self.log.info(LogEvent.STATE_SAVED, step=held.snapshot.progress.step, why=reason)
        self._ctx.exit_code = RESUMABLE
        if reason == "SIGINT" and not self._ctx.supervised:
            raise KeyboardInterrupt
        raise StateSaved(reason)

    def _fits(self) -> bool:
        """Return whether there is time for one more save before this machine is preempted.

        It first waits for a write in progress. An interrupted save is useless, and an attempt that
        is killed during it counts as a failure.
        """
        if self._ctx.time_left() is None:
            return True
        self._reporter.activity("saving")
        self.job.writer.wait()
        left, takes = self._ctx.time_left(), self.job.save_takes
        if left is None or takes is None or MARGIN * takes <= max(left, MOMENT_S):
            return True
        self.log.warning(
            LogEvent.SAVE_SKIPPED,
            takes_s=round(takes, 2),
            left_s=round(left, 2),
            checkpoint=self._reporter.last_checkpoint,
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
        if self._spec.on_save_error == "stop":
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

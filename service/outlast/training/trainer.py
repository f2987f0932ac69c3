"""`Trainer`: the batch loop of `fit`, with Keras' order of events, plus saves and restores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from outlast.attempt.signals import StopFlag
from outlast.job.log_events import LogEvent
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import Feed, executed
from outlast.training.fit_arguments import Plan
from outlast.training.fit_callbacks import FitCallbacks
from outlast.training.fit_state import FitState, Logs
from outlast.training.keras_internals import models
from outlast.training.loaded_checkpoint import LoadedCheckpoint
from outlast.training.phase import Phase
from outlast.training.phase_exit import PhaseExit
from outlast.training.progress_reporter import ProgressReporter
from outlast.training.state import raised_error
from outlast.training.state.callback_files import appends_rows
from outlast.training.state.kept_files import put_back_files
from outlast.training.step.compiled_steps import CompiledSteps
from outlast.training.validation import Validation
from outlast_checkpoints.format.layout import Stage


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains one phase with the parts that `FitCall` has made.

    Call `start` in a new training; otherwise `restore`, and `resume` if the phase is unfinished.
    """

    model: Any
    plan: Plan
    feed: ArrayFeed | Feed
    validation: Validation
    callbacks: FitCallbacks
    steps: CompiledSteps
    state: FitState
    phase: Phase
    exit: PhaseExit
    reporter: ProgressReporter
    name_doubts: Callable[[], None]
    stop: StopFlag

    def start(self, epoch: int) -> None:
        """Save the untrained state before the first step, and train from this epoch on."""
        self.feed.start()
        self.exit.begin()
        self.phase.record_start(self.feed.describe())
        if self.state.epoch_begun:
            self.feed.begin_epoch(epoch)
        # This first save preserves the untrained weights over a crash.
        self.phase.commit(self.phase.hold(epoch, 0, Stage.STEP), "start")
        if any(appends_rows(c) for c in self.callbacks.all.callbacks):
            self.phase.job.writer.wait()
        self._train(epoch, 0)

    def restore(self, stored: LoadedCheckpoint, *, finished: bool) -> None:
        """Restore the state of a checkpoint. Raises `StateMismatch` before anything is changed."""
        started = time.perf_counter()
        self.reporter.activity("restoring")
        self.state.restore(stored, self.phase.log, finished=finished)
        put_back_files(stored.files, self.phase.job.ctx)
        stored.release()
        self.phase.resumed(
            stored.checkpoint,
            stored.progress,
            seconds=time.perf_counter() - started,
            data=self.feed.how_resumed(),
        )
        self.name_doubts()

    def resume(self, epoch: int, batch: int) -> None:
        """Train from the restored position on."""
        self.exit.began = True
        if self.state.epoch_begun:
            self.callbacks.continue_epoch(epoch, batch)
        self._train(epoch, batch)

    # -- the loop --------------------------------------------------------------------------

    def _train(self, epoch: int, batch: int) -> None:
        try:
            while epoch < self.plan.epochs:
                if not self.state.epoch_begun:
                    self._begin_epoch(epoch)
                batch = self._train_epoch(epoch, batch)
                self._end_epoch(epoch, batch)
                epoch, batch = epoch + 1, 0
                if self.model.stop_training:
                    break
            self._finish(epoch)
        except Exception as error:
            self.exit.hold(self.phase, epoch, raised_error.describe(error))
            raise
        self.exit.end()

    def _begin_epoch(self, epoch: int) -> None:
        self.model.reset_metrics()
        self.callbacks.all.on_epoch_begin(epoch)
        self.feed.begin_epoch(epoch)
        self.state.epoch_begun = True

    def _train_epoch(self, epoch: int, batch: int) -> int:
        """Train the rest of an epoch from `batch` on, and return its number of batches."""
        # If stop_training is set before the first batch, the epoch ends after it, as in Keras.
        one_by_one = self.callbacks.every_batch or self.model.stop_training
        group = self.feed.group if one_by_one else 0
        while not self.state.epoch_trained and not (batch and self.model.stop_training):
            self.callbacks.require_same_compile()
            self.phase.at_border(epoch, batch)
            if not self.feed.more(batch):
                break
            if wanted := self.phase.left_out(group or 1):
                batch += self._leave_out(epoch, batch, wanted)
                continue
            step = executed(batch, group) if group else batch
            if group:
                before = self.state.hook_effects() if self.phase.step == 0 else None
                self.callbacks.all.on_train_batch_begin(step)
                self.callbacks.require_same_compile()
                if before is not None:
                    self.callbacks.name_late(self.state.set_since(before))
            done = self._call(epoch, batch, group)
            if done == 0:
                continue
            batch += done
            if group:
                self.callbacks.all.on_train_batch_end(step + group - 1, self.state.logs)
            elif self.callbacks.progress_bar is not None:
                self.callbacks.progress_bar.on_train_batch_end(batch - 1, self.state.logs)
        self.state.epoch_trained = True
        return batch

    def _leave_out(self, epoch: int, batch: int, wanted: int) -> int:
        """Take batches without training on them. Return their number, 0 if the data ran out."""
        done = 0
        while done < wanted and self.feed.within(batch + done):
            taken = self.feed.take(batch + done, min(wanted - done, self.steps.max_steps))
            if taken is None:
                break
            done += len(taken)
        if done:
            self.phase.leave_out(epoch, batch, done)
        return done

    def _call(self, epoch: int, batch: int, group: int) -> int:
        """Train some batches and record their logs. Return their number, 0 if the data ran out.

        `group` is the number of batches between two calls of the callbacks' hooks, or 0 for any.
        """
        done = 0
        while True:
            most = self.steps.max_steps
            limit = min(group - done, most) if group else self.phase.steps_allowed(most)
            started = time.perf_counter()
            batches = self.feed.take(batch + done, limit)
            if batches is None:
                return done
            result = self.steps.run(batches)
            seconds = time.perf_counter() - started
            rows = result.rows()
            self.phase.record_steps(epoch, batch + done, rows, result.batch_losses(), seconds)
            self.state.logs = rows[-1]
            done += len(rows)
            if done >= group or not self.feed.within(batch + done):
                return done

    def _end_epoch(self, epoch: int, batch: int) -> None:
        self.phase.at_border(epoch, batch, trained=True)
        epoch_logs: Logs = models.epoch_logs(self.model, self.state.logs)
        if self.validation.due(self.model, epoch):
            # Hold the state before validation. A stop during validation saves it and leaves.
            held = self.phase.hold(epoch, batch, Stage.STEP)
            self.reporter.activity("validating")
            results = self.validation.run(self.callbacks.all, self.feed.place())
            if self.stop.reason is not None:
                self.phase.leave(held)
            epoch_logs.update({f"val_{k}": v for k, v in results.items()})
        self.callbacks.all.on_epoch_end(epoch, epoch_logs)
        self.state.training_logs = models.pythonify_logs(epoch_logs)
        self.state.epoch_begun = self.state.epoch_trained = False
        self.name_doubts()
        self.phase.record_epoch(epoch, self.state.training_logs)
        if self.callbacks.view is not None:
            self.callbacks.view.update()
        if epoch + 1 < self.plan.epochs and not self.model.stop_training:
            self.callbacks.require_same_compile()
            self.phase.at_epoch_end(epoch)

    def _finish(self, epoch: int) -> None:
        model = self.model
        if isinstance(model.optimizer, keras.optimizers.Optimizer) and self.plan.epochs > 0:
            model.optimizer.finalize_variable_values(model.trainable_weights)
        self.validation.close()
        self.callbacks.all.on_train_end(logs=self.state.training_logs)
        self.callbacks.remove_probe()
        if self.callbacks.view is not None:
            self.callbacks.view.close()
        self.phase.commit_now(self.phase.hold(epoch, 0, Stage.END), "end")
        self.phase.log.info(LogEvent.PHASE_FINISHED, step=self.phase.step, name=self.plan.name)

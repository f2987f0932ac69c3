"""`Trainer`: the batch loop of `fit`, with Keras' order of events, plus saves and restores."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import keras

from outlast.job.log_events import LogEvent
from outlast.training.data import arrays, make_feed
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import executed
from outlast.training.fit_arguments import Plan
from outlast.training.fit_callbacks import FitCallbacks
from outlast.training.fit_state import FitState, Logs, describe_model
from outlast.training.history import History
from outlast.training.job import TrainingJob
from outlast.training.keras_internals import models
from outlast.training.loaded_checkpoint import Stored, choose_seed
from outlast.training.phase import Phase
from outlast.training.phase_exit import PhaseExit
from outlast.training.state import fingerprint, raised_error
from outlast.training.state.callback_files import appends_rows
from outlast.training.state.callback_state import CallbackStates
from outlast.training.state.hook_effects import HookEffects
from outlast.training.state.live_variables import LiveState, learning_rate_of
from outlast.training.step.compiled_steps import CompiledSteps
from outlast.training.step.program_choice import ProgramChoice
from outlast.training.validation import Validation
from outlast_checkpoints.format.layout import MODEL_FILE, Stage


class Trainer:
    """One `fit` call. `run` performs it from start to end."""

    def __init__(self, model: Any, plan: Plan, job: TrainingJob) -> None:
        self.model = model
        self.plan = plan
        self.job = job

    def run(self) -> History:
        """Train or resume the phase, and return its complete history."""
        index = self.job.enter_phase(self.plan.name)
        self.exit = PhaseExit(self.job, index)
        try:
            # The script may catch an error that ends the training, so everything is closed then
            # too.
            with self.job.ctx.stop.read_by_loop(), ExitStack() as made:
                return self._run(index, made)
        except BaseException as error:
            self.exit.note(error)
            raise

    def _run(self, index: int, made: ExitStack) -> History:
        stored = Stored.of(self.job, index, "fit")
        self.job.make_deterministic()
        seed = choose_seed(stored, self.plan.seed)
        self._prepare_data(seed, made)
        # This must precede all hooks of callbacks, because a finished phase calls none.
        document = describe_model(self.model).get(MODEL_FILE)
        trained = fingerprint.of_training(self.model, document)
        decisive = {**trained, "arguments": self.plan.decisive()}
        rate = learning_rate_of(self.model)
        self.callbacks = FitCallbacks(
            self.model, self.plan, self.feed, self.validation, self.job.ctx
        )
        made.callback(self.callbacks.remove_probe)
        over = self._is_over(stored)
        # Keras traces the step after these hooks, so what they set on the model counts.
        effects = HookEffects(self.model)
        before = None if stored is None else stored.plain.get("hook_effects")
        objects = LiveState(self.model).objects()
        states = CallbackStates(self.callbacks.with_state(), objects, self.job.ctx.log)
        if over and not (before or {}).get("replaced"):
            self.callbacks.begin_skipped()
        else:
            self.model.stop_training = False
            self.callbacks.begin(stored)
            states.begin(LiveState(self.model).objects())
        # In a new job, Keras' BackupAndRestore may choose the first epoch.
        first = models.initial_epoch(self.model) or self.plan.initial_epoch
        begun = stored is None and first < self.plan.epochs
        if begun:
            self.callbacks.begin_first_epoch(first, effects)
        elif before is not None:
            effects.apply(before)
        changed = effects.changes()
        live = self._compile(stored, rate)
        states.add_elsewhere(live.objects())
        self.state = FitState(
            self.model,
            live,
            self.feed,
            self.validation,
            states,
            str(self.steps.program),
            describe_model(self.model),
            decisive,
            self.exit,
            # An eager step reads the attributes each time, so the current ones are stored.
            effects=lambda: (
                {**effects.changes(), "replaced": changed["replaced"]}
                if self.steps.eager
                else changed
            ),
            rehearse=self._rehearse if self.steps.eager else None,
        )
        self.state.epoch_begun = begun
        self.phase = Phase(
            self.job,
            index,
            self.plan.name,
            epochs=self.plan.epochs,
            steps_per_epoch=self.feed.steps,
            seed=seed,
            take=self.state.take,
        )
        if stored is not None:
            left = stored.plain["left"]
            self._restore(stored, finished=over)
            if self.steps.eager and before is not None:
                effects.apply(before)  # again, after the step that created the variables
            if over:
                self.phase.log.info(LogEvent.PHASE_SKIPPED, name=self.plan.name)
                self.exit.repeat(left)
                return self._history()
            self.exit.began = True
            start = stored.progress.epoch, stored.progress.batch
            if self.state.epoch_begun:
                self.callbacks.continue_epoch(*start)
        else:
            self._start(first)
            start = first, 0
        try:
            self._train(*start)
            self._finish()
        except Exception as error:
            self.exit.hold(self.phase, self.ended_at, raised_error.describe(error))
            raise
        self.exit.end()
        return self._history()

    def _is_over(self, stored: Stored | None) -> bool:
        if stored is None:
            return False
        stopped = stored.plain["stop_training"]
        return stored.is_over(self.job, self.plan.epochs, stopped=stopped)

    # -- before the first step -------------------------------------------------------------

    def _prepare_data(self, seed: int, made: ExitStack) -> None:
        plan = self.plan
        train = (plan.x, plan.y, plan.sample_weight)
        validation_data = plan.validation_data
        if plan.validation_split and validation_data is None:
            train, validation_data = arrays.split_validation(*train, plan.validation_split)
        self.feed = make_feed(
            *train,
            batch_size=plan.batch_size,
            steps_per_epoch=plan.steps_per_epoch,
            class_weight=plan.class_weight,
            shuffle=plan.shuffle,
            seed=seed,
            max_queue_size=plan.max_queue_size,
            steps_per_execution=self.model.steps_per_execution,
        )
        made.callback(self.feed.close)
        for doubt in self.feed.doubts():
            self.job.ctx.log.warning(LogEvent.INEXACT_DATA_FOUND, why=doubt)
        self.validation = Validation(
            self.model,
            validation_data,
            batch_size=plan.validation_batch_size or plan.batch_size,
            steps=plan.validation_steps,
            freq=plan.validation_freq,
        )
        made.callback(self.validation.close)

    def _compile(self, stored: Stored | None, rate: float | None) -> LiveState:
        """Trace the step, so that every variable exists, and return them all as a `LiveState`."""
        self.job.ctx.status.activity = "compiling"
        if isinstance(self.feed, ArrayFeed):
            data = self.feed.data
            size = data.fixed_batch
            self.steps = CompiledSteps(self.model, data.tensors, size, spec=data.spec(size))
        else:
            self.steps = CompiledSteps(self.model, spec=self.feed.source.spec)
        self.steps.trace()
        touched, traced = self.steps.touched_variables(), not self.steps.eager
        live = LiveState(self.model, touched, traced=traced, learning_rate=rate)
        stateful = self.steps.stateful_random_ops()
        if stateful:
            self.job.ctx.log.warning(
                LogEvent.INEXACT_OPS_FOUND,
                ops=stateful,
                why="these random ops keep their state inside TensorFlow, and no checkpoint "
                "contains it; after a resume they draw different numbers",
                instead="use keras.random with a SeedGenerator, or tf.random.stateless_*",
            )
        if not self.steps.eager:
            choice = ProgramChoice(self.model, self.steps, live, self.feed, self.job.ctx.log)
            before = None if stored is None else stored.plain["program"]
            self.steps.use(choice.choose(self.plan.jit_compile, before))
        self.job.ctx.status.tick()
        return live

    def _start(self, epoch: int) -> None:
        """Start a new training, and save its state before the first step."""
        self.feed.start()
        self.exit.begin()
        self.phase.record_start(self.feed.describe())
        if self.state.epoch_begun:
            self.feed.begin_epoch(epoch)
        # This first save preserves the untrained weights over a crash.
        self.phase.commit(self.phase.hold(epoch, 0, Stage.STEP), "start")
        if any(appends_rows(c) for c in self.callbacks.all.callbacks):
            self.job.writer.wait()

    def _rehearse(self) -> None:
        if isinstance(self.feed, ArrayFeed):
            data = self.feed.data
            self.steps.rehearse(data.batch(data.indices(0, 0, 1)[0]))
        else:
            self.steps.rehearse()

    def _restore(self, stored: Stored, *, finished: bool) -> None:
        started = time.perf_counter()
        self.job.ctx.status.activity = "restoring"
        self.state.restore(stored, self.phase.log, epochs=self.plan.epochs, finished=finished)
        stored.release()
        self.phase.resumed(
            stored.checkpoint,
            stored.progress,
            seconds=time.perf_counter() - started,
            data=self.feed.how_resumed(),
        )

    # -- the loop --------------------------------------------------------------------------

    def _train(self, epoch: int, batch: int) -> None:
        self.ended_at = epoch
        while epoch < self.plan.epochs:
            if not self.state.epoch_begun:
                self._begin_epoch(epoch)
            batch = self._train_epoch(epoch, batch)
            self._end_epoch(epoch, batch)
            epoch, batch = epoch + 1, 0
            self.ended_at = epoch
            if self.model.stop_training:
                break

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
            step = executed(batch, group) if group else batch
            if group:
                self.callbacks.all.on_train_batch_begin(step)
                self.callbacks.require_same_compile()
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

    def _call(self, epoch: int, batch: int, group: int) -> int:
        """Train some batches and record their logs. Return their number, 0 if the data ran out.

        `group` is the number of batches between two calls of the callbacks' hooks, or 0 for any.
        """
        done = 0
        while True:
            most = self.steps.most
            limit = min(group - done, most) if group else self.phase.steps_allowed(most)
            started = time.perf_counter()
            lot = self.feed.take(batch + done, limit)
            if lot is None:
                return done
            result = self.steps.run(lot)
            seconds = time.perf_counter() - started
            rows = result.rows()
            self.phase.record_steps(epoch, batch + done, rows, result.own_losses(), seconds)
            self.state.logs = rows[-1]
            done += len(rows)
            if done >= group or not self.feed.within(batch + done):
                return done

    def _end_epoch(self, epoch: int, batch: int) -> None:
        self.phase.at_border(epoch, batch)
        epoch_logs: Logs = models.epoch_logs(self.model, self.state.logs)
        if self.validation.due(self.model, epoch):
            # Hold the state before validation. A stop during validation saves it and leaves.
            held = self.phase.hold(epoch, batch, Stage.STEP)
            self.job.ctx.status.activity = "validating"
            self.job.ctx.status.tick()
            with self.steps.summing():  # what races in a step would race here too
                results = self.validation.run(self.callbacks.all)
            if self.job.ctx.stop.reason is not None:
                self.phase.leave(held)
            epoch_logs.update({f"val_{k}": v for k, v in results.items()})
        self.callbacks.all.on_epoch_end(epoch, epoch_logs)
        self.state.training_logs = models.pythonify_logs(epoch_logs)
        self.state.epoch_begun = self.state.epoch_trained = False
        self.phase.record_epoch(epoch, self.state.training_logs)
        if self.callbacks.view is not None:
            self.callbacks.view.update()
        if epoch + 1 < self.plan.epochs and not self.model.stop_training:
            self.callbacks.require_same_compile()
            self.phase.at_epoch_end(epoch)

    def _finish(self) -> None:
        model = self.model
        if isinstance(model.optimizer, keras.optimizers.Optimizer) and self.plan.epochs > 0:
            model.optimizer.finalize_variable_values(model.trainable_weights)
        self.validation.close()
        self.callbacks.all.on_train_end(logs=self.state.training_logs)
        self.callbacks.remove_probe()
        if self.callbacks.view is not None:
            self.callbacks.view.close()
        self.phase.commit_now(self.phase.hold(self.ended_at, 0, Stage.END), "end")
        self.phase.log.info(LogEvent.PHASE_FINISHED, step=self.phase.step, name=self.plan.name)

    def _history(self) -> History:
        history: History = self.model.history
        return history

"""The batch loop behind `fit`: Keras' order of events, our own cursor, saves and restores."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, nullcontext
from typing import Any

import keras
from keras.callbacks import CallbackList

from outlast.job.log_events import LogEvent
from outlast.training.data import arrays, make_feed
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import executed
from outlast.training.fit_arguments import Plan, require_same_compile
from outlast.training.fit_state import FitState, Logs
from outlast.training.history import History
from outlast.training.job import TrainingJob
from outlast.training.keras_internals import callbacks as keras_callbacks
from outlast.training.keras_internals import models
from outlast.training.live_plot import MetricsView
from outlast.training.loaded_checkpoint import Stored, choose_seed
from outlast.training.phase import Phase
from outlast.training.state.callback_files import appends_rows, going_on
from outlast.training.state.callback_state import CallbackStates, files_before, wants_batches
from outlast.training.state.hook_effects import HookEffects
from outlast.training.state.live_variables import LiveState, learning_rate_of
from outlast.training.step.compiled_steps import CompiledSteps
from outlast.training.step.program_choice import ProgramChoice
from outlast.training.validation import Validation
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.snapshot import Progress


class Trainer:
    """One `fit` call; `run` is the way through it, top to bottom."""

    def __init__(self, model: Any, plan: Plan, job: TrainingJob) -> None:
        self.model = model
        self.compiled = models.compiled_as(model)
        self.plan = plan
        self.job = job
        self.resumed_at: Progress | None = None

    def run(self) -> History:
        index = self.job.enter_phase(self.plan.name)
        try:
            # What is made on the way is closed also when an error, which the script may catch,
            # ends the training.
            with self.job.ctx.stop.read_by_loop(), ExitStack() as made:
                return self._run(index, made)
        except BaseException as error:
            self.job.fail_phase(error)
            raise

    def _run(self, index: int, made: ExitStack) -> History:
        stored = Stored.of(self.job, index, "fit")
        self.job.make_deterministic()
        seed = choose_seed(stored, self.plan.seed)
        self._prepare_data(seed, made)
        self._prepare_callbacks(made)
        rate = learning_rate_of(self.model)
        over = self._is_over(stored)
        # Keras traces the step after these hooks, so what they set on the model counts.
        effects = HookEffects(self.model)
        before = None if stored is None else stored.plain.get("hook_effects")
        if over and not (before or {}).get("replaced"):
            keras_callbacks.history_of(self.callbacks).on_train_begin()
        else:
            self.model.stop_training = False
            self._begin(stored)
        shown = (self.probe, self.progress_bar)  # they belong to the process
        own = [c for c in self.callbacks.callbacks if c not in shown]
        states = CallbackStates(own)
        # Keras' BackupAndRestore has its say here, in a job that is new.
        first = models.initial_epoch(self.model) or self.plan.initial_epoch
        begun = stored is None and first < self.plan.epochs
        if begun:
            self._begin_first_epoch(first, effects)
        elif before is not None:
            effects.apply(before)
        changed = effects.changes()
        live = self._compile(stored, rate)
        self.state = FitState(
            self.model,
            live,
            self.feed,
            self.validation,
            states,
            str(self.steps.program),
            # An eager step reads the attributes each time, so the present ones are stored.
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
            self._restore(stored, finished=over)
            if self.steps.eager and before is not None:
                effects.apply(before)  # again, after the step that has made the variables
        if over:
            self.phase.log.info(LogEvent.PHASE_SKIPPED, name=self.plan.name)
            return self._history()
        if self.resumed_at is None:
            self._start(first)
            self._train(first, 0)
        else:
            self._train(self.resumed_at.epoch, self.resumed_at.batch)
        return self._finish()

    def _begin_first_epoch(self, epoch: int, effects: HookEffects) -> None:
        before = effects.changes()["replaced"]
        self.model.reset_metrics()
        self.callbacks.on_epoch_begin(epoch)
        self._require_same_compile()
        replaced = sorted(set(effects.changes()["replaced"]) - set(before))
        if replaced:
            self.job.ctx.log.warning(
                LogEvent.INEXACT_HOOK_FOUND,
                attributes=replaced,
                why="an on_epoch_begin has replaced these objects of the model, which no "
                "checkpoint can hold",
                instead="replace them in on_train_begin, which a resume calls again",
            )

    def _begin(self, stored: Stored | None) -> None:
        written = []
        if stored is not None:
            written = files_before(stored.plain["callbacks"], self.callbacks.callbacks)
        again = going_on(self.callbacks, written, self.job.ctx.log)
        with nullcontext() if stored is None else again:
            self.callbacks.on_train_begin()
        self._require_same_compile()

    def _require_same_compile(self) -> None:
        """Called after the hooks that come before a step, and before a save."""
        require_same_compile(self.model, self.compiled)

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
        """Trace the step, so that every variable exists, and find where each one is kept."""
        self.job.ctx.status.activity = "compiling"
        if isinstance(self.feed, ArrayFeed):
            data = self.feed.data
            size = data.fixed_batch
            self.steps = CompiledSteps(self.model, data.tensors, size, spec=data.spec(size))
        else:
            self.steps = CompiledSteps(self.model, spec=self.feed.source.spec)
        self.steps.trace()
        live = LiveState(self.model, self.steps.touched_variables(), learning_rate=rate)
        stateful = self.steps.stateful_random_ops()
        if stateful:
            self.job.ctx.log.warning(
                LogEvent.INEXACT_OPS_FOUND,
                ops=stateful,
                why="these random ops keep their state inside TensorFlow, where no checkpoint "
                "reaches: after a resume they draw other numbers",
                instead="use keras.random with a SeedGenerator, or tf.random.stateless_*",
            )
        if not self.steps.eager:
            choice = ProgramChoice(self.model, self.steps, live, self.feed, self.job.ctx.log)
            before = None if stored is None else stored.plain["program"]
            self.steps.use(choice.choose(self.plan.jit_compile, before))
        self.job.ctx.status.tick()
        return live

    def _prepare_callbacks(self, made: ExitStack) -> None:
        plan = self.plan
        verbose = plan.verbose
        if verbose == "auto":
            verbose = 1 if sys.stdout.isatty() else 2
        if isinstance(plan.callbacks, CallbackList):
            self.callbacks = plan.callbacks
        else:
            given = keras.tree.flatten(plan.callbacks) if plan.callbacks else []
            if not any(isinstance(c, keras.callbacks.History) for c in given):
                given.append(History())
            self.callbacks = CallbackList(
                given,
                add_history=True,
                add_progbar=verbose != 0,
                verbose=verbose,
                epochs=plan.epochs,
                steps=self.feed.steps,
                model=self.model,
            )
        history = keras_callbacks.history_of(self.callbacks)
        self.progress_bar = keras_callbacks.progress_bar_of(self.callbacks)
        self.view = MetricsView(self.job.ctx, history) if plan.view_metrics else None
        # Keras may hand batch-end hooks to a thread pool; a snapshot must see them done.
        keras_callbacks.wait_for_hooks(self.callbacks)
        self.every_batch = any(wants_batches(c) for c in self.callbacks.callbacks)
        self.probe = self.validation.add_probe(self.callbacks, self.job.ctx)
        made.callback(self._remove_probe)

    def _start(self, epoch: int) -> None:
        """Begin a training anew, and save it as it is before its first step."""
        self.feed.start()
        self.phase.record_start(self.feed.describe())
        if self.state.epoch_begun:
            self.feed.begin_epoch(epoch)
        # With this first save even the untrained weights are the same after any death.
        self.phase.commit(self.phase.hold(epoch, 0, Stage.STEP), "start")
        if any(appends_rows(c) for c in self.callbacks.callbacks):
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
        self.state.restore(stored, self.phase.log, finished=finished)
        stored.release()
        self.resumed_at = stored.progress
        self.phase.resumed(
            stored.checkpoint,
            stored.progress,
            seconds=time.perf_counter() - started,
            data=self.feed.how_resumed(),
        )

    # -- the loop --------------------------------------------------------------------------

    def _train(self, epoch: int, batch: int) -> None:
        self.ended_at = epoch
        if self.resumed_at and self.state.epoch_begun and self.progress_bar is not None:
            # The epoch's begin was counted by the attempt that began it; only the progress bar,
            # which lives in this process, has to be begun again.
            self.progress_bar.on_epoch_begin(epoch)
            self.progress_bar.seen = batch
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
        self.callbacks.on_epoch_begin(epoch)
        self.feed.begin_epoch(epoch)
        self.state.epoch_begun = True

    def _train_epoch(self, epoch: int, batch: int) -> int:
        """Train the rest of an epoch from `batch` on; return how many batches it had."""
        # A stop_training set before an epoch's first batch ends it after that, as in Keras.
        one_by_one = self.every_batch or self.model.stop_training
        group = self.feed.group if one_by_one else 0
        while not self.state.epoch_trained and not (batch and self.model.stop_training):
            self._require_same_compile()
            self.phase.at_border(epoch, batch)
            if not self.feed.more(batch):
                break
            step = executed(batch, group) if group else batch
            if group:
                self.callbacks.on_train_batch_begin(step)
                self._require_same_compile()
            done = self._call(epoch, batch, group)
            if done == 0:
                continue
            batch += done
            if group:
                self.callbacks.on_train_batch_end(step + group - 1, self.state.logs)
            elif self.progress_bar is not None:
                self.progress_bar.on_train_batch_end(batch - 1, self.state.logs)
        self.state.epoch_trained = True
        return batch

    def _call(self, epoch: int, batch: int, group: int) -> int:
        """Train a lot of batches, note their logs, return how many; 0 when the data ran out.

        group: how many batches the callbacks want between two of their hooks; 0 for any number.
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
            # The state before validation is held: a stop on the way saves it and leaves.
            held = self.phase.hold(epoch, batch, Stage.STEP)
            self.job.ctx.status.activity = "validating"
            self.job.ctx.status.tick()
            results = self.validation.run(self.callbacks)
            if self.job.ctx.stop.reason is not None:
                self.phase.leave(held)
            epoch_logs.update({f"val_{k}": v for k, v in results.items()})
        self.callbacks.on_epoch_end(epoch, epoch_logs)
        self.state.training_logs = models.pythonify_logs(epoch_logs)
        self.state.epoch_begun = self.state.epoch_trained = False
        self.phase.record_epoch(epoch, self.state.training_logs)
        if self.view is not None:
            self.view.update()
        if epoch + 1 < self.plan.epochs and not self.model.stop_training:
            self._require_same_compile()
            self.phase.at_epoch_end(epoch)

    def _finish(self) -> History:
        model = self.model
        if isinstance(model.optimizer, keras.optimizers.Optimizer) and self.plan.epochs > 0:
            model.optimizer.finalize_variable_values(model.trainable_weights)
        self.validation.close()
        self.callbacks.on_train_end(logs=self.state.training_logs)
        self._remove_probe()
        if self.view is not None:
            self.view.close()
        self.phase.commit_now(self.phase.hold(self.ended_at, 0, Stage.END), "end")
        self.phase.log.info(LogEvent.PHASE_FINISHED, step=self.phase.step, name=self.plan.name)
        return self._history()

    def _remove_probe(self) -> None:
        if self.probe in self.callbacks.callbacks:
            self.callbacks.callbacks.remove(self.probe)

    def _history(self) -> History:
        history: History = self.model.history
        return history

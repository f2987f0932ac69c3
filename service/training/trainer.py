"""The batch loop behind `fit`: Keras' order of events, our own cursor, saves and restores."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import keras
from keras.callbacks import CallbackList
from keras.src.utils.python_utils import pythonify_logs

from checkpoints.layout import MODEL_FILE, STATE_FILE, WEIGHTS_FILE, CheckpointId, Stage
from checkpoints.snapshot import Progress, Snapshot
from service.training import arrays, document, generators
from service.training.array_feed import ArrayFeed
from service.training.callbacks import CallbackStates, wants_batches
from service.training.data import make_feed
from service.training.errors import StateMismatch
from service.training.history import History
from service.training.job import TrainingJob
from service.training.permutation import Shuffle
from service.training.phase import Phase
from service.training.state import LiveState
from service.training.step import CompiledSteps, StepLogs
from service.training.validation import Validation
from service.training.view import MetricsView

Logs = dict[str, Any]

MAX_STEPS_A_CALL = 1000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the user asked `fit` for."""

    x: Any
    y: Any
    sample_weight: Any
    batch_size: int | None
    epochs: int
    initial_epoch: int
    verbose: str | int
    callbacks: Any
    validation_split: float
    validation_data: Any
    validation_steps: int | None
    validation_batch_size: int | None
    validation_freq: int | list[int]
    shuffle: Shuffle
    class_weight: dict[int, float] | None
    steps_per_epoch: int | None
    max_queue_size: int
    view_metrics: bool
    seed: int | None
    name: str | None


class Trainer:
    """One `fit` call; `run` is the way through it, top to bottom."""

    def __init__(self, model: Any, plan: Plan, job: TrainingJob) -> None:
        self.model = model
        self.plan = plan
        self.job = job
        self.logs: Logs = {}
        self.training_logs: Logs | None = None
        self.epoch_begun = False
        self.epoch_trained = False

    def run(self) -> History:
        stop = self.job.ctx.stop
        watched, stop.watched = stop.watched, True
        try:
            return self._run()
        finally:
            stop.watched = watched

    def _run(self) -> History:
        index = self.job.enter_phase(self.plan.name)
        source = self.job.checkpoint_of(index)
        self.job.make_deterministic()
        self._prepare_data(index, source)
        self._compile()
        self._prepare_callbacks()
        self.phase = Phase(
            self.job,
            index,
            self.plan.name,
            epochs=self.plan.epochs,
            steps_per_epoch=self.feed.steps,
            seed=self.seed,
            take=self._take,
        )
        if self.progress is not None and self._is_finished(self.progress):
            return self._give_back()
        self.model.stop_training = False
        self.callbacks.on_train_begin()
        self.states = CallbackStates(self._own_callbacks())
        self._train(*self._start())
        return self._finish()

    # -- before the first step -------------------------------------------------------------

    def _prepare_data(self, index: int, source: CheckpointId | None) -> None:
        self.loaded = self.job.load(source) if source is not None else None
        self.source = source
        self.progress = self.loaded.manifest.progress if self.loaded is not None else None
        plan = self.plan
        train = (plan.x, plan.y, plan.sample_weight)
        validation_data = plan.validation_data
        if plan.validation_split and validation_data is None:
            train, validation_data = arrays.split_validation(*train, plan.validation_split)
        self.seed = self._seed()
        self.feed = make_feed(
            *train,
            batch_size=plan.batch_size,
            steps_per_epoch=plan.steps_per_epoch,
            class_weight=plan.class_weight,
            shuffle=plan.shuffle,
            seed=self.seed,
            max_queue_size=plan.max_queue_size,
        )
        for doubt in self.feed.doubts():
            self.job.ctx.log.warning("data_not_exact", why=doubt)
        self.validation = Validation(
            self.model,
            validation_data,
            batch_size=plan.validation_batch_size or plan.batch_size,
            steps=plan.validation_steps,
            freq=plan.validation_freq,
        )

    def _seed(self) -> int:
        stored = self.progress.seed if self.progress is not None else None
        if stored is None:
            return generators.derived_seed() if self.plan.seed is None else self.plan.seed
        if self.plan.seed is not None and self.plan.seed != stored:
            raise StateMismatch(
                checkpoint=str(self.source),
                what="seed",
                problem=f"the checkpoint's is {stored}, the script's {self.plan.seed}",
            )
        return stored

    def _compile(self) -> None:
        """Trace the step, so that every variable exists, and find where each one is kept."""
        self.job.ctx.status.activity = "compiling"
        if isinstance(self.feed, ArrayFeed):
            data = self.feed.data
            self.steps = CompiledSteps(self.model, data.tensors, data.fixed_batch)
        else:
            self.steps = CompiledSteps(self.model, spec=self.feed.source.spec)
        self.steps.trace()
        self.live = LiveState(self.model, self.steps.touched_variables())
        stateful = self.steps.stateful_random_ops()
        if stateful:
            self.job.ctx.log.warning(
                "not_exact",
                ops=stateful,
                why="these random ops keep their state inside TensorFlow, where no checkpoint "
                "reaches: after a resume they draw other numbers",
                instead="use keras.random with a SeedGenerator, or tf.random.stateless_*",
            )
        self._model_document = _describe_model(self.model)
        self.job.ctx.status.tick()

    def _prepare_callbacks(self) -> None:
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
        history = self.callbacks._history
        self.view = (
            MetricsView(self.job.ctx, history)
            if plan.view_metrics and isinstance(history, History)
            else None
        )
        # Keras may hand batch-end hooks to a thread pool; a snapshot must see them done.
        self.callbacks._async_train = False
        self.every_batch = any(wants_batches(c) for c in self.callbacks.callbacks)
        self.probe = self.validation.add_probe(self.callbacks, self.job.ctx)

    def _own_callbacks(self) -> list[Any]:
        return [c for c in self.callbacks.callbacks if c is not self.probe]

    def _is_finished(self, progress: Progress) -> bool:
        if not progress.finished:
            return False
        if self.job.newest is not None and self.job.newest.progress.phase > progress.phase:
            return True
        # More epochs than last time, and nothing has come after: the phase goes on from its end.
        assert self.loaded is not None
        plain, _ = self._plain()
        return progress.epoch >= self.plan.epochs or bool(plain["stop_training"])

    # -- restore ---------------------------------------------------------------------------

    def _start(self) -> tuple[int, int]:
        if self.progress is None:
            self.feed.start()
            self.phase.record_start(
                {
                    "epochs": self.plan.epochs,
                    "steps": self.feed.steps,
                    "seed": self.seed,
                    **self.feed.describe(),
                }
            )
            # With this first save even the untrained weights are the same after any death.
            self.phase.commit(self.phase.hold(self.plan.initial_epoch, 0, Stage.STEP), "start")
            return self.plan.initial_epoch, 0
        self._restore()
        return self.progress.epoch, self.progress.batch

    def _plain(self) -> tuple[dict[str, Any], dict[str, Any]]:
        assert self.loaded is not None
        return document.unpack(self.loaded.files[STATE_FILE], f"{self.source}/{STATE_FILE}")

    def _restore(self, *, finished: bool = False) -> None:
        """Put the whole state back; nothing is changed when any of it does not fit.

        finished: the phase takes no more data; what it took counts as taken all the same.
        """
        assert self.loaded is not None
        assert self.progress is not None
        started = time.perf_counter()
        plain, variables = self._plain()
        weights = self.loaded.files[WEIGHTS_FILE]
        self._check_data(plain["data"])
        self.live.check(str(self.source), weights, variables, plain["model"])
        self.live.assign(weights, variables)
        lost = self.states.restore(plain["callbacks"])
        if lost:
            self.phase.log.warning(
                "callback_state_unused", callbacks=lost, why="the script has no such callback there"
            )
        self.logs = plain["logs"]
        self.training_logs = plain["training_logs"]
        self.model.stop_training = plain["stop_training"]
        self.epoch_begun = plain["epoch_begun"]
        self.epoch_trained = plain["epoch_trained"]
        if finished:
            self.feed.skip(plain["feed"])
        else:
            self.feed.restore(plain["feed"])
            self._replay_validation(plain["validations"])
        generators.restore(plain["generators"])
        self.phase.step = self.progress.step
        self.phase.resumed(self.progress.epoch, self.progress.batch)
        self.loaded = None  # the arrays are in the model now
        self.phase.log.info(
            "resumed",
            checkpoint=str(self.source),
            step=self.progress.step,
            epoch=self.progress.epoch,
            batch=self.progress.batch,
            seconds=round(time.perf_counter() - started, 3),
            data=self.feed.how_resumed(),
        )

    def _replay_validation(self, runs: int) -> None:
        seconds = self.validation.restore(runs)
        if seconds is not None:
            self.phase.log.info("validation_data_replayed", runs=runs, seconds=round(seconds, 3))

    def _check_data(self, stored: dict[str, Any]) -> None:
        assert self.progress is not None
        mine = self._data_facts()
        if stored == mine:
            return
        field = next(k for k in mine if stored.get(k) != mine[k])
        problem = f"the checkpoint has {stored.get(field)!r}, the script {mine[field]!r}"
        if self.progress.batch > 0:
            raise StateMismatch(checkpoint=str(self.source), what=field, problem=problem)
        self.phase.log.warning("data_changed", field=field, difference=problem)

    def _data_facts(self) -> dict[str, Any]:
        return self.feed.describe()

    def _give_back(self) -> History:
        """Return a finished phase's result: its final state and its complete history."""
        for callback in self.callbacks.callbacks:
            if isinstance(callback, keras.callbacks.History):
                callback.on_train_begin()
        self.states = CallbackStates(self._own_callbacks())
        self._restore(finished=True)
        self.phase.log.info("phase_finished_before", name=self.plan.name)
        history: History = self.model.history
        return history

    # -- the loop --------------------------------------------------------------------------

    def _train(self, epoch: int, batch: int) -> None:
        self.ended_at = epoch
        while epoch < self.plan.epochs:
            self._begin_epoch(epoch)
            batch = self._train_epoch(epoch, batch)
            self._end_epoch(epoch, batch)
            epoch, batch = epoch + 1, 0
            self.ended_at = epoch
            if self.model.stop_training:
                break

    def _begin_epoch(self, epoch: int) -> None:
        if not self.epoch_begun:
            self.model.reset_metrics()
            self.callbacks.on_epoch_begin(epoch)
            self.feed.begin_epoch(epoch)
            self.epoch_begun = True
        elif self.callbacks._progbar is not None:
            # Its begin was counted by the attempt that began it; only the progress bar, which
            # lives in this process, has to be begun again.
            self.callbacks._progbar.on_epoch_begin(epoch)

    def _train_epoch(self, epoch: int, batch: int) -> int:
        """Train the rest of an epoch from `batch` on; return how many batches it had."""
        # A stop_training set before an epoch's first batch ends it after that, as in Keras.
        one_by_one = self.every_batch or self.model.stop_training
        group = self.model.steps_per_execution if one_by_one else 0
        while not self.epoch_trained and not (batch and self.model.stop_training):
            self.phase.at_border(epoch, batch)
            if not self.feed.more(batch):
                break
            if group:
                self.callbacks.on_train_batch_begin(batch)
            done = self._call(epoch, batch, group)
            if done == 0:
                break
            batch += done
            if group:
                self.callbacks.on_train_batch_end(batch - done + group - 1, self.logs)
            elif self.callbacks._progbar is not None:
                self.callbacks._progbar.on_train_batch_end(batch - 1, self.logs)
        self.epoch_trained = True
        return batch

    def _call(self, epoch: int, batch: int, group: int) -> int:
        """Train a lot of batches, note their logs, return how many; 0 when the data ran out.

        group: how many batches the callbacks want between two of their hooks; 0 for any number.
        """
        done = 0
        while True:
            limit = group - done if group else self.phase.steps_allowed(MAX_STEPS_A_CALL)
            lot = self.feed.take(batch + done, limit)
            if lot is None:
                return done
            started = time.perf_counter()
            result = self.steps.run(lot)
            seconds = time.perf_counter() - started
            rows = _rows(result)
            own = [None] * len(rows) if result.own_loss is None else result.own_loss.tolist()
            self.phase.record_steps(epoch, batch + done, rows, own, seconds)
            self.logs = rows[-1]
            done += len(rows)
            if done >= group or not self.feed.within(batch + done):
                return done

    def _end_epoch(self, epoch: int, batch: int) -> None:
        self.phase.at_border(epoch, batch)
        epoch_logs: Logs = dict(self.model._get_metrics_result_or_logs(self.logs))
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
        self.training_logs = pythonify_logs(epoch_logs)
        self.epoch_begun = self.epoch_trained = False
        self.phase.record_epoch(epoch, self.training_logs)
        if self.view is not None:
            self.view.update()
        if epoch + 1 < self.plan.epochs and not self.model.stop_training:
            self.phase.at_epoch_end(epoch)

    def _finish(self) -> History:
        model = self.model
        if isinstance(model.optimizer, keras.optimizers.Optimizer) and self.plan.epochs > 0:
            model.optimizer.finalize_variable_values(model.trainable_weights)
        self.validation.close()
        self.feed.close()
        self.callbacks.on_train_end(logs=self.training_logs)
        self.callbacks.callbacks.remove(self.probe)
        if self.view is not None:
            self.view.close()
        self.phase.commit_now(self.phase.hold(self.ended_at, 0, Stage.END), "end")
        self.phase.log.info("phase_finished", step=self.phase.step, name=self.plan.name)
        history: History = model.history
        return history

    # -- snapshot --------------------------------------------------------------------------

    def _take(self, progress: Progress) -> Snapshot:
        plain = {
            "model": self.live.describe(),
            "data": self._data_facts(),
            "callbacks": self.states.capture(),
            "logs": self.logs,
            "training_logs": self.training_logs,
            "stop_training": bool(self.model.stop_training),
            "epoch_begun": self.epoch_begun,
            "generators": generators.capture(),
            "feed": self.feed.state(),
            "epoch_trained": self.epoch_trained,
            "validations": self.validation.runs,
        }
        state = document.pack(plain, self.live.others())
        logs = self.logs if progress.stage == Stage.STEP else self.training_logs or {}
        return Snapshot(
            progress=progress,
            files={WEIGHTS_FILE: self.live.weights(), STATE_FILE: state},
            documents=self._model_document,
            metrics={k: v for k, v in logs.items() if isinstance(v, float)},
        )


def _rows(result: StepLogs) -> list[Logs]:
    """Return one dict of python values a step, as `pythonify_logs` makes them."""
    columns = {
        name: values.tolist() if values.ndim == 1 and values.dtype.kind in "fiub" else values
        for name, values in result.values.items()
    }
    as_floats = {
        name: [float(v) for v in column] if isinstance(column, list) else list(column)
        for name, column in columns.items()
    }
    names = list(as_floats)
    return [dict(zip(names, row, strict=True)) for row in zip(*as_floats.values(), strict=True)]


def _describe_model(model: Any) -> dict[str, bytes]:
    """Return `model.json`, from which `export` makes a `.keras` file; nothing if Keras cannot."""
    try:
        config = keras.saving.serialize_keras_object(model)
        text = json.dumps({"config": config, "keras_version": keras.__version__})
    except Exception:  # noqa: BLE001 - a user's get_config may raise anything; export tells
        return {}
    return {MODEL_FILE: text.encode()}

"""`Loop`: a hand-written training loop with a job behind it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import tensorflow as tf
from keras import tree
from keras.src.trainers.data_adapters import data_adapter_utils

from checkpoints.errors import UsageError
from checkpoints.layout import STATE_FILE, Stage
from checkpoints.snapshot import Progress, Snapshot
from service.training import arguments, document, generators
from service.training.array_feed import ArrayFeed
from service.training.data import make_feed
from service.training.feed import Feed
from service.training.history import History
from service.training.job import TrainingJob
from service.training.loop_state import LoopState, Plain, build_compiled
from service.training.means import Means
from service.training.permutation import Shuffle
from service.training.phase import Phase
from service.training.source import Plain as PlainData
from service.training.stored import Stored, choose_seed


class Loop:
    """Hands out the batches that are not trained yet; saves, stops and resumes as `fit` does.

    ::

        loop = Loop({"model": model}, (x, y), batch_size=64, epochs=5, job_dir="job")
        for x_batch, y_batch in loop:
            loss, accuracy = model.train_on_batch(x_batch, y_batch)
            loop.log(loss=loss, accuracy=accuracy)
        print(loop.history.history["loss"])

    Args:
        state: everything that the step changes, by name: models, optimizers, metrics, variables,
            random generators, objects with get_state/set_state; or one model.
        data: arrays, a tuple of them, or any data that `fit` takes; None for a loop without data,
            which then hands out step numbers (needs steps_per_epoch).
        batch_size, epochs, initial_epoch, steps_per_epoch, shuffle, seed, max_queue_size, job_dir,
            save_every, keep, name: as in `fit`.
        verbose: 0 for silence, else a line an epoch. Default "auto": a line.

    Attributes: epoch, batch (of the batch handed out, from 0), step (steps done); history, a
    `keras.callbacks.History` of the epochs' means; last_batch (whether the epoch ends after this
    batch, where that is known).

    Raises: as `fit`. Leaving the loop by `break` leaves the phase unfinished; `stop()` ends it.
    """

    def __init__(
        self,
        state: Any,
        data: Any = None,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        shuffle: Shuffle = True,
        seed: int | None = None,
        max_queue_size: int = 10,
        verbose: str | int = "auto",
        job_dir: str | Path | None = None,
        save_every: str | int | None = None,
        keep: str | int | None = None,
        name: str | None = None,
    ) -> None:
        arguments.check(
            batch_size=batch_size,
            epochs=epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
            seed=seed,
            max_queue_size=max_queue_size,
            verbose=verbose,
            save_every=save_every,
            keep=keep,
            name=name,
        )
        seed = None if seed is None else int(seed)
        if data is None and not steps_per_epoch:
            raise UsageError(
                field="steps_per_epoch",
                problem="a loop without data has no end of its own",
                hint="Say how many steps an epoch has.",
            )
        self.epochs = epochs
        self.epoch = initial_epoch
        self.batch = 0
        self.history = History()
        self.history.on_train_begin()
        self._given = state
        self._data = data
        self._name = name
        self._verbose = verbose
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "steps_per_epoch": steps_per_epoch,
            "shuffle": shuffle,
            "max_queue_size": max_queue_size,
        }
        self._seed = seed
        self._means = Means()
        self._step_logs: dict[str, float] = {}
        self._weight = 1.0
        self._stopped = False
        self._begun = False  # the epoch
        self._trained = False  # the epoch's batches
        self._job = TrainingJob.current(job_dir, save_every=save_every, keep=keep, seed=seed)

    @property
    def step(self) -> int:
        return self._phase.step

    @property
    def last_batch(self) -> bool:
        return not self._feed.within(self.batch + 1)

    def log(self, **values: Any) -> None:
        """Record values of this step; the epoch's means are weighted by batch size."""
        for key, value in values.items():
            self._step_logs[key] = float(value)

    def log_epoch(self, **values: Any) -> None:
        """Record values of this epoch (a validation loss, say); call it at its last batch."""
        self._means.fix({key: float(value) for key, value in values.items()})

    def stop(self) -> None:
        """End the training after this step."""
        self._stopped = True

    def __iter__(self) -> Iterator[Any]:
        stop = self._job.ctx.stop
        watched, stop.watched = stop.watched, True
        try:
            finished = self._start()
            with closing(self._feed):
                if not finished:
                    yield from self._epochs()
                    self._phase.commit_now(self._phase.hold(self.epoch, 0, Stage.END), "end")
                    self._phase.log.info("phase_finished", step=self._phase.step, name=self._name)
        finally:
            stop.watched = watched

    # -- start and restore -----------------------------------------------------------------

    def _start(self) -> bool:
        """Prepare and restore; return whether the phase was finished before."""
        index = self._job.enter_phase(self._name)
        stored = Stored.of(self._job, index)
        self._job.make_deterministic()
        seed = choose_seed(stored, self._seed)
        self._feed = self._make_feed(seed)
        for doubt in self._feed.doubts():
            self._job.ctx.log.warning("data_not_exact", why=doubt)
        self._state = LoopState(self._given)
        self.history.params = {
            "epochs": self.epochs,
            "steps": self._feed.steps,
            "verbose": self._verbose,
        }
        self._phase = Phase(
            self._job,
            index,
            self._name,
            epochs=self.epochs,
            steps_per_epoch=self._feed.steps,
            seed=seed,
            take=self._take,
        )
        if stored is not None:
            over = stored.is_over(self._job, self.epochs, stopped=stored.plain["stopped"])
            self._restore(stored, finished=over)
            return over
        self._feed.start()
        self._phase.record_start(self._feed.describe())
        self._phase.commit(self._phase.hold(self.epoch, 0, Stage.STEP), "start")
        return False

    def _make_feed(self, seed: int) -> ArrayFeed | Feed:
        data = self._data if self._data is not None else _step_numbers()
        x, y, weight = (
            data_adapter_utils.unpack_x_y_sample_weight(data)
            if isinstance(data, tuple | list)
            else (data, None, None)
        )
        feed = make_feed(x, y, weight, class_weight=None, seed=seed, **self._options)
        if self._data is not None:
            build_compiled(self._given, feed.spec)
        return feed

    def _restore(self, stored: Stored, *, finished: bool) -> None:
        started = time.perf_counter()
        plain = stored.plain
        stored.check_data(self._phase, self._feed.describe())
        self._state.restore(stored.checkpoint, stored.files, stored.variables, plain["state"])
        if finished:
            self._feed.skip(plain["feed"])
        else:
            self._feed.restore(plain["feed"])
        self._means.restore(plain["means"])
        self.history.history.update(plain["history"])
        self.history.epoch.extend(plain["epochs"])
        self._stopped = plain["stopped"]
        self._begun, self._trained = plain["begun"], plain["trained"]
        generators.restore(plain["generators"])
        stored.release()
        self.epoch, self.batch = stored.progress.epoch, stored.progress.batch
        self._phase.resumed(
            stored.checkpoint,
            stored.progress,
            seconds=time.perf_counter() - started,
            data=self._feed.how_resumed(),
        )

    # -- the loop --------------------------------------------------------------------------

    def _epochs(self) -> Iterator[Any]:
        while self.epoch < self.epochs and not (self._stopped and not self._begun):
            if not self._begun:
                self._feed.begin_epoch(self.epoch)
                self._means.clear()
                self._begun, self.batch = True, 0
            if not self._trained:
                yield from self._batches()
                self._trained = True
            self._phase.at_border(self.epoch, self.batch)
            self._end_epoch()

    def _batches(self) -> Iterator[Any]:
        while not (self.batch and self._stopped):
            self._phase.at_border(self.epoch, self.batch)
            if not self._feed.more(self.batch):
                return
            lot = self._feed.take(self.batch, 1)
            if lot is None:
                return
            batch = self._feed.batch_of(lot)
            self._step_logs = {}
            started = time.perf_counter()
            yield batch if self._data is not None else self._phase.step
            self._means.add(self._step_logs, _size_of(batch))
            seconds = time.perf_counter() - started
            self._phase.record_steps(self.epoch, self.batch, [self._step_logs], [None], seconds)
            self.batch += 1

    def _end_epoch(self) -> None:
        logs = self._means.result()
        self.history.epoch.append(self.epoch)
        for key, value in logs.items():
            self.history.history.setdefault(key, []).append(value)
        self._phase.record_epoch(self.epoch, logs)
        if self._verbose != 0:
            values = " - ".join(f"{k}: {v:.4f}" for k, v in logs.items())
            sys.stdout.write(f"Epoch {self.epoch + 1}/{self.epochs} - {values}\n")
            sys.stdout.flush()
        self._begun = self._trained = False
        ended = self.epoch
        self.epoch, self.batch = self.epoch + 1, 0
        if self.epoch < self.epochs and not self._stopped:
            self._phase.at_epoch_end(ended)

    def _take(self, progress: Progress) -> Snapshot:
        plain: Plain = {
            "state": self._state.plain(),
            "data": self._feed.describe(),
            "feed": self._feed.state(),
            "means": self._means.state(),
            "history": self.history.history,
            "epochs": self.history.epoch,
            "stopped": self._stopped,
            "begun": self._begun,
            "trained": self._trained,
            "generators": generators.capture(),
        }
        state = document.pack(plain, self._state.others())
        ended = progress.stage != Stage.STEP
        newest = {k: v[-1] for k, v in self.history.history.items()} if ended else self._step_logs
        return Snapshot(
            progress=progress,
            files={**self._state.files(), STATE_FILE: state},
            metrics=dict(newest),
        )


class _StepNumbers:
    """Endless data for a loop without any: the position is all there is to it."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> _StepNumbers:
        return self

    def __next__(self) -> tuple[Any]:
        self.at += 1
        return (tf.fill([1], self.at),)

    def get_state(self) -> PlainData:
        return {"at": self.at}

    def set_state(self, state: PlainData) -> None:
        self.at = state["at"]


def _step_numbers() -> _StepNumbers:
    return _StepNumbers()


def _size_of(batch: Any) -> float:
    for leaf in tree.flatten(batch):
        shape = getattr(leaf, "shape", None)
        if shape is not None and len(shape) > 0 and shape[0] is not None:
            return float(shape[0])
    return 1.0

"""`Loop`: a hand-written training loop with a job behind it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.callbacks import ProgbarLogger

from outlast.job.log_events import LogEvent
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.loop_data import knows_its_end, make_loop_feed, samples_of
from outlast.training.data.permutation import Shuffle
from outlast.training.errors import NotSupported
from outlast.training.fit_arguments import checked
from outlast.training.fit_state import describe_model
from outlast.training.history import History
from outlast.training.job import TrainingJob
from outlast.training.loaded_checkpoint import Stored, choose_seed
from outlast.training.phase import Phase
from outlast.training.state import document, random_state
from outlast.training.state.epoch_means import Means
from outlast.training.state.loop_state import LoopState, Plain
from outlast.training.state.trees import NotPlain
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import STATE_FILE, Stage
from outlast_checkpoints.format.snapshot import Progress, Snapshot


class Loop:
    """Hands out the batches that are not trained yet; saves, stops and resumes as `fit` does.

    ::

        loop = Loop({"model": model}, (x, y), batch_size=64, epochs=5, job_dir="job")
        for x_batch, y_batch in loop:
            loss, accuracy = model.train_on_batch(x_batch, y_batch)
            loop.log(loss=loss, accuracy=accuracy)
        print(loop.history.history["loss"])

    The body is one step: what it does and logs is saved as a whole or done again. When the phase
    was finished before, the state and the history are put back and the body is not run.

    Args:
        state: everything that the step changes, by name: models, optimizers, metrics, layers,
            variables, random generators, numpy arrays, lists and dicts of plain data or of parts,
            objects with get_state/set_state or state_dict/load_state_dict; or one model. Models
            and optimizers have to be built, arrays and containers to be changed in place.
        data: x, (x,), (x, y) or (x, y, sample_weight) of arrays, or any other data that `fit`
            takes; batches come as tensors, in the structure that was given. None for a loop
            without data, which hands out the numbers of the steps, from 0 (needs
            steps_per_epoch; -1 goes on until `stop`).
        batch_size, epochs, initial_epoch, steps_per_epoch, shuffle, seed, max_queue_size, job_dir,
            save_every, keep, name: as in `fit`.
        verbose: 0 for silence, 1 for a progress bar, 2 for a line an epoch. Default "auto": a bar
            on a terminal, else a line.

    Attributes:
        epochs: as given. epoch, batch: of the batch handed out, from 0. step: steps done before.
        history: a `keras.callbacks.History` of the epochs' means, complete over all attempts.

    Raises: as `fit`. Leaving the loop by `break`, or by an error, leaves the phase unfinished, with
    the checkpoints that it has; `stop` ends it.
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
        given = checked(
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
        epochs, initial_epoch = given["epochs"], given["initial_epoch"]
        batch_size, steps_per_epoch = given["batch_size"], given["steps_per_epoch"]
        save_every, keep, verbose = given["save_every"], given["keep"], given["verbose"]
        if data is None and not steps_per_epoch:
            raise UsageError(
                field="steps_per_epoch",
                problem="a loop without data has no end of its own",
                hint="Say how many steps an epoch has, or -1 to go on until loop.stop().",
            )
        most = keras.config.max_epochs()
        self.epochs: int = min(epochs, int(most)) if most else epochs
        self.epoch: int = initial_epoch
        self.batch = 0
        self.history = History()
        self.history.on_train_begin()
        self._state = LoopState(state)
        self._data = data
        self._name = given["name"]
        terminal = 1 if sys.stdout.isatty() else 2
        self._verbose = terminal if verbose == "auto" else verbose
        self._steps_per_epoch = steps_per_epoch or None  # 0 means None, as in Keras
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "shuffle": given["shuffle"],
            "max_queue_size": given["max_queue_size"],
        }
        self._seed: int | None = given["seed"]
        self._means = Means()
        self._logs: dict[str, float] = {}  # of the step
        self._iterated = False
        self._in_body = False
        self._stopped = False
        self._begun = False  # the epoch
        self._trained = False  # the epoch's batches
        self._job = TrainingJob.current(job_dir, save_every=save_every, keep=keep, seed=self._seed)

    # -- for the body ----------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self._phase.step if self._iterated else 0

    @property
    def last_batch(self) -> bool:
        """Whether the epoch ends after this batch.

        Raises `UsageError` when that is not known: data of unknown size without steps_per_epoch.
        """
        self._require_body("last_batch")
        if self._stopped:
            return True
        if not knows_its_end(self._feed, self._steps_per_epoch):
            raise UsageError(
                field="last_batch",
                problem="nobody knows how many batches the data has",
                hint="Give steps_per_epoch.",
            )
        return not self._feed.within(self.batch + 1)

    def log(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Record numbers of this step; an epoch's means are weighted by batch size."""
        self._require_body("log")
        self._logs.update(_numbers({**(values or {}), **more}))

    def log_epoch(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Record numbers of this epoch as they are (a validation loss, say)."""
        self._require_body("log_epoch")
        self._means.fix(_numbers({**(values or {}), **more}))

    def stop(self) -> None:
        """End the training after this step; the epoch ends with it."""
        self._stopped = True

    def _require_body(self, field: str) -> None:
        if not self._in_body:
            raise UsageError(
                field=field,
                problem="it was used outside of the loop's body",
                hint="Use it between `for batch in loop:` and the next batch.",
            )

    # -- from top to bottom ----------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        if self._iterated:
            raise UsageError(
                field="Loop", problem="it was begun before", hint="Make a new one for each phase."
            )
        index = self._job.enter_phase(self._name)
        try:
            with self._job.ctx.stop.read_by_loop():
                yield from self._run(index)
        except GeneratorExit:
            self._job.leave_phase(index)
            raise
        except BaseException as error:
            self._job.fail_phase(error)
            raise
        finally:
            self._in_body = False

    def _run(self, index: int) -> Iterator[Any]:
        stored = Stored.of(self._job, index, "Loop")
        self._job.make_deterministic()
        seed = choose_seed(stored, self._seed)
        self._feed = make_loop_feed(
            self._data, seed=seed, steps_per_epoch=self._steps_per_epoch, **self._options
        )
        with closing(self._feed):
            self._prepare(index, seed)
            if stored is not None:
                over = stored.is_over(self._job, self.epochs, stopped=stored.plain["stopped"])
                self._restore(stored, finished=over)
                if over:
                    self._phase.log.info(LogEvent.PHASE_SKIPPED, name=self._name)
                    return
            else:
                self._feed.start()
                self._phase.record_start(self._feed.describe())
                self._phase.commit(self._phase.hold(self.epoch, 0, Stage.STEP), "start")
            yield from self._epochs()
            self._phase.commit_now(self._phase.hold(self.epoch, 0, Stage.END), "end")
            self._phase.log.info(LogEvent.PHASE_FINISHED, step=self._phase.step, name=self._name)

    def _prepare(self, index: int, seed: int) -> None:
        for doubt in self._feed.doubts():
            self._job.ctx.log.warning(LogEvent.INEXACT_DATA_FOUND, why=doubt)
        self._state.require_built(self._feed.spec)
        model = self._state.alone
        self._documents = {} if model is None else describe_model(model)
        self.history.params = {
            "verbose": self._verbose,
            "epochs": self.epochs,
            "steps": self._feed.steps,
        }
        self._bar = ProgbarLogger() if self._verbose else None
        if self._bar is not None:
            self._bar.set_params(self.history.params)
        self._phase = Phase(
            self._job,
            index,
            self._name,
            epochs=self.epochs,
            steps_per_epoch=self._feed.steps,
            seed=seed,
            take=self._take,
        )
        self._iterated = True

    def _restore(self, stored: Stored, *, finished: bool) -> None:
        started = time.perf_counter()
        plain = stored.plain
        stored.check_data(self._phase.log, self._feed.describe())
        with stored.naming_versions():
            self._state.restore(stored.checkpoint, stored.files, stored.variables, plain["state"])
        if finished:
            self._feed.skip(plain["feed"])
        else:
            self._feed.restore(plain["feed"])
        self._logs = plain["logs"]
        self._means.restore(plain["means"])
        self.history.history.update(plain["history"])
        self.history.epoch.extend(plain["epochs"])
        self.history.epochs_of.update(plain["epochs_of"])
        self._stopped = plain["stopped"]
        self._begun, self._trained = plain["begun"], plain["trained"]
        random_state.restore(plain["generators"])
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
        while self.epoch < self.epochs and (self._begun or not self._stopped):
            if self._bar is not None:
                self._bar.on_epoch_begin(self.epoch)
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
                continue
            batch = self._batch_of(lot)
            self._logs = {}
            started = time.perf_counter()
            self._in_body = True
            yield batch
            self._in_body = False
            self._means.add(self._logs, samples_of(batch))
            seconds = time.perf_counter() - started
            self._phase.record_steps(self.epoch, self.batch, [self._logs], [None], seconds)
            if self._bar is not None:
                self._bar.on_train_batch_end(self.batch, self._means.result())
            self.batch += 1

    def _batch_of(self, lot: Any) -> Any:
        if self._data is None:
            return self._phase.step
        batch = self._feed.batch_of(lot)
        alone = isinstance(self._data, tuple | list) and len(self._data) == 1
        # Keras knows (x,) and x as the same; whoever gave a tuple of one unpacks one.
        return (batch,) if alone and isinstance(self._feed, ArrayFeed) else batch

    def _end_epoch(self) -> None:
        logs = self._means.result()
        self.history.epoch.append(self.epoch)
        for key, value in logs.items():
            self.history.history.setdefault(key, []).append(value)
            self.history.epochs_of.setdefault(key, []).append(self.epoch)
        self._phase.record_epoch(self.epoch, logs)
        if self._bar is not None:
            self._bar.on_epoch_end(self.epoch, logs)
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
            "logs": self._logs,
            "means": self._means.state(),
            "history": self.history.history,
            "epochs": self.history.epoch,
            "epochs_of": self.history.epochs_of,
            "stopped": self._stopped,
            "begun": self._begun,
            "trained": self._trained,
            "generators": random_state.capture(),
        }
        try:
            state = document.pack(plain, self._state.others())
        except NotPlain as error:
            raise NotSupported(
                field="state",
                problem=f"it has become what cannot be stored: {error}",
                hint="Keep numbers, strings, arrays, lists and dicts of them.",
            ) from None
        ended = progress.stage != Stage.STEP
        newest = {k: v[-1] for k, v in self.history.history.items()} if ended else self._logs
        return Snapshot(
            progress=progress,
            files={**self._state.files(), STATE_FILE: state},
            documents=self._documents,
            metrics=dict(newest),
        )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in values.items():
        try:
            found[name] = float(np.asarray(value).item())
        except (TypeError, ValueError):
            raise UsageError(
                field="log",
                problem=f"{name!r} is {value!r}, not a number",
                hint="Log numbers, arrays and tensors of one element.",
            ) from None
    return found

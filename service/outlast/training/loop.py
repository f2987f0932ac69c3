"""`Loop`: checkpoints, resume and preemption handling for a hand-written training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
from keras.callbacks import ProgbarLogger

from outlast.job import standard_streams
from outlast.job.log_events import LogEvent
from outlast.training.call_site import CallSite, is_of_script
from outlast.training.data.fingerprint import of_data
from outlast.training.data.loop_data import make_loop_feed, samples_of
from outlast.training.data.permutation import Shuffle
from outlast.training.data.tfdata import contents_of
from outlast.training.data_warnings import name_doubts, remove_locks
from outlast.training.errors import NotSupported
from outlast.training.fit_arguments import checked
from outlast.training.fit_state import describe_model
from outlast.training.history import History
from outlast.training.job import TrainingJob
from outlast.training.loaded_checkpoint import LoadedCheckpoint, choose_seed
from outlast.training.loop_body import LoopBody
from outlast.training.phase import Phase
from outlast.training.phase_choice import choose_phase
from outlast.training.phase_exit import PhaseExit
from outlast.training.phase_order import Call
from outlast.training.state import document, raised_error, random_state, trees
from outlast.training.state.body_state import BodyState, frame_of_body
from outlast.training.state.kept_files import put_back_files
from outlast.training.state.loop_state import LoopState, Plain
from outlast.training.state.unsaved_warnings import UnsavedWarnings
from outlast.training.step.races import ordered_functions
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import STATE_FILE, Stage
from outlast_checkpoints.format.snapshot import Progress, Snapshot


class Loop(LoopBody):
    """Yields the batches that are not trained yet. It saves, stops and resumes as `fit` does.

    The loop's body is one step. A checkpoint contains all of a step or nothing of it, so a resume
    repeats an unfinished step as a whole. If the phase has finished before, the loop restores the
    state and the history, and does not run the body.

    `stop` ends a phase early. `break` ends it as soon as another phase begins. An error in the body
    leaves the phase unfinished: it keeps its checkpoints and can be resumed.

    Args:
        state: Everything that a step changes: one model, or a dict from names to parts. A part is
            a model, optimizer, metric, layer, variable, random generator or numpy array, a list
            or dict of plain data or of parts, or an object. An object is saved by its
            `get_state`/`set_state` or `state_dict`/`load_state_dict`, or by its attributes if
            your script defines its class. Models and optimizers must be built. Change arrays and
            containers in place.
        data: `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)` of arrays of shape
            `(samples, ...)`, or any other data that `fit` accepts. The loop yields batches of
            tensors in the same structure. With `None`, the default, it yields the number of the
            step, from 0, and `steps_per_epoch` is required.
        batch_size: Integer or `None`. Samples per step, for arrays, as in `fit`.
        epochs: Integer. Number of the epoch at which training ends, counted over all attempts.
            Defaults to 1.
        initial_epoch: Integer. Epoch at which a new training begins, from 0. Defaults to 0.
        steps_per_epoch: Integer or `None`. Batches per epoch. Defaults to one pass over the data.
            -1 continues until the data ends, or without data until `stop`.
        shuffle: Boolean or `"batch"`, as in `fit`. Defaults to `True`.
        seed: Integer from 0 to 2**63 - 1, or `None`. Seeds the order of samples, as in `fit`.
        max_queue_size: Integer. Batches of a generator or iterator to read ahead. Defaults to 10.
        verbose: `"auto"`, 0, 1 or 2. 0 is silent, 1 a progress bar, 2 one line per epoch.
            `"auto"`, the default, is 1 on a terminal and 2 elsewhere.
        job_dir: Folder or URL of the job, as in `fit`.
        save_every: When to save a checkpoint, as in `fit`. Defaults to `"auto"`.
        keep: Checkpoints to keep, as in `fit`. Defaults to `"last:3"`.
        name: Name of the phase, as in `fit`.

    Attributes:
        epochs: Integer, as given.
        epoch: Integer. Epoch of the current batch, from 0.
        batch: Integer. Index of the current batch in its epoch, from 0.
        history: `outlast.training.history.History` of the epochs of all attempts. A value is the
            mean of what `log` recorded, or what `log_epoch` recorded.

    Raises:
        UsageError: an argument is invalid, or a part of the state is not built.
        NotSupported: a part of the state cannot be stored.
        StateMismatch: the checkpoint does not match the state or the data. The message names the
            first difference; the state is unchanged.
        PhaseMismatch: the finished phase does not match this loop. It is a `StateMismatch`.
        PhaseUnfinished: this loop would begin a new phase while another one is unfinished.
        PhaseLeft: an earlier attempt left the phase by an error whose class no longer exists.
        JobBusy: another process runs this job.
        Diverged: the logged "loss" became NaN or infinite, and the job's `on_nan` is "stop".
        StateSaved: a stop was requested, and the state is saved. This is a `SystemExit` with
            code 75.
        KeyboardInterrupt: you pressed Ctrl-C in a script that runs without `outlast run`. The
            state is saved first.

    Example:

    ```python
    loop = Loop({"model": model}, (x, y), batch_size=64, epochs=5, job_dir="my-job")
    for x_batch, y_batch in loop:
        loss, accuracy = model.train_on_batch(x_batch, y_batch)
        loop.log(loss=loss, accuracy=accuracy)
    print(loop.history.history["loss"])
    ```
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
        super().__init__()
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
        epochs, steps_per_epoch = given["epochs"], given["steps_per_epoch"]
        save_every, keep, verbose = given["save_every"], given["keep"], given["verbose"]
        if data is None and not steps_per_epoch:
            raise UsageError(
                field="steps_per_epoch",
                problem="a loop without data needs it, to know where an epoch ends",
                hint="Give the number of steps per epoch, or -1 to continue until loop.stop().",
            )
        most = keras.config.max_epochs()
        self.epochs: int = min(epochs, int(most)) if most else epochs
        self.epoch: int = given["initial_epoch"]
        self.batch = 0
        self.history = History()
        self.history.on_train_begin()
        self._state = LoopState(state)
        self._data = data
        self._name = given["name"]
        terminal = 1 if standard_streams.is_terminal() else 2
        self._verbose = terminal if verbose == "auto" else verbose
        self._steps_per_epoch = steps_per_epoch or None  # 0 means None, as in Keras
        kept = ("batch_size", "shuffle", "max_queue_size")
        self._options: dict[str, Any] = {key: given[key] for key in kept}
        self._seed: int | None = given["seed"]
        self._unsaved = UnsavedWarnings()
        self._begun = self._trained = False  # whether the epoch has begun; its batches are trained
        self._consumers: list[Any] = []
        options: Any = {"save_every": save_every, "keep": keep, "seed": self._seed}
        self._job = TrainingJob.current(job_dir, name=self._name, **options)
        self._site = CallSite.here()

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches that are not trained yet. A loop can be iterated once."""
        if self._iterated:
            raise UsageError(
                field="Loop", problem="it was iterated before", hint="Create one Loop per phase."
            )
        self._exit = PhaseExit(self._job)
        try:
            with self._job.ctx.stop.read_by_loop(), ordered_functions(self._job.reporter.log):
                yield from self._run()
        except BaseException as error:
            self._exit.note(error)
            raise
        finally:
            self._in_body = False

    def _run(self) -> Iterator[Any]:
        arguments = {key: self._options[key] for key in ("batch_size", "shuffle")}
        arguments |= {"data": of_data(self._data), "steps_per_epoch": self._steps_per_epoch}
        parts = self._state.fingerprint(describe_model)
        self._fingerprint = {"parts": parts, "arguments": arguments}
        index, stored = choose_phase(
            self._job,
            Call(self._name, self._site, self._state.trained()),
            "Loop",
            fingerprint=self._fingerprint,
            contents=lambda: contents_of({"data": self._data}),
            epochs=self.epochs,
            seed=self._seed,
        )
        self._exit.enter(index)
        self._job.make_deterministic()
        seed = choose_seed(stored, self._seed)
        self._feed = make_loop_feed(
            self._data, seed=seed, steps_per_epoch=self._steps_per_epoch, **self._options
        )
        with closing(self._feed):
            name_doubts(self._job, stored, self._feed)
            self._prepare(index, seed)
            if stored is not None:
                left = stored.plain["left"]
                remove_locks(self._job, self._feed)
                over = stored.is_over(self._job, self.epochs)
                self._restore(stored, finished=over)
                self._exit.began = True
                if over:
                    self._phase.log.info(LogEvent.PHASE_SKIPPED, name=self._name)
                    self._exit.repeat(left)
                    return
            else:
                self._exit.begin()
                self._feed.start()
                self._phase.record_start(self._feed.describe())
                self._phase.commit(self._phase.hold(self.epoch, 0, Stage.STEP), "start")
            try:
                self._body = BodyState(frame_of_body(is_of_script), self._state.known)
                with self._state.parts.watching():
                    yield from self._epochs()
                self._phase.commit_now(self._phase.hold(self.epoch, 0, Stage.END), "end")
            except GeneratorExit:
                if raised_error.left_by_break(self._consumers):
                    self._exit.hold(self._phase, self.epoch, raised_error.BREAK)
                raise
            except Exception as error:
                self._exit.hold(self._phase, self.epoch, raised_error.describe(error))
                raise
            self._exit.end()
            self._phase.log.info(LogEvent.PHASE_FINISHED, step=self._phase.step, name=self._name)

    def _prepare(self, index: int, seed: int) -> None:
        self._state.require_built(self._feed.spec)
        self._constant = trees.Constant(self._fingerprint)
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
            place=self._job.order.known[index][1],
            epochs=self.epochs,
            steps_per_epoch=self._feed.steps,
            seed=seed,
            take=self._take,
        )
        self._iterated = True

    def _restore(self, stored: LoadedCheckpoint, *, finished: bool) -> None:
        started, plain = time.perf_counter(), stored.plain
        if not finished:
            log, feed = self._phase.log, self._feed
            stored.check_data(log, feed.describe())
            stored.check_contents(log, {"data": feed.content()}, {"data": feed.drawn()})
        with stored.naming_versions():
            self._state.check(stored.checkpoint, stored.files, stored.variables, plain["state"])
        if not finished:
            stored.check_fingerprint(self._phase.log, self._fingerprint)
        self._state.restore(stored.files, stored.variables, plain["state"])
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
        random_state.restore_all(plain["generators"])
        put_back_files(stored.files, self._job.ctx)
        stored.release()
        self.epoch, self.batch = stored.progress.epoch, stored.progress.batch
        self._phase.resumed(
            stored.checkpoint,
            stored.progress,
            seconds=time.perf_counter() - started,
            data=self._feed.how_resumed(),
        )
        name_doubts(self._job, None, self._feed)

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
            self._phase.at_border(self.epoch, self.batch, trained=True)
            self._end_epoch()

    def _batches(self) -> Iterator[Any]:
        while not (self.batch and self._stopped):
            self._phase.at_border(self.epoch, self.batch)
            if not self._feed.more(self.batch):
                return
            taken = self._feed.take(self.batch, 1)
            if taken is None:
                continue
            if self._phase.left_out():
                self._phase.leave_out(self.epoch, self.batch, 1)
                self.batch += 1
                continue
            batch = self._batch_of(taken)
            self._logs = {}
            started = time.perf_counter()
            self._in_body, self._consumers = True, raised_error.consumers()
            yield self._state.shared(batch)
            self._in_body = False
            self._body.look(self.epoch, self._job.reporter.log)
            self._means.add(self._logs, samples_of(batch))
            seconds = time.perf_counter() - started
            self._phase.record_steps(self.epoch, self.batch, [self._logs], [None], seconds)
            if self._bar is not None:
                self._bar.on_train_batch_end(self.batch, self._means.result())
            self.batch += 1

    def _end_epoch(self) -> None:
        logs = self._means.result()
        self.history.epoch.append(self.epoch)
        for key, value in logs.items():
            self.history.history.setdefault(key, []).append(value)
            self.history.epochs_of.setdefault(key, []).append(self.epoch)
        name_doubts(self._job, None, self._feed)
        self._phase.record_epoch(self.epoch, logs)
        if self._bar is not None:
            self._bar.on_epoch_end(self.epoch, logs)
        self._begun = self._trained = False
        self.epoch, self.batch = self.epoch + 1, 0
        if self.epoch < self.epochs and not self._stopped:
            self._phase.at_epoch_end(self.epoch - 1)

    def _take(self, progress: Progress) -> Snapshot:
        variables = self._state.others()
        plain: Plain = {
            "fingerprint": self._constant,
            "called": self._site.described(),
            "state": self._state.plain(variables),
            "data": self._feed.describe(),
            "contents": {"data": self._feed.content()},
            "drawn": {"data": self._feed.drawn()},
            "doubts": self._job.named_doubts,
            "feed": self._feed.state(),
            "logs": self._logs,
            "means": self._means.state(),
            "history": self.history.history,
            "epochs": self.history.epoch,
            "epochs_of": self.history.epochs_of,
            "stopped": self._stopped,
            "left": self._exit.left,
            "begun": self._begun,
            "trained": self._trained,
            "generators": {**random_state.capture_all(), **self._feed.unread()},
        }
        try:
            state = document.pack(plain, variables)
        except trees.NotPlain as error:
            raise NotSupported(
                field="state",
                problem=f"it now contains a value that cannot be stored: {error}",
                hint="Keep only numbers, strings, arrays, and lists and dicts of them.",
            ) from None
        self._unsaved.warn(self._state.unsaved, self._job.reporter.log)
        ended = progress.stage != Stage.STEP
        newest = {k: v[-1] for k, v in self.history.history.items()} if ended else self._logs
        return Snapshot(
            progress=progress,
            files={**self._state.files(), STATE_FILE: state},
            documents=self._documents,
            metrics=dict(newest),
        )

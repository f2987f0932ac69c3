"""Trainings as small scripts that can die and restart; their results are compared byte by byte.

A `Script` is what a user's file does: seed, build, compile, fit. `train` runs it as a process of
its own would (fresh Keras names, fresh seeds, an attempt of its own), in this process, so that a
hundred deaths cost seconds; the acceptance tests kill real processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as tf_context

from outlast import fit
from outlast.attempt import bare, context
from outlast.training import call_site
from outlast.training import job as jobs
from outlast.training.keras_internals import random_streams
from outlast.training.keras_internals.generators import keras_global as keras_global_generator
from outlast.training.phase import Phase
from outlast.training.step.compiled_steps import CompiledSteps, StepLogs
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.background_writer import Writer

SEED = 7
TESTS = Path(__file__).parents[1]
# Comparisons with Keras need the same kernels on both sides.
tf.config.experimental.enable_op_determinism()


# The tests simulate several processes in loops of their own, from one file.
_of_script = call_site.is_of_script
mock.patch.object(
    call_site,
    "is_of_script",
    lambda code: _of_script(code) and not code.co_filename.startswith(str(TESTS)),
).start()
mock.patch.object(call_site, "main_file", return_value=None).start()


class Death(BaseException):
    """A simulated death of the process: no `except Exception` catches it."""


@dataclass
class Script:
    """A user's script: `build` returns a compiled model, `arguments` those of `fit`.

    callbacks: makes the list anew, as a new process does.
    """

    build: Callable[[], Any]
    arguments: dict[str, Any]
    callbacks: Callable[[], list[Any]] = list

    def but(self, **changes: Any) -> Script:
        """Return the same script with other arguments for `fit`."""
        return Script(self.build, {**self.arguments, **changes}, self.callbacks)

    def with_build(self, build: Callable[[], Any]) -> Script:
        return Script(build, self.arguments, self.callbacks)

    def with_callbacks(self, callbacks: Callable[[], list[Any]]) -> Script:
        return Script(self.build, self.arguments, callbacks)


@dataclass
class End:
    """Everything that a training produces, as bytes and plain values."""

    state: dict[str, bytes]
    history: dict[str, list[float]]
    epoch: list[int]
    params: dict[str, Any]
    generators: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    callbacks: list[Any] = field(default_factory=list)
    model: Any = None


def begin_process(seed: int = SEED) -> None:
    """Put this process into the state of one that has just started a script with seeds."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    random_streams.forget()


def all_state(model: Any) -> dict[str, bytes]:
    """Return the bytes of every variable of a model: weights, seeds, metrics, optimizer."""
    found: dict[str, bytes] = {}
    optimizer = getattr(model, "optimizer", None)  # a model that was never compiled has none
    for group, variables in (
        ("model", model.variables),
        ("metrics", model.metrics_variables),
        ("optimizer", [] if optimizer is None else optimizer.variables),
    ):
        for i, variable in enumerate(variables):
            tensor = getattr(variable, "_value", variable).read_value()
            value = np.asarray(tensor)
            found[f"{group}/{i}/{variable.path}"] = (
                str((value.dtype, value.shape)).encode() + value.tobytes()
            )
    return found


def generators() -> dict[str, Any]:
    """Return the states of python's, numpy's, TensorFlow's and Keras' global generators."""
    keras_global = keras_global_generator()
    return {
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "tensorflow": tf_context.context()._rng.getstate(),
        "keras": None if keras_global is None else np.asarray(keras_global.state).tolist(),
    }


def end_of(model: Any, history: Any, callbacks: list[Any]) -> End:
    return End(
        state=all_state(model),
        history=history.history,
        epoch=history.epoch,
        params=history.params,
        generators=generators(),
        callbacks=callbacks,
        model=model,
    )


def keras_fit(script: Script) -> End:
    """Run the script with Keras' `Model.fit`."""
    begin_process()
    model = script.build()
    callbacks = script.callbacks()
    arguments = {"verbose": 0, **script.arguments}
    for name in ("seed", "save_every", "keep", "name"):
        arguments.pop(name, None)
    history = model.fit(callbacks=callbacks, **arguments)
    return end_of(model, history, callbacks)


def train(script: Script, folder: Path, **changes: Any) -> End:
    """Run the script with our `fit`, as one process, to its end or its death."""
    begin_process()
    model = script.build()
    callbacks = script.callbacks()
    arguments = {"verbose": 0, **script.arguments, **changes}
    with process(folder):
        history = fit(model, callbacks=callbacks, job_dir=folder, **arguments)
        end = end_of(model, history, callbacks)
    end.rows = rows(folder)
    return end


@contextmanager
def process(folder: Path) -> Iterator[None]:
    """Simulate one process. However the block ends, the attempt is over afterwards."""
    code = 1
    try:
        with _patient():
            yield
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
        raise
    finally:
        ctx = context.current()
        if ctx is not None:
            job = jobs._jobs.pop(id(ctx), None)
            if job is not None:
                job.writer.wait()
                job.history.close()
            bare.close_bare(ctx, code)


@contextmanager
def _patient() -> Iterator[None]:
    """Make the loop wait for every due save, however slow the machine is.

    Without this a save is put off while an earlier one is being written, and which checkpoint a
    death leaves behind would be a matter of speed.
    """

    def busy(self: Writer) -> bool:
        if self._thread is not None:
            self._thread.join()
        return False

    with mock.patch.object(Writer, "busy", property(busy)):
        yield


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the job's history rows without their times."""
    found = list(HistoryReader(open_storage(folder)).rows())
    return [{k: v for k, v in row.items() if k != "time"} for row in found]


@contextmanager
def dying_at(step: int) -> Iterator[None]:
    """Die right after the step, before its hooks are called or anything is saved."""
    record = Phase.record_steps

    def record_and_die(self: Phase, *args: Any) -> None:
        record(self, *args)
        if self.step >= step:
            raise Death(step)

    with mock.patch.object(Phase, "record_steps", record_and_die):
        yield


@contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """Ask for a stop right after the step, as SIGTERM's handler does."""
    record = Phase.record_steps

    def record_and_ask(self: Phase, *args: Any) -> None:
        record(self, *args)
        if self.step >= step:
            self.job.ctx.stop.request("SIGTERM")

    with mock.patch.object(Phase, "record_steps", record_and_ask):
        yield


@contextmanager
def steps_per_call(sizes: Callable[[int], int]) -> Iterator[list[int]]:
    """Force the number of steps per compiled call to at most `sizes(step)`.

    Yields the list of how many steps each call took.
    """
    taken: list[int] = []
    run = CompiledSteps.run

    def allowed(self: Phase, limit: int) -> int:
        return max(1, self._cadence.steps_until_due(self.step, min(limit, sizes(self.step))))

    def run_and_note(self: CompiledSteps, batches: Any) -> StepLogs:
        logs = run(self, batches)
        taken.append(len(logs.rows()))
        return logs

    with (
        mock.patch.object(Phase, "steps_allowed", allowed),
        mock.patch.object(CompiledSteps, "run", run_and_note),
    ):
        yield taken


def first_difference(one: dict[str, bytes], two: dict[str, bytes]) -> str | None:
    """Return the first name whose bytes differ, or None if all are equal."""
    for name in {**one, **two}:
        if one.get(name) != two.get(name):
            return name
    return None


def assert_same_end(one: End, two: End, *, rows: bool = True) -> None:
    """Assert that two trainings ended with the same bytes everywhere."""
    assert first_difference(one.state, two.state) is None
    assert repr(one.history) == repr(two.history)
    assert list(one.history) == list(two.history)
    assert one.epoch == two.epoch
    assert one.params == two.params
    assert one.generators == two.generators
    if rows:
        assert one.rows == two.rows


__all__ = [
    "Death",
    "End",
    "Script",
    "all_state",
    "assert_same_end",
    "begin_process",
    "dying_at",
    "first_difference",
    "generators",
    "keras_fit",
    "process",
    "rows",
    "steps_per_call",
    "stopping_at",
    "train",
]

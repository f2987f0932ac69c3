"""Audits of small trainings: every moment is reached again, and other files stay as they are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from outlast import Loop, fit
from outlast.attempt import context
from outlast.job.events import Audited
from outlast.job.journal import Journal
from outlast.training.errors import StateSaved
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.storage import open_storage
from tests.support import audits, loop_harness
from tests.support.loop_zoo import PROGRAMS
from tests.support.training_harness import Script, begin_process, dying_at, process, train
from tests.support.training_zoo import ARRAYS, TRACED, X, Y, quick

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SAVES = {"save_every": "1,epoch", "keep": "all"}


class Counts(keras.callbacks.Callback):
    """Counts batches, and comes back to its first value now and then, as a patience does."""

    def __init__(self) -> None:
        super().__init__()
        self.wait = 0
        self.seen: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.wait = (self.wait + 1) % 2
        self.seen.append(logs["loss"])


def again(script: Script, folder: Path) -> Callable[[], object]:
    """Return the script as a function that runs it, as `train` does."""

    def run() -> object:
        model = script.build()
        arguments = {"verbose": 0, **script.arguments}
        return fit(model, callbacks=script.callbacks(), job_dir=folder, **arguments)

    return run


def test_every_moment_of_a_fit_is_reached_again(tmp_path: Path) -> None:
    """Also where the checkpoints are of several attempts, as a kill leaves them."""
    script = Script(quick(), {**ARRAYS, "validation_data": (X, Y)}, lambda: [Counts()])
    with pytest.raises(BaseException, match="5"), dying_at(5):
        train(script, tmp_path, **SAVES)
    train(script, tmp_path, **SAVES)
    intervals = audits.intervals(tmp_path)
    kinds = {(one.first.stage, one.last.stage) for one in intervals}
    assert {(Stage.STEP, Stage.STEP), (Stage.STEP, Stage.EPOCH), (Stage.STEP, Stage.END)} <= kinds
    assert {one.last.attempt for one in intervals} == {1, 2}
    for chosen in intervals:
        verdict = audits.audit(again(script, tmp_path), tmp_path, chosen)
        assert verdict.exact, audits.told(verdict)
    journal = [entry.event for entry in Journal(open_storage(tmp_path)).read()]
    assert sum(isinstance(event, Audited) for event in journal) == len(intervals)


@pytest.mark.parametrize("name", ["train_on_batch", "rl"])
def test_every_moment_of_a_loop_is_reached_again(name: str, tmp_path: Path) -> None:
    loop_harness.run(PROGRAMS[name], tmp_path, **SAVES)

    def run() -> object:
        def make(state: Any, data: Any = None, **options: Any) -> Loop:
            return Loop(state, data, job_dir=tmp_path, **{"verbose": 0, **options})

        return PROGRAMS[name](make)

    for chosen in audits.intervals(tmp_path)[:: 1 if name == "train_on_batch" else 4]:
        verdict = audits.audit(run, tmp_path, chosen)
        assert verdict.exact, audits.told(verdict)


@pytest.mark.parametrize("name", ["cnn, normalized and augmented", "own train_step"])
def test_a_traced_training_is_exact(name: str, tmp_path: Path) -> None:
    train(TRACED[name], tmp_path, save_every=2, keep="all")
    for chosen in audits.intervals(tmp_path)[-2:]:
        verdict = audits.audit(again(TRACED[name], tmp_path), tmp_path, chosen)
        assert verdict.exact, audits.told(verdict)


def test_a_training_that_ends_elsewhere_is_said_to(tmp_path: Path) -> None:
    """The repetition never goes beyond the interval, whatever the script does."""
    script = Script(quick(), ARRAYS)
    train(script, tmp_path, **SAVES)
    chosen = audits.intervals(tmp_path)[-2]
    assert chosen.last.step == 6

    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    (early,) = [one for one in audits.intervals(tmp_path) if one.last.step == 2]
    longer = early._replace(last=chosen.last)
    verdict = audits.audit(
        again(script.with_callbacks(lambda: [Stops()]), tmp_path), tmp_path, longer
    )
    first = verdict.differences[0]
    assert (first.part, first.path) == ("progress", "end of the interval")
    assert first.how.startswith("step 6, epoch 1, step, again step 2")


def test_the_files_of_callbacks_stay_as_they_are(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    loggers: list[Any] = []

    def callbacks() -> list[Any]:
        loggers.append(keras.callbacks.CSVLogger(str(made / "log.csv")))
        return [
            loggers[-1],
            keras.callbacks.ModelCheckpoint(
                str(made / "at-{epoch}.weights.h5"), save_weights_only=True
            ),
            keras.callbacks.BackupAndRestore(str(made / "backup"), delete_checkpoint=False),
            keras.callbacks.TensorBoard(str(made / "board"), write_graph=False),
        ]

    script = Script(quick(), {**ARRAYS, "epochs": 3}, callbacks)
    train(script, tmp_path / "job", **SAVES)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in made.rglob("*")}
    assert len(before) > 6
    ends = [one for one in audits.intervals(tmp_path / "job") if one.last.stage is Stage.EPOCH]
    verdict = audits.audit(again(script, tmp_path / "job"), tmp_path / "job", ends[-1])
    loggers[-1].csv_file.close()  # as the end of its process does
    assert verdict.exact, audits.told(verdict)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in made.rglob("*")} == before
    names = {path.name for path in (tmp_path / "job").iterdir()}
    assert names == {"attempts", "checkpoints", "journal", "machine.json", "spec.json"}


class Chance(keras.callbacks.Callback):
    """Scales the weights by numbers that no generator with a state has drawn."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for variable in self.model.trainable_variables:
            variable.assign(variable * np.float32(random.SystemRandom().uniform(0.5, 0.9)))


def test_the_verdict_names_the_row_and_the_journal_the_first_value(tmp_path: Path) -> None:
    script = Script(quick(), ARRAYS, lambda: [Chance()])
    train(script, tmp_path, **SAVES)
    chosen = audits.intervals(tmp_path)[2]
    verdict = audits.audit(again(script, tmp_path), tmp_path, chosen)
    assert verdict.differences[0].part == "weights"
    assert json.loads(audits.told(verdict))[0] == str(chosen)
    event = Journal(open_storage(tmp_path)).read()[-1].event
    assert isinstance(event, Audited)
    assert (event.exact, event.count) == (False, len(verdict.differences))
    assert event.difference == str(verdict.differences[0])
    assert (event.first, event.last) == (str(chosen.first), str(chosen.last))


class StopsInValidation(keras.callbacks.Callback):
    """Asks for a stop in the first validation, once."""

    asked = False

    def on_test_begin(self, logs: Any = None) -> None:
        if not StopsInValidation.asked:
            StopsInValidation.asked = True
            ctx = context.current()
            assert ctx is not None
            ctx.stop.request("SIGTERM")


def test_a_stop_within_a_validation_is_a_moment_of_its_own(tmp_path: Path) -> None:
    arguments = {**ARRAYS, "validation_data": (X, Y)}
    script = Script(quick(), arguments, lambda: [StopsInValidation(), Counts()])
    saves = {"save_every": "2", "keep": "all"}
    with pytest.raises(StateSaved):
        train(script, tmp_path, **saves)
    train(script, tmp_path, **saves)
    chosen = audits.intervals(tmp_path)
    (stopped,) = [one for one in chosen if one.last.step == 3]
    assert stopped.last.stage is Stage.STEP
    (after,) = [one for one in chosen if one.first == stopped.last]
    for one in (stopped, after):
        verdict = audits.audit(again(script, tmp_path), tmp_path, one)
        assert verdict.exact, audits.told(verdict)


def test_a_phase_that_an_error_left_is_audited_to_its_end(tmp_path: Path) -> None:
    class Raises(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.model.optimizer.iterations == 4:
                raise ArithmeticError("pruned")

    def run() -> None:
        options = {"verbose": 0, "job_dir": tmp_path, **SAVES, **ARRAYS}
        with suppress(ArithmeticError):
            fit(quick()(), callbacks=[Raises()], name="pruned", **options)
        fit(quick()(), name="whole", **options)

    with process(tmp_path):
        begin_process()
        run()
    chosen = audits.intervals(tmp_path)
    (left,) = [one for one in chosen if one.last.phase == 0 and one.last.stage is Stage.END]
    for one in (left, chosen[-1]):
        verdict = audits.audit(run, tmp_path, one)
        assert verdict.exact, audits.told(verdict)

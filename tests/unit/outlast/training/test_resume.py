"""A training that crashed at any step and resumed ends as an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import queue
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
from keras import layers

from outlast import fit
from outlast.attempt import context
from outlast.job import heartbeat
from outlast.training.phase import Phase
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.background_writer import Writer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.training_harness import (
    Death,
    End,
    Script,
    assert_same_end,
    begin_process,
    dying_at,
    end_of,
    process,
    rows,
    stopping_at,
    train,
)
from tests.support.training_zoo import ARRAYS, TRACED, Pair, X, Y, own, quick, tiny

PLAIN = Script(quick(), {**ARRAYS, "epochs": 3, "shuffle": True, "validation_data": (X[:5], Y[:5])})
STEPS = 9


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> End:
    return train(PLAIN, tmp_path_factory.mktemp("untouched"))


def ids(folder: Path) -> list[CheckpointId]:
    return CheckpointStore(open_storage(folder)).ids()


@pytest.mark.parametrize("save_every", ["1", "2", "never"])
def test_a_kill_at_each_step_in_turn(tmp_path: Path, untouched: End, save_every: str) -> None:
    """Saving at every step, each attempt advances by one step; otherwise some start over."""
    script = PLAIN.but(save_every=save_every)
    for step in range(1, STEPS + 1):
        with pytest.raises(Death), dying_at(step):
            train(script, tmp_path)
    assert_same_end(untouched, train(script, tmp_path))


def test_a_stop_at_each_step_in_turn_loses_none(tmp_path: Path, untouched: End) -> None:
    script = PLAIN.but(save_every="never")
    for step in range(1, STEPS + 1):
        with pytest.raises(SystemExit) as left, stopping_at(step):
            train(script, tmp_path)
        assert left.value.code == 75
        assert max(ids(tmp_path)).step == step
        assert [row["step"] for row in rows(tmp_path) if row["kind"] == "step"] == [
            *range(1, step + 1)
        ]
    assert_same_end(untouched, train(script, tmp_path))


@pytest.mark.parametrize("hook", ["on_test_begin", "on_test_end", "on_epoch_end", "on_epoch_begin"])
def test_a_kill_in_a_hook(tmp_path: Path, untouched: End, hook: str) -> None:
    calls: queue.SimpleQueue[str] = queue.SimpleQueue()  # a resume restores a list, but no queue

    def die(*args: Any, **kwargs: Any) -> None:
        calls.put(hook)
        if calls.qsize() in (2, 4):
            raise Death(hook)

    class Dying(keras.callbacks.Callback):
        pass

    setattr(Dying, hook, die)
    script = PLAIN.but(save_every="2").with_callbacks(lambda: [Dying()])
    for _ in range(2):
        with pytest.raises(Death):
            train(script, tmp_path)
    resumed = train(script, tmp_path)
    assert_same_end(untouched, resumed)


@pytest.mark.parametrize("save_every", ["2", "auto"])
def test_nothing_is_saved_again_right_after_a_resume(tmp_path: Path, save_every: str) -> None:
    script = PLAIN.but(save_every=save_every)
    with pytest.raises(SystemExit), stopping_at(4):
        train(script, tmp_path)
    with pytest.raises(Death), dying_at(5):
        train(script, tmp_path)
    assert [found for found in ids(tmp_path) if found.attempt == 2] == []


def test_a_finished_training_returns_its_result(tmp_path: Path, untouched: End) -> None:
    train(PLAIN, tmp_path)
    before = ids(tmp_path)
    calls: list[str] = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            calls.append("begin")

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            calls.append("epoch")

    again = train(PLAIN.with_callbacks(lambda: [Watch()]), tmp_path)
    assert_same_end(untouched, again)
    assert calls == []
    assert ids(tmp_path) == before


def test_more_epochs_continue_from_the_end(tmp_path: Path) -> None:
    longer = PLAIN.but(epochs=5)
    whole = train(longer, tmp_path / "whole")
    train(PLAIN, tmp_path / "parts")
    with pytest.raises(Death), dying_at(11):
        train(longer, tmp_path / "parts")
    parts = train(longer, tmp_path / "parts")
    # on_train_end and the phase's own "epochs" were there twice; nothing else differs.
    assert_same_end(whole, parts, rows=False)
    assert [r for r in parts.rows if r["kind"] != "phase"] == [
        r for r in whole.rows if r["kind"] != "phase"
    ]


def test_fewer_epochs_than_done_end_immediately(tmp_path: Path) -> None:
    with pytest.raises(Death), dying_at(8):
        train(PLAIN.but(save_every=1), tmp_path)
    end = train(PLAIN.but(epochs=2), tmp_path)
    assert end.epoch == [0, 1]


def test_two_trainings_with_one_seed_are_equal_and_with_another_are_not(
    tmp_path: Path, untouched: End
) -> None:
    assert_same_end(untouched, train(PLAIN, tmp_path / "a"))
    other = train(PLAIN, tmp_path / "b", seed=1)
    assert other.rows[1:] != untouched.rows[1:]


def test_the_seed_of_samples_is_independent(tmp_path: Path) -> None:
    """`seed=` decides the order of samples and does not affect any generator."""
    seeded = train(PLAIN, tmp_path / "a", seed=5)
    with pytest.raises(Death), dying_at(4):
        train(PLAIN, tmp_path / "b", seed=5, save_every=2)
    assert_same_end(seeded, train(PLAIN, tmp_path / "b", seed=5, save_every=2))
    with pytest.raises(Death), dying_at(4):
        train(PLAIN, tmp_path / "c", seed=5, save_every=2)
    assert_same_end(seeded, train(PLAIN, tmp_path / "c"))


def test_eager_steps_that_create_variables_late_are_resumed(tmp_path: Path) -> None:
    """Two optimizers, the second one built in its first step, which no trace runs beforehand."""
    script = Script(own(Pair, run_eagerly=True), {**ARRAYS, "save_every": 1})
    whole = train(script, tmp_path / "whole")
    for step in (1, 2, 4):
        with pytest.raises(Death), dying_at(step):
            train(script, tmp_path / "parts")
    assert_same_end(whole, train(script, tmp_path / "parts"))


# --- more than one fit in a script ---------------------------------------------------------------


def two_phases(folder: Path, names: tuple[str | None, str | None] = (None, None)) -> End:
    """Warm up a head on a frozen body, then train everything with another optimizer."""
    begin_process()
    body = layers.Dense(5, activation="relu")
    model = keras.Sequential([layers.Input((6,)), body, layers.Dropout(0.2), layers.Dense(3)])
    data: dict[str, Any] = {"x": X, "y": Y, "batch_size": 8, "verbose": 0, "job_dir": folder}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    stop = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=0.001)
    with process(folder):
        body.trainable = False
        model.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"], run_eagerly=True)
        first = fit(model, **data, epochs=2, save_every=2, name=names[0], callbacks=[stop])
        noise = np.random.normal()  # a draw in between
        body.trainable = True
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, run_eagerly=True)
        second = fit(model, **data, epochs=3, initial_epoch=2, name=names[1], callbacks=[stop])
        end = end_of(model, second, [])
    end.history = {"first": [first.history, first.epoch], "second": [second.history, noise]}  # type: ignore[dict-item]
    end.rows = rows(folder)
    return end


@pytest.mark.parametrize("names", [(None, None), ("warm up", "fine tune")])
def test_two_phases_survive_kills_in_both(
    tmp_path: Path, names: tuple[str | None, str | None]
) -> None:
    whole = two_phases(tmp_path / "whole", names)
    folder = tmp_path / "parts"
    for step in (1, 3, 5):  # in the first
        with pytest.raises(Death), dying_at(step):
            two_phases(folder, names)
    with dying_in_phase(1, 1), pytest.raises(Death):
        two_phases(folder, names)
    with dying_in_phase(1, 3), pytest.raises(Death):
        two_phases(folder, names)
    assert_same_end(whole, two_phases(folder, names))
    assert_same_end(whole, two_phases(folder, names))  # both finished


def dying_in_phase(phase: int, step: int) -> Any:
    record = Phase.record_steps

    def record_and_die(self: Phase, *args: Any) -> None:
        record(self, *args)
        if self.index == phase and self.step >= step:
            raise Death(step)

    return mock.patch.object(Phase, "record_steps", record_and_die)


def test_each_finished_phase_keeps_its_end(tmp_path: Path) -> None:
    two_phases(tmp_path)
    ends = [(found.phase, found.stage) for found in ids(tmp_path) if found.stage == Stage.END]
    assert ends == [(0, Stage.END), (1, Stage.END)]


# --- a real process ------------------------------------------------------------------------------

SCRIPT = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from tests.support.training_harness import *
from tests.support.training_zoo import TRACED
from pathlib import Path
script = TRACED["mlp with dropout"].but(save_every=2)
if sys.argv[2] == "die":
    with dying_at(4):
        try:
            train(script, Path(sys.argv[1]))
        except Death:
            os._exit(9)
end = train(script, Path(sys.argv[1]))
import hashlib
print(hashlib.sha256(repr(sorted(end.state.items())).encode()).hexdigest(), end.history)
"""


def test_separate_processes_agree_with_this_one(tmp_path: Path) -> None:
    """The simulated processes of this file behave like real ones."""
    for argument, code in (("die", 9), ("finish", 0)):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "there"), argument],
            cwd=Path(__file__).parents[4],
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
    here = train(TRACED["mlp with dropout"].but(save_every=2), tmp_path / "here")
    digest = hashlib.sha256(repr(sorted(here.state.items())).encode()).hexdigest()
    assert done.stdout.strip() == f"{digest} {here.history}"


# --- one process that goes on after an error, as a notebook does ---------------------------------


class Failing(keras.callbacks.Callback):
    """Fails once, or interrupts once as Ctrl-C does."""

    def __init__(self, error: type[BaseException] | None = ValueError) -> None:
        super().__init__()
        self._error = error

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1 and self._error is not None:
            raise self._error
        if batch == 1:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("error", [ValueError, None])
def test_the_same_call_again_continues_from_the_checkpoint(
    tmp_path: Path,
    untouched: End,
    error: type[BaseException] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin_process()
    model = PLAIN.build()
    arguments = {**PLAIN.arguments, "job_dir": tmp_path, "save_every": 1, "verbose": 0}
    with process(tmp_path):
        with pytest.raises(KeyboardInterrupt if error is None else error) as shown:
            fit(model, callbacks=[Failing(error)], **arguments)
        if error is not None:  # a prompt shows an error, and Ctrl-C needs no such sign
            monkeypatch.setattr(sys, "last_value", shown.value, raising=False)
        random_draws = np.random.normal()
        history = fit(model, **arguments)
        end = end_of(model, history, [])
    assert isinstance(random_draws, float)
    end.rows = rows(tmp_path)
    assert_same_end(untouched, end)
    assert_same_end(untouched, train(PLAIN, tmp_path))  # and so it is for the next process
    assert {found.phase for found in ids(tmp_path)} == {0}
    attempts = [found.attempt for found in ids(tmp_path)]
    assert max(attempts) == 2


def test_an_error_in_the_second_phase_repeats_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_process()
    model = PLAIN.build()
    arguments = {**PLAIN.arguments, "job_dir": tmp_path, "save_every": 1, "verbose": 0}
    with process(tmp_path):
        fit(model, **arguments)
        with pytest.raises(ValueError, match=r"^$") as shown:
            fit(model, callbacks=[Failing()], **arguments)
        monkeypatch.setattr(sys, "last_value", shown.value, raising=False)
        history = fit(model, **arguments)
    assert history.epoch == [0, 1, 2]
    steps = [(row["phase"], row["step"]) for row in rows(tmp_path) if row["kind"] == "step"]
    assert steps == [(phase, step) for phase in (0, 1) for step in range(1, STEPS + 1)]


# --- when it is saved, and what is said ----------------------------------------------------------


def logged(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the log records of an event, from all attempts."""
    found = []
    for path in sorted(folder.glob("attempts/*/log.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in found if record["event"] == event]


def test_a_requested_save_changes_nothing(tmp_path: Path, untouched: End) -> None:
    class Asking(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            current = context.current()
            assert current is not None
            current.stop.save_and_continue = True

    script = PLAIN.but(save_every="never", keep="all").with_callbacks(lambda: [Asking()])
    assert_same_end(untouched, train(script, tmp_path))
    reasons = [record["reason"] for record in logged(tmp_path, "saved")]
    assert reasons == ["start", *["signal"] * STEPS, "end"]


def test_saving_by_time_changes_nothing(tmp_path: Path, untouched: End) -> None:
    assert_same_end(untouched, train(PLAIN.but(save_every="0.001s", keep="all"), tmp_path))
    assert "time" in {record["reason"] for record in logged(tmp_path, "saved")}


@pytest.mark.parametrize(
    ("save_every", "steps"), [("2", [0, 2, 4, 6, 8, 9]), ("epoch", [0, 3, 6, 9]), ("never", [0, 9])]
)
def test_saves_happen_when_they_are_due(tmp_path: Path, save_every: str, steps: list[int]) -> None:
    train(PLAIN.but(save_every=save_every, keep="all"), tmp_path)
    assert [found.step for found in ids(tmp_path)] == steps


def test_a_save_due_during_a_write_follows_it(tmp_path: Path) -> None:
    class Slowly(keras.callbacks.Callback):
        """Delays the save of step 2 until step 7, so the saves due at 4 and 6 must wait."""

        def on_train_begin(self, logs: Any = None) -> None:
            self.step = 0
            Writer.busy = property(lambda writer: 2 < self.step < 7)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.step += 1

    train(PLAIN.but(save_every=2, keep="all").with_callbacks(lambda: [Slowly()]), tmp_path)
    assert [found.step for found in ids(tmp_path)] == [0, 2, 7, 8, 9]
    assert [row["step"] for row in logged(tmp_path, "save_postponed")] == [4]
    beat = heartbeat.read(open_storage(tmp_path), 1)
    assert beat is not None
    assert (beat.saves, beat.saves_postponed) == (5, 1)


def test_an_ignored_learning_rate_is_reported(tmp_path: Path) -> None:
    def build(rate: float) -> Script:
        return PLAIN.with_build(tiny(optimizer=lambda: keras.optimizers.SGD(rate, momentum=0.9)))

    whole = train(build(0.1), tmp_path / "whole")
    with pytest.raises(Death), dying_at(4):
        train(build(0.1), tmp_path / "parts")
    assert_same_end(whole, train(build(0.01), tmp_path / "parts"))
    (record,) = logged(tmp_path / "parts", "learning_rate_kept")
    assert record["level"] == "warning"
    assert "0.01" in record["why"]
    assert logged(tmp_path / "whole", "learning_rate_kept") == []

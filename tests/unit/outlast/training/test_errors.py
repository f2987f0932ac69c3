"""An error from a training, which a script may catch, leaves nothing running."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import keras
import pytest
from keras.callbacks import Callback, CallbackList

from outlast import fit
from outlast.attempt import context
from outlast.training import job as jobs
from tests.support.data_kinds import KINDS
from tests.support.training_harness import Script, assert_same_end, begin_process, process, train


class Failing(Callback):
    """Raises after a number of batches. A resumed one has passed that point."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.after -= 1
        if self.after == 0:
            raise RuntimeError("of the user's own")


@pytest.fixture
def script() -> Script:
    return KINDS["PyDataset threads"].script()


@pytest.mark.parametrize("kind", ["PyDataset threads", "generator endless"])
def test_no_thread_keeps_running(tmp_path: Path, kind: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="of the user's own"):
        train(KINDS[kind].script().with_callbacks(lambda: [Failing(5)]), tmp_path)
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(10)
    assert [thread.name for thread in left if thread.is_alive()] == []


def test_a_write_in_progress_is_finished_when_the_error_is_raised(
    tmp_path: Path, script: Script
) -> None:
    begin_process()
    model = script.build()
    with process(tmp_path):
        with pytest.raises(RuntimeError):
            fit(
                model,
                **script.arguments,
                callbacks=[Failing(5)],
                job_dir=tmp_path,
                save_every=1,
                verbose=0,
            )
        attempt = context.current()
        assert attempt is not None
        assert not jobs._jobs[id(attempt)].writer.busy


def test_a_list_of_callbacks_is_unchanged_afterwards(tmp_path: Path, script: Script) -> None:
    begin_process()
    model = script.build()
    given = CallbackList([Failing(5)], add_history=True, model=model, epochs=3, verbose=0, steps=7)
    names = [type(c).__name__ for c in given.callbacks]
    with process(tmp_path), pytest.raises(RuntimeError):
        fit(model, **script.arguments, callbacks=given, job_dir=tmp_path)
    assert [type(c).__name__ for c in given.callbacks] == names


def test_the_same_script_continues_after_the_error(tmp_path: Path, script: Script) -> None:
    untouched = train(script, tmp_path / "untouched")
    with pytest.raises(RuntimeError):
        train(script.with_callbacks(lambda: [Failing(5)]), tmp_path / "job", save_every=1)
    assert_same_end(untouched, train(script, tmp_path / "job"))


@pytest.mark.parametrize("most", [1, 2])
def test_the_limits_of_keras_on_epochs_and_steps_hold(tmp_path: Path, most: int) -> None:
    script = KINDS["dict"].script()
    keras.config.set_max_epochs(most)
    keras.config.set_max_steps_per_epoch(3)
    try:
        with pytest.warns(UserWarning, match=r"Limiting (epochs|steps_per_epoch) to"):
            end = train(script, tmp_path)
    finally:
        keras.config.set_max_epochs(None)
        keras.config.set_max_steps_per_epoch(None)
    assert len(end.epoch) == most
    assert sum(row["kind"] == "step" for row in end.rows) == 3 * most

"""A preemption notice or SIGTERM at the worst moments of a training does not change its end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import pytest

from outlast.attempt import context
from outlast.job import logs
from outlast.job.events import Released
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.notices import last_to_leave
from outlast.training import phase
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.metadata_servers import AzureServer, GceServer
from tests.support.training_harness import Script, assert_same_end, train
from tests.support.training_zoo import ARRAYS, MLP, model_of, tiny

PATIENCE = 60.0


def _at(moment: str) -> None:
    """Run a test's action at that moment."""


class Compiling(keras.layers.Layer):
    """Forwards all calls. Python calls it while a step is traced, and never again."""

    def call(self, x: Any) -> Any:
        _at("compiling")
        return x


class Validating(keras.callbacks.Callback):
    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        _at("validating")


SCRIPT = Script(
    model_of(*MLP, Compiling),
    {**ARRAYS, "validation_split": 0.3, "epochs": 4, "save_every": 2, "keep": "all"},
    lambda: [Validating()],
)


@contextmanager
def striking(moment: str, strike: Callable[[], None]) -> Iterator[None]:
    """Strike at the first such moment, and continue once the training knows of it."""
    struck = threading.Event()  # a resume restores a list, but no event
    save = CheckpointStore.save

    def at(now: str) -> None:
        found = context.current()
        if found is not None and now == moment and not struck.is_set():
            struck.set()
            strike()
            assert found.stop.wait(PATIENCE)

    def save_and_tell(self: CheckpointStore, *args: Any, reason: str, **options: Any) -> Any:
        at(f"saving: {reason}")
        return save(self, *args, reason=reason, **options)

    with (
        mock.patch(f"{__name__}._at", at),
        mock.patch.object(CheckpointStore, "save", save_and_tell),
    ):
        yield
    assert struck.is_set()


def test_a_preemption_at_any_moment_costs_no_step_and_no_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = train(SCRIPT, tmp_path / "untouched")
    folder, google, azure = tmp_path / "job", GceServer(), AzureServer()
    monkeypatch.setenv("OUTLAST_PREEMPTION", "gce")
    monkeypatch.setenv("GCE_METADATA_HOST", google.host)

    def notice() -> None:
        google.say(preempted="TRUE")

    def sigterm() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    def both() -> None:
        sigterm()
        notice()

    with google.serving(), azure.serving():
        struck = [
            ("compiling", notice, 0),
            ("validating", sigterm, 2),
            ("saving: step", both, 4),
            ("compiling", sigterm, 4),
            ("validating", notice, 4),
        ]
        for attempt, (moment, strike, step) in enumerate(struck, 1):
            with striking(moment, strike), pytest.raises(SystemExit) as left:
                train(SCRIPT, folder)
            google.say(preempted="FALSE")
            assert left.value.code == 75, (attempt, moment)
            assert_left(folder, attempt, step, noticed=strike is notice)

        # So little time is left that what is being saved is finished, and nothing is begun.
        monkeypatch.setattr(phase, "MOMENT_S", 0.0)
        monkeypatch.setenv("OUTLAST_PREEMPTION", "azure")
        monkeypatch.setenv("OUTLAST_METADATA_URL", azure.url)
        monkeypatch.setattr(last_to_leave, "_FOLDER", tmp_path)
        late = striking("saving: step", lambda: azure.schedule(within=1.0))
        with late, pytest.raises(SystemExit) as left:
            train(SCRIPT, folder)
        assert left.value.code == 75
        (row,) = rows_of(folder, "save_skipped")
        assert (row["left_s"], row["checkpoint"]) == (0, f"00-{6:012d}.0-0006")
        assert_left(folder, 6, None, noticed=True)
        assert len(azure.started) == 1
        azure.say(events=[])
        assert_same_end(train(SCRIPT, folder), untouched)


def assert_left(folder: Path, attempt: int, step: int | None, *, noticed: bool) -> None:
    """Assert that an attempt saved the state of `step` and left without a counted failure."""
    storage = open_storage(folder)
    journal = Journal(storage)
    events = [entry.event for entry in journal.read()]
    job = journal.existing_job()
    assert (job.attempt, job.exit_code, job.failures, job.owner) == (attempt, 75, 0, None)
    # A bare script that a signal has asked to leave stays down until somebody wants it to go on;
    # one that a cloud has ended may be taken up by anybody.
    last = events[-1]
    if noticed:
        assert (job.state, job.outcome) == (State.PENDING, Outcome.PREEMPTED)
        assert isinstance(last, Released)
        assert last.reason.startswith(("gce: the machine is preempted", "azure: the spot machine"))
        assert len(rows_of(folder, "preemption_announced", attempt)) == 1
    else:
        assert job.state in (State.STOPPED, State.PENDING)
    saved = [row["step"] for row in rows_of(folder, "state_saved", attempt)]
    assert saved == ([] if step is None else [step])
    if step is not None:
        names = filter(None, map(CheckpointId.parse, storage.list("checkpoints")))
        assert max(names).step == step


def rows_of(folder: Path, event: str, attempt: int | None = None) -> list[dict[str, Any]]:
    rows = logs.read(open_storage(folder))
    return [row for row in rows if row["event"] == event and attempt in (None, row.get("attempt"))]


class Replaces(keras.callbacks.Callback):
    """Sets a handler of its own in the midst of training, and gets its signal two steps later."""

    def __init__(self, handler: Any) -> None:
        super().__init__()
        self._handler, self._steps = handler, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps += 1
        if self._steps == 2:
            signal.signal(signal.SIGTERM, self._handler)
        if self._steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_handler_of_the_script_costs_no_step(tmp_path: Path, leaves: bool) -> None:
    """Also one that would exit at once."""
    called: list[int] = []

    def own(signum: int, frame: Any) -> None:
        called.append(signum)
        if leaves:
            raise SystemExit(1)

    before = signal.getsignal(signal.SIGTERM)
    script = Script(tiny(), {**ARRAYS, "epochs": 3, "save_every": "never"})
    try:
        with pytest.raises(SystemExit) as left:
            train(script.with_callbacks(lambda: [Replaces(own)]), tmp_path / "job")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 75
    assert called == [signal.SIGTERM]
    log = (tmp_path / "job" / "attempts" / "0001" / "log.jsonl").read_text()
    assert log.count("handlers_restored") == 1
    assert log.count("handler_failed") == leaves
    assert '"event": "state_saved"' in log
    resumed = train(script, tmp_path / "job")
    assert [row["step"] for row in resumed.rows if row["kind"] == "step"] == [*range(1, 10)]
    assert_same_end(train(script, tmp_path / "untouched"), resumed)

"""The conformance suite of engines: subclass `EngineConformance` and define `make`.

    class TestMine(EngineConformance):
        def make(self) -> Engine:
            return MyEngine()

The jobs are real and run to their end or are stopped, without TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from outlast.engines.base import Engine, Handle
from outlast.errors import EngineFailed
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.spec import JobSpec
from outlast.job.submission import request_stop, submit
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

# Steps until it is asked to leave, or until a file "done" exists beside it.
TRAINING = """
import pathlib, time
from outlast.attempt import context

here = pathlib.Path(__file__).parent
ctx = context.current()
ctx.status.phase = 0
ctx.status.activity = "training"
while not (here / "done").exists():
    ctx.status.step += 1
    ctx.status.tick()
    time.sleep(0.01)
    if ctx.stop.requested:
        ctx.leave()
"""


class RunningJob(NamedTuple):
    """A job that an engine has launched, and that trains."""

    engine: Engine
    handle: Handle
    spec: JobSpec
    storage: Storage


class EngineConformance:
    """Tests what every engine must do."""

    options: dict[str, Any] = {}  # noqa: RUF012  (of the spec; overridden whole)
    patience = 120.0  # seconds until something that happens soon must have happened

    def make(self) -> Engine:
        """Return a new object of the engine under test."""
        raise NotImplementedError

    @pytest.fixture
    def job(self, tmp_path: Path) -> tuple[JobSpec, Storage]:
        """Return a submitted job that no engine has yet."""
        (tmp_path / "train ☂.py").write_text(TRAINING, encoding="utf-8")
        values: dict[str, Any] = {"job": "j", "script": "train ☂.py", "cwd": str(tmp_path)}
        spec = JobSpec(**{**values, "heartbeat_every": 0.2, "lost_after": 10.0, **self.options})
        root = open_storage(tmp_path / "jobs")
        submit(root, spec)
        return spec, root.sub("j")

    @pytest.fixture
    def running(self, job: tuple[JobSpec, Storage]) -> RunningJob:
        """Return a job that trains."""
        engine = self.make()
        running = RunningJob(engine, engine.launch(*job), *job)
        self._until(lambda: self._is(running.storage, State.RUNNING))
        return running

    def test_a_plan_starts_nothing(self, job: tuple[JobSpec, Storage]) -> None:
        spec, storage = job
        assert storage.root in self.make().plan(spec, storage)
        assert Journal(storage).existing_job().owner is None

    def test_a_job_is_run_to_its_end(self, running: RunningJob, tmp_path: Path) -> None:
        engine, handle, _, storage = running
        assert isinstance(handle["id"], str)
        found = self.make().poll(handle)  # another process' engine finds it just as well
        assert found is not None
        assert not found.queued
        (tmp_path / "done").touch()
        self._until(lambda: self._is(storage, State.SUCCEEDED))
        self._until(lambda: engine.poll(handle) is None)
        engine.stop(handle, storage)  # nothing to stop any more

    def test_a_stopped_job_leaves_nothing_behind(self, running: RunningJob) -> None:
        engine, handle, _, storage = running
        request_stop(storage)
        self._until(lambda: self._is(storage, State.STOPPED))
        self._gone(engine, handle)

    def test_a_removed_job_saves_and_can_be_launched_again(
        self, running: RunningJob, tmp_path: Path
    ) -> None:
        engine, handle, spec, storage = running
        engine.stop(handle, storage)
        self._gone(engine, handle)
        self._until(lambda: Journal(storage).existing_job().owner is None)
        assert self._is(storage, State.PENDING)
        assert engine.requeue(handle, storage) is None  # nothing starts a removed job
        (tmp_path / "done").touch()
        engine.launch(spec, storage)
        self._until(lambda: self._is(storage, State.SUCCEEDED))

    def test_nothing_is_removed_for_another_job(self, running: RunningJob, tmp_path: Path) -> None:
        engine, handle, _, storage = running
        other = open_storage(tmp_path / "other").sub("j")  # its journal names this job's handle
        with suppress(EngineFailed):
            engine.stop(handle, other)
        found = engine.poll(handle)
        assert found is not None
        (tmp_path / "done").touch()
        self._until(lambda: self._is(storage, State.SUCCEEDED))
        self._gone(engine, handle)

    def _gone(self, engine: Engine, handle: Handle) -> None:
        self._until(lambda: engine.poll(handle) is None)

    def _is(self, storage: Storage, state: State) -> bool:
        return Journal(storage).existing_job().state is state

    def _until(self, holds: Callable[[], object]) -> None:
        until = time.monotonic() + self.patience
        while not holds():
            assert time.monotonic() < until, "waited in vain"
            time.sleep(0.1)

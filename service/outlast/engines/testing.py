"""The conformance suite of engines: subclass `EngineConformance` and define `make`.

    class TestMine(EngineConformance):
        def make(self) -> Engine:
            return MyEngine()

The jobs are real and run to their end or are stopped, without TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outlast.engines.base import Engine, Handle
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

    def test_a_plan_starts_nothing(self, job: tuple[JobSpec, Storage]) -> None:
        spec, storage = job
        assert storage.root in self.make().plan(spec, storage)
        assert Journal(storage).existing_job().owner is None

    def test_a_job_is_run_to_its_end(self, job: tuple[JobSpec, Storage], tmp_path: Path) -> None:
        spec, storage = job
        engine = self.make()
        handle = engine.launch(spec, storage)
        assert isinstance(handle["id"], str)
        self._until(lambda: self._is(storage, State.RUNNING))
        found = self.make().poll(handle)  # another process' engine finds it just as well
        assert found is not None
        assert not found.queued
        (tmp_path / "done").touch()
        self._until(lambda: self._is(storage, State.SUCCEEDED))
        self._until(lambda: engine.poll(handle) is None)
        engine.stop(handle)  # nothing to stop any more

    def test_a_stopped_job_leaves_nothing_behind(self, job: tuple[JobSpec, Storage]) -> None:
        spec, storage = job
        engine = self.make()
        handle = engine.launch(spec, storage)
        self._until(lambda: self._is(storage, State.RUNNING))
        request_stop(storage)
        self._until(lambda: self._is(storage, State.STOPPED))
        self._gone(engine, handle)

    def test_what_is_taken_back_saves_and_can_be_handed_over_again(
        self, job: tuple[JobSpec, Storage], tmp_path: Path
    ) -> None:
        spec, storage = job
        engine = self.make()
        handle = engine.launch(spec, storage)
        self._until(lambda: self._is(storage, State.RUNNING))
        engine.stop(handle)
        self._gone(engine, handle)
        self._until(lambda: Journal(storage).existing_job().owner is None)
        assert self._is(storage, State.PENDING)
        assert engine.again(handle, storage) is None  # nobody starts what was taken back
        (tmp_path / "done").touch()
        engine.launch(spec, storage)
        self._until(lambda: self._is(storage, State.SUCCEEDED))

    def _gone(self, engine: Engine, handle: Handle) -> None:
        self._until(lambda: engine.poll(handle) is None)

    def _is(self, storage: Storage, state: State) -> bool:
        return Journal(storage).existing_job().state is state

    def _until(self, holds: Callable[[], object]) -> None:
        until = time.monotonic() + self.patience
        while not holds():
            assert time.monotonic() < until, "waited in vain"
            time.sleep(0.1)

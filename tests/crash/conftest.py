"""Fixtures: a job with two good checkpoints, and processes that continue it under strace."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outlast.job import spec
from outlast.job.events import Claimed, Launched, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.process_identity import here
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.crash.example import row, snapshot
from tests.crash.tracing import Saver


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose attempt 1 has committed steps 1 and 2, and died later."""
    folder = tmp_path_factory.mktemp("template") / "job"
    storage = open_storage(folder)
    storage.create("spec.json", spec.encode(spec.JobSpec(job="job", script="train.py", seed=1)))
    journal = Journal(storage)
    journal.append(Submitted())
    journal.append(Claimed(attempt=1, owner=here()))
    journal.append(Launched(attempt=1))
    journal.append(Started(attempt=1))
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    history = HistoryWriter(storage, 1)
    for step in (1, 2):
        history.append(row(step))
        mark = history.mark()
        history.sync(mark)
        store.save(snapshot(step), reason="step", history=mark)
    history.append(row(3))  # never committed: attempt 2 does step 3 again
    history.close()
    return folder


@pytest.fixture
def fresh_job(template: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that copies the template again, always to the same place."""

    def fresh() -> Path:
        folder = tmp_path / "job"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        return folder

    return fresh


@pytest.fixture
def saver(tmp_path: Path, require: Callable[[str], str]) -> Iterator[Saver]:
    """A process whose children save."""
    running = Saver(tmp_path, require("strace"))
    yield running
    running.close()

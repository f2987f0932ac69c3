"""A job's local files are private to its user, or stricter if the umask says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from outlast import backends
from outlast.job import spec
from outlast.job.events import Claimed, Submitted
from outlast.job.journal import Journal
from outlast.job.logs import LogFile
from outlast.job.process_identity import here
from outlast.job.spec import JobSpec
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_are_private_to_the_user(tmp_path: Path, umask: int) -> None:
    root = tmp_path / "some" / "jobs"
    if umask & 0o200 and os.geteuid() != 0:
        pytest.skip("with this umask nobody but root can write into a folder of their own")
    storage = open_storage(root).sub("job")
    storage.create("spec.json", spec.encode(JobSpec(job="job", script="train.py")))
    journal = Journal(storage)
    journal.append(Submitted())
    journal.append(Claimed(attempt=1, owner=here()))
    storage.replace("attempts/0001/heartbeat.json", b"{}", durable=False)
    log = LogFile(storage, "attempts/0001/log.jsonl")
    log.write({"event": "x"})
    log.close()
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    history = HistoryWriter(storage, 1)
    history.append({"kind": "step", "step": 1})
    history.close()
    for step in (1, 2, 3):  # the third links what is frozen
        store.save(sample_snapshot(step, backbone=1), reason="step")
    found = {path: path.stat().st_mode & 0o7777 for path in (tmp_path / "some").rglob("*")}
    found[tmp_path / "some"] = (tmp_path / "some").stat().st_mode & 0o7777
    assert len(found) > 15
    for path, mode in found.items():
        assert mode == (0o700 if path.is_dir() else 0o600) & ~umask, (path, oct(mode))


def test_the_output_of_an_attempt_is_private_too(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        storage = open_storage(tmp_path / "job")
        job = JobSpec(job="job", script="missing.py", cwd=str(tmp_path))
        storage.create("spec.json", spec.encode(job))
        backend = backends.get("local")
        handle = backend.launch(job, storage, 1)
        while backend.poll(handle) is None:
            os.waitid(os.P_PID, handle["pid"], os.WEXITED | os.WNOWAIT)
        backend.close()
    finally:
        os.umask(before)
    for path in (tmp_path / "job").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path

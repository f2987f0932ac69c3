"""A job is killed, copied to a bucket and from there to another folder, and continues there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from outlast.job.journal import Journal
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance.jobs import Training, assert_same, gone, outlast
from tests.support.object_stores import ObjectStore

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]


def test_a_copied_job_continues(
    train: Callable[..., Training],
    untouched: Callable[[str], Training],
    gcs: ObjectStore,
    tmp_path: Path,
) -> None:
    training = train("cnn", forked=True)
    training.hold("epoch_end", 3)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 3)
    busy = outlast("copy", training.folder, tmp_path / "copy")
    assert busy.returncode == 5
    assert not (tmp_path / "copy").exists()
    training.kill_supervisor()
    process.kill()
    training.until("its end", lambda: gone(process))
    before = {path: path.stat() for path in training.folder.rglob("*") if path.is_file()}

    there, environment = f"{gcs.folder()}/", {**os.environ, **gcs.environment}
    out = outlast("copy", "--json", training.folder, there, env=environment)
    assert out.returncode == 0, out.stderr
    url = json.loads(out.stdout)["url"]
    back = outlast("copy", "--json", url, f"{tmp_path / 'moved'}/", env=environment)
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["damages"] == []
    after = {path: path.stat() for path in training.folder.rglob("*") if path.is_file()}
    assert [(p, s.st_mtime_ns, s.st_size) for p, s in after.items()] == [
        (p, s.st_mtime_ns, s.st_size) for p, s in before.items()
    ]

    training.root = tmp_path / "moved"
    training.folder = training.root / training.script
    training.storage = open_storage(training.folder)
    training.store = CheckpointStore(training.storage)
    training.journal = Journal(training.storage)
    training.hold("never")
    training.resume()
    training.end()
    assert_same(training, untouched("cnn"))
    assert [one.attempt for one in training.store.ids()][-1] == 2

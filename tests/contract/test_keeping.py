"""Jobs on object stores: copied there and back, verified, and pruned of leftovers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outlast.job import process_identity
from outlast.job import spec as specs
from outlast.job.events import Ended, Launched, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import multipart, open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.garbage import leftovers
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.testing import sample_snapshot
from tests.support.command_line import answer
from tests.support.object_stores import ObjectStore, use

# What gcsfs and adlfs hand to aiohttp are bytes, whatever they were given.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")

PART = 5 << 20  # bytes; the least that S3 takes for a part that is not the last


@pytest.fixture(scope="module", params=["seaweed", "gcs"])
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    found: ObjectStore = request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as patch:
        use(found, patch)
        yield found


@pytest.fixture
def job(tmp_path: Path) -> Storage:
    """A job that has ended, in a folder; two of its checkpoints share a frozen part."""
    storage = open_storage(tmp_path / "job")
    storage.create(layout.SPEC, specs.encode(JobSpec(job="job", script="train.py")))
    journal = Journal(storage)
    journal.append(Submitted())
    journal.claim(process_identity.here())
    for event in (Launched(attempt=1), Started(attempt=1)):
        journal.append(event)
    saver = CheckpointStore(storage, attempt=1)
    saver.begin()
    history = HistoryWriter(storage, 1)
    for step in range(1, 4):
        history.append({"kind": "step", "phase": 0, "step": step, "epoch": 0, "batch": step})
        mark = history.mark()
        history.sync(mark)
        saver.save(sample_snapshot(step, backbone=1), reason="step", history=mark)
    history.close()
    storage.create(layout.attempt_log(1), b'{"event": "hello", "level": "info"}\n')
    journal.append(Ended(attempt=1, outcome=Outcome.COMPLETED, reason="", advanced=True))
    return storage


@pytest.fixture
def outlast(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    def call(*arguments: str) -> tuple[int, Any]:
        found = answer(capsys, *arguments, "--json")
        assert found.out, found.err
        return found.code, found.json

    return call


def test_a_job_copied_there_and_back_is_pruned_of_leftovers(
    store: ObjectStore, job: Storage, outlast: Callable[..., tuple[int, Any]], tmp_path: Path
) -> None:
    """A store knows no folders and no links, and its clock is its own."""
    there = f"{store.folder()}/job"
    code, out = outlast("copy", job.root, there)
    assert (code, len(out["checkpoints"]), out["damages"]) == (0, 3, [])
    code, out = outlast("copy", job.root, there)
    assert (code, out["written"]) == (0, 0)
    code, found = outlast("verify", there.rpartition("/")[0])
    assert (code, [one["good"] for one in found["jobs"]]) == (0, [True])
    assert found["jobs"][0]["history"]["entries"] == 3

    remote = open_storage(there)
    saved = CheckpointStore(remote).ids()
    cut_short = "checkpoints/00-000000000009.0-0001"
    remote.create(f"{cut_short}/state.h5", b"half")
    stray = f"checkpoints/{saved[0]}/other.h5"
    remote.create(stray, b"whose is it?")
    found = outlast("prune", there, "--dry-run", "--keep", "2")[1]
    assert (found["leftovers"], found["deleted"]) == ([], [str(saved[0])])
    left = leftovers(remote, older_than=-60, training=False)
    assert [one.path for one in left] == [stray, cut_short]
    assert all(-60 < one.age < 600 for one in left)
    found = outlast("prune", there, "--older-than", "0")[1]
    assert [one["path"] for one in found["leftovers"]] == [stray, cut_short]
    assert remote.list(layout.CHECKPOINTS) == [str(one) for one in saved]

    code, out = outlast("copy", there, str(tmp_path / "back"))
    assert (code, out["linked"] > 1 << 20) == (0, True)
    back = open_storage(tmp_path / "back")
    assert list(HistoryReader(back).rows()) == list(HistoryReader(job).rows())
    for checkpoint in saved:
        path = layout.manifest(checkpoint)
        assert back.read(path) == job.read(path)
        assert CheckpointStore(back).verify(checkpoint) == []


def test_unsent_checkpoints_are_not_copied_and_are_reported(
    gcs: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    job: Storage,
    outlast: Callable[..., tuple[int, Any]],
    tmp_path: Path,
) -> None:
    there = f"{use(gcs, monkeypatch)}/job"
    monkeypatch.setenv("OUTLAST_SPOOL", str(tmp_path / "spool"))
    assert outlast("copy", job.root, there)[1]["waiting"] == []
    spool = Spool.of(open_storage(there), "life")
    assert spool is not None
    spool.make()
    saver = CheckpointStore(spool.storage, attempt=2)
    saver.begin()
    saved = saver.save(sample_snapshot(9), reason="step")
    code, out = outlast("copy", there, str(tmp_path / "copy"))
    assert (code, out["waiting"]) == (0, [saved.checkpoint])
    assert len(out["checkpoints"]) == 3


def test_unfinished_uploads_are_deleted_by_age(
    seaweed: ObjectStore, monkeypatch: pytest.MonkeyPatch, job: Storage
) -> None:
    """Neither what is below another folder nor what is young."""
    root = open_storage(use(seaweed, monkeypatch))
    remote: Any = root.sub("job")
    neighbour: Any = root.sub("job-2")
    for storage, name in ((remote, "state.h5"), (remote, "model.weights.h5"), (neighbour, "x")):
        begin_upload(storage, f"checkpoints/a/{name}")
    left = leftovers(remote, older_than=0, training=True)
    assert [one.path for one in left] == [
        "checkpoints/a/model.weights.h5",
        "checkpoints/a/state.h5",
    ]
    assert all(one.reason == "an unfinished upload" for one in left)
    assert leftovers(remote, older_than=86400, training=True) == []
    base = remote._at("")
    assert multipart.unfinished(remote._fs, base, page=1) == multipart.unfinished(remote._fs, base)
    for one in left:
        one.delete(remote)
        one.delete(remote)  # gone already
    assert remote.unfinished() == []
    assert len(neighbour.unfinished()) == 1


def begin_upload(storage: Any, path: str) -> None:
    """Leave an upload as a process does that is killed in it."""
    bucket, _, key = storage._at(path).partition("/")
    made = storage._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    storage._fs.call_s3(
        "upload_part",
        Bucket=bucket,
        Key=key,
        UploadId=made["UploadId"],
        PartNumber=1,
        Body=b"x" * PART,
    )

"""Large files are sent while they are written to the spool, and committed as all others are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outlast_checkpoints.storage.base import Following, join
from tests.support.away import Bucket
from tests.support.spooled_training import Machine, committed, machines

WEIGHTS = "model.weights.h5"


class Upload:
    """An upload that stores the file when it is whole. fails: it reports a failure afterwards."""

    def __init__(self, bucket: Fast, path: str, local: Path, size: int) -> None:
        self.bucket, self.path, self.local, self.size = bucket, path, local, size
        self.seen: list[int] = []
        self.ended = ""

    def grown(self, size: int) -> None:
        assert self.local.stat().st_size >= size
        self.seen.append(size)

    def finish(self) -> bool:
        if self.ended:
            return False
        assert self.seen[-1] == self.size == self.local.stat().st_size
        self.bucket.inner.replace(self.path, self.local.read_bytes())
        self.ended = "failed" if self.bucket.fails else "finished"
        return not self.bucket.fails

    def cancel(self) -> None:
        self.bucket.inner.replace(self.path, b"x" * self.size)  # of another try
        self.ended = "cancelled"


class Fast(Bucket):
    """A bucket that files can be uploaded to while they grow."""

    fails = False

    def __init__(self, *args: str) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.uploads: list[Upload] = []

    def follow(self, path: str, local: Path, size: int) -> Following | None:
        if not path.endswith(WEIGHTS):
            return None
        self.uploads.append(Upload(self, path, local, size))
        return self.uploads[-1]

    def sent(self, name: str = WEIGHTS) -> int:
        return sum(call == "stage" and path.endswith(name) for call, path in self.calls)


@pytest.fixture
def bucket(tmp_path: Path) -> Fast:
    return Fast.at(tmp_path / "bucket")  # type: ignore[return-value]


@pytest.fixture
def make(tmp_path: Path, bucket: Fast) -> Iterator[Callable[..., Machine]]:
    yield from machines(tmp_path, bucket)


def save(machine: Machine) -> None:
    machine.train()
    machine.save()


def test_a_file_is_sent_once_while_it_is_written(
    make: Callable[..., Machine], bucket: Fast
) -> None:
    machine = make()
    for _ in range(2):
        save(machine)
        assert machine.settled()
    assert committed(bucket) == ["1.0", "2.0"]
    assert [upload.ended for upload in bucket.uploads] == ["finished"] * 2
    assert bucket.sent() == 0
    assert bucket.sent("state.h5") == 2


def test_the_manifest_waits_for_it(make: Callable[..., Machine], bucket: Fast) -> None:
    def look(operation: str, path: str) -> None:
        if operation == "create" and path.endswith("manifest.json"):
            ended.append(bucket.uploads[-1].ended)

    ended: list[str] = []
    bucket.on_call = look
    save(machine := make())
    assert machine.settled()
    assert ended == ["finished"]


def test_a_file_whose_early_upload_fails_is_sent_again(
    make: Callable[..., Machine], bucket: Fast
) -> None:
    bucket.fails = True
    save(machine := make())
    assert machine.settled()
    assert committed(bucket) == ["1.0"]
    assert bucket.sent() == 1
    assert machine.names() == ["saved"]


def test_nothing_is_sent_early_while_the_store_is_away_or_busy(
    make: Callable[..., Machine], bucket: Fast
) -> None:
    machine = make(keep="all")
    bucket.answers.clear()
    save(machine)
    save(machine)
    assert len(bucket.uploads) == 1
    bucket.answers.set()
    assert machine.settled()
    assert committed(bucket) == ["1.0", "2.0"]
    assert bucket.sent() == 1

    bucket.away = True
    save(machine)
    assert not machine.settled(within=0.1)
    save(machine)
    assert len(bucket.uploads) == 2
    bucket.away = False
    assert machine.settled()
    assert committed(bucket) == ["1.0", "2.0", "3.0", "4.0"]


def test_what_a_failed_save_has_sent_is_sent_again(
    make: Callable[..., Machine], bucket: Fast
) -> None:
    machine = make(disk="create@1:fail create@2:fail")  # the manifest in the spool
    save(machine)
    assert machine.writer.take_error() is not None
    assert [upload.ended for upload in bucket.uploads] == ["cancelled"]
    machine.save()
    assert machine.settled()
    assert committed(bucket) == ["1.0"]
    assert bucket.uploads[1].ended == "finished"


def test_what_a_failed_save_has_sent_is_sent_again_without_an_early_upload(
    make: Callable[..., Machine], bucket: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make(disk="create@1:fail create@2:fail")
    save(machine)
    assert machine.writer.take_error() is not None
    monkeypatch.setattr(Fast, "follow", lambda self, path, local, size: None)
    machine.save()
    assert machine.settled()
    assert committed(bucket) == ["1.0"]
    assert bucket.sent() == 1


def test_an_early_upload_that_cannot_begin_is_left_out(
    make: Callable[..., Machine], bucket: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(self: Fast, path: str, local: Path, size: int) -> None:
        raise OSError(join(self.root, path))

    monkeypatch.setattr(Fast, "follow", follow)
    save(machine := make())
    assert machine.settled()
    assert committed(bucket) == ["1.0"]
    assert threading.active_count() < 20

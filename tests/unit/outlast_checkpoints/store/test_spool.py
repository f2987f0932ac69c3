"""The spool: its folder, its limit, and the age of its content."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from outlast_checkpoints.errors import StorageError, UsageError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.spool import Spool
from tests.support.away import Bucket
from tests.support.spooled_training import Machine


def test_a_job_on_this_machine_has_no_spool(tmp_path: Path) -> None:
    assert Spool.of(open_storage(tmp_path), "life") is None
    assert Spool.of(open_storage(f"memory://{tmp_path.name}"), "life") is None


def test_each_life_of_a_job_has_a_spool_of_its_own(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAST_SPOOL", str(tmp_path / "sp ool"))
    monkeypatch.setenv("OUTLAST_SPOOL_LIMIT", "1.5 GB")
    assert Spool.found(bucket) is None
    one, other = Spool.of(bucket, "1"), Spool.of(bucket, "2")
    again, elsewhere = Spool.of(bucket, "1"), Spool.of(Bucket.at(tmp_path / "b" / "bucket"), "1")
    assert one is not None
    assert other is not None
    assert again is not None
    assert elsewhere is not None
    assert len({one.path, other.path, elsewhere.path}) == 3
    assert one.path == again.path
    assert one.limit == 3 << 29
    one.make()
    assert Path(one.path).stat().st_mode & 0o777 == 0o700
    found = Spool.found(bucket)
    assert found is not None
    assert found.path == one.path


def test_by_default_it_is_in_the_cache_and_takes_half_of_what_is_free(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTLAST_SPOOL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spool = Spool.of(bucket, "life")
    assert spool is not None
    assert spool.path.startswith(f"{tmp_path}/cache/outlast/spool/bucket-")
    assert 0 < spool.limit <= 20 << 30


def test_a_limit_that_is_no_size_is_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAST_SPOOL_LIMIT", "plenty")
    with pytest.raises(UsageError, match=r"OUTLAST_SPOOL_LIMIT.*plenty"):
        Spool.of(bucket, "life")


def test_a_spool_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="create the spool"):
        Spool(tmp_path / "file" / "job" / "life", 0).make()


def test_what_is_old_is_told_by_when_it_was_written(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.train()
    machine.save()
    assert not machine.spool.is_old(1)
    for folder in [*Path(machine.spool.path).rglob("*")]:
        os.utime(folder, (1, 1))
    assert machine.spool.is_old(1)

"""The spool: its folder, its limit, and the age of its content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outlast_checkpoints.errors import StorageError, UsageError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.spool import Spool
from tests.support.away import Bucket
from tests.support.spooled_training import Machine


def test_a_job_on_this_machine_has_no_spool(tmp_path: Path) -> None:
    assert Spool.of(open_storage(tmp_path), "life") is None
    assert Spool.of(open_storage(f"memory://{tmp_path.name}"), "life") is None


def test_each_new_job_at_a_url_has_its_own_spool(
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


def test_by_default_it_is_in_the_cache_and_limited_to_half_of_the_free_space(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTLAST_SPOOL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spool = Spool.of(bucket, "life")
    assert spool is not None
    assert spool.path.startswith(f"{tmp_path}/cache/outlast/spool/bucket-")
    assert 0 < spool.limit <= 20 << 30


def test_an_invalid_limit_is_refused(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_SPOOL_LIMIT", "plenty")
    with pytest.raises(UsageError, match=r"OUTLAST_SPOOL_LIMIT.*plenty"):
        Spool.of(bucket, "life")


def test_a_spool_that_cannot_be_created_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="create the spool"):
        Spool(tmp_path / "file" / "job" / "life", 0).make()


@pytest.mark.parametrize(
    ("level", "planted"),
    [
        *(("spool", planted) for planted in ("foreign", "writable")),  # a link is the user's own
        *(("spool/job", planted) for planted in ("foreign", "writable", "link")),
        *(("spool/job/life", planted) for planted in ("foreign", "writable", "link")),
    ],
)
def test_a_planted_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, planted: str
) -> None:
    """What waits in the spool is sent in its user's name."""
    monkeypatch.setattr(os, "geteuid", lambda: 4002)
    wanted = {"spool": 4002, "spool/job": 4002, "spool/job/life": 4002}
    (tmp_path / "elsewhere").mkdir()
    for name in wanted:
        (tmp_path / name).mkdir()
    if planted == "link":
        shutil.rmtree(tmp_path / level)
        (tmp_path / level).symlink_to(tmp_path / "elsewhere")
    elif planted == "writable":
        (tmp_path / level).chmod(0o777)
    else:
        wanted[level] = 4001
    stat_of = os.stat

    def owned(path: Any, **more: Any) -> os.stat_result:
        found = stat_of(path, **more)
        place = str(path).removeprefix(f"{tmp_path}/")
        return os.stat_result((*found[:4], wanted.get(place, found.st_uid), *found[5:]))

    monkeypatch.setattr(os, "stat", owned)
    with pytest.raises(StorageError, match="OUTLAST_SPOOL") as refused:
        Spool(tmp_path / "spool" / "job" / "life", 0).make()
    assert refused.value.exit_code == 74
    assert str(tmp_path / level) in str(refused.value)


def test_age_is_measured_from_the_last_write(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.train()
    machine.save()
    assert not machine.spool.is_old(1)
    for folder in [*Path(machine.spool.path).rglob("*")]:
        os.utime(folder, (1, 1))
    assert machine.spool.is_old(1)

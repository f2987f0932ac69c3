"""Every storage does the same: the conformance suite on each of them, in odd places too."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

import pytest

from outlast_checkpoints.storage import durable_files, open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.testing import FaultyStorage, StorageConformance

ODD = 'it\'s a "wéird" $(path) #1%20 [x]*? 数'


class TestFolder(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(tmp_path / "root")


class TestFileUrl(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(f"file://{tmp_path}/root")


class TestOddFolder(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(tmp_path / ODD / "-jobs*")


class TestMemory(StorageConformance):
    @pytest.fixture
    def storage(self) -> Storage:
        return open_storage(f"memory://{uuid.uuid4().hex}/root")


class TestOddMemory(StorageConformance):
    @pytest.fixture
    def storage(self) -> Storage:
        return open_storage(f"memory://{uuid.uuid4().hex}/{ODD}/-jobs*")


class TestAnyFsspec(StorageConformance):
    """A file system of fsspec that nothing was made for: what a new scheme starts from."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        (tmp_path / "root").mkdir()
        return open_storage(f"dir::file://{tmp_path}/root", file={"auto_mkdir": True})

    def test_one_of_many_creators_wins(self, storage: Storage) -> None:
        assert not storage.capabilities.exclusive_create, "it looks, then writes"


class TestWithoutFaults(StorageConformance):
    """What injects faults changes nothing else."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return FaultyStorage(open_storage(tmp_path))


class TestWithoutLinks(StorageConformance):
    """A file system without hard links, and where that is `False` without exclusive renames too."""

    @pytest.fixture(params=[True, False])
    def storage(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Storage:
        def refused(*paths: object, **options: object) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "link", refused)
        if not request.param:
            monkeypatch.setattr(durable_files, "_renameat2", lambda: None)
        (tmp_path / "root").mkdir()
        storage = open_storage(tmp_path / "root")
        assert storage.capabilities.exclusive_create is request.param
        return storage

"""Remote storages: passing failures, lost answers, and answers that are checked.

The server is fsspec's own in-memory file system, made to misbehave.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from outlast_checkpoints.errors import AlreadyExists, NotFound, StorageError, StorageFull
from outlast_checkpoints.storage.fsspec_clients import Client
from outlast_checkpoints.storage.remote import FsspecStorage
from outlast_checkpoints.storage.retry_budget import patience


class Server(MemoryFileSystem):
    """An in-memory store with errors for the next calls of an operation."""

    protocol = "server"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}  # of its own: that of the class is shared by all
        self.pseudo_dirs = [""]
        self.before: dict[str, list[Exception]] = {}
        self.after: dict[str, list[Exception]] = {}
        self.calls: list[str] = []
        self.listings: dict[str, Any] = {}

    def _answer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        if self.before.get(name):
            raise self.before[name].pop(0)
        result = getattr(super(), name)(*args, **kwargs)
        if self.after.get(name):
            raise self.after[name].pop(0)
        return result

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> Any:
        return self._answer("cat_file", path, start, end, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        return self._answer("pipe_file", path, value, mode, **kwargs)

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> Any:
        return self._answer("put_file", lpath, rpath, *args, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """List like a store that caches its listings."""
        if (path, detail) not in self.listings:
            self.listings[path, detail] = super().ls(path, detail=detail, **kwargs)
        return self.listings[path, detail]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listings.clear()


@pytest.fixture
def server() -> Server:
    return Server()


def storage_of(server: Server, base: str = "/bucket/job") -> FsspecStorage:
    url = f"server:/{base}"
    return FsspecStorage(Client(url, filesystem=server), base, url)


@pytest.fixture
def storage(server: Server) -> FsspecStorage:
    return storage_of(server)


RESETS = [ConnectionResetError("reset"), TimeoutError("slow"), OSError(errno.EIO, "busy")]


def test_transient_errors_are_retried(storage: FsspecStorage, server: Server) -> None:
    server.before["pipe_file"] = list(RESETS)
    storage.create("a", b"1")
    server.before["cat_file"] = list(RESETS)
    assert storage.read("a") == b"1"
    server.before["put_file"] = list(RESETS)
    with storage.stage("b") as path:
        path.write_bytes(b"2")
    assert storage.read("b") == b"2"


def test_a_lasting_error_is_reported_with_its_path(storage: FsspecStorage, server: Server) -> None:
    server.before["cat_file"] = [OSError(errno.EIO, "out of order")] * 99
    with patience(0.5), pytest.raises(StorageError, match="out of order") as caught:
        storage.read("x/y")
    assert "server://bucket/job/x/y" in str(caught.value)
    assert 1 < server.calls.count("cat_file") < 99


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(errno.EACCES, "Access Denied"), StorageError),
        (FileNotFoundError("no"), NotFound),
        (OSError(errno.ENOSPC, "quota"), StorageFull),
        (ValueError("no such bucket"), StorageError),
    ],
)
def test_permanent_errors_are_not_retried(
    storage: FsspecStorage, server: Server, error: Exception, kind: type[StorageError]
) -> None:
    server.before["cat_file"] = [error]
    with pytest.raises(kind):
        storage.read("x")
    assert server.calls == ["cat_file"]


def test_a_create_whose_answer_was_lost_is_recognised(
    storage: FsspecStorage, server: Server
) -> None:
    server.after["pipe_file"] = [TimeoutError("lost")]
    storage.create("a", b"mine")
    assert storage.read("a") == b"mine"


@pytest.mark.parametrize("refusal", [FileExistsError(), OSError(errno.EINVAL, "412")])
def test_losing_a_race_is_distinguished_from_a_lost_answer(
    storage: FsspecStorage, server: Server, refusal: OSError
) -> None:
    storage.create("a", b"theirs")
    server.before["pipe_file"] = [TimeoutError("lost"), refusal]
    with pytest.raises(AlreadyExists):
        storage.create("a", b"mine")
    # Without an answer lost before, the same content is somebody else's all the same.
    server.before["pipe_file"] = [refusal]
    with pytest.raises(AlreadyExists):
        storage.create("a", b"theirs")
    assert storage.read("a") == b"theirs"


def test_a_refused_argument_is_not_a_lost_race(storage: FsspecStorage, server: Server) -> None:
    server.before["pipe_file"] = [OSError(errno.EINVAL, "bad name")]
    with pytest.raises(StorageError, match="bad name") as caught:
        storage.create("a", b"1")
    assert not isinstance(caught.value, AlreadyExists)


def test_a_truncated_upload_is_detected(
    storage: FsspecStorage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_file(lpath: str, rpath: str, **kwargs: Any) -> None:
        MemoryFileSystem.pipe_file(server, rpath, b"hal")

    with monkeypatch.context() as patch:
        patch.setattr(server, "put_file", put_file)
        with (
            pytest.raises(StorageError, match="arrived incomplete"),
            storage.stage("a/file") as path,
        ):
            path.write_bytes(b"half of it")
    assert "rm_file" not in server.calls, "a deletion may arrive after the next try"
    with storage.stage("a/file", over=True) as path:
        path.write_bytes(b"half of it")
    assert storage.read("a/file") == b"half of it"


def test_cached_listings_are_not_used(storage: FsspecStorage, server: Server) -> None:
    other = storage_of(server)
    other.create("f/a", b"1")
    assert storage.list("f") == ["a"]
    MemoryFileSystem.pipe_file(server, "/bucket/job/f/b", b"2")  # by another machine
    assert storage.list("f") == ["a", "b"]


class IgnoresConditions(Server):
    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        return super().pipe_file(path, value, mode="overwrite", **kwargs)


def test_the_store_is_asked_whether_it_can_fence(storage: FsspecStorage, server: Server) -> None:
    assert storage.capabilities.exclusive_create
    assert storage.list("") == [], "the probe is gone"
    careless = storage_of(IgnoresConditions(), "/bucket")
    assert not careless.capabilities.exclusive_create
    assert careless.list("") == []


class Slow(Server):
    protocol = "memory"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.01)  # between looking and writing: room for a race
        return super().pipe_file(path, value, **kwargs)


def test_creating_in_memory_is_one_step() -> None:
    storage = storage_of(Slow(), "/bucket")
    won: list[int] = []

    def claim(number: int) -> None:
        try:
            storage.create("claim", str(number).encode())
        except AlreadyExists:
            return
        won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in won] == [storage.read("claim")]

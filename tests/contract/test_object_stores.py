"""The conformance suite on object stores, on real servers of them on loopback.

rclone's server is the one that takes preconditions and overlooks them.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from outlast_checkpoints.errors import AlreadyExists, NotFound, StorageError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.remote import FsspecStorage
from outlast_checkpoints.storage.retry_budget import USUAL
from outlast_checkpoints.testing import StorageConformance
from tests.support.object_stores import ObjectStore, use

ODD = 'it\'s a "wéird" $(path) #1%20 [x]*? 数/-jobs*'
STORES = ("seaweed", "moto", "azurite", "gcs", "rclone")


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """The server of the parameter's name."""
    found: ObjectStore = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module", params=STORES)
def opened(request: pytest.FixtureRequest) -> Iterator[Storage]:
    store: ObjectStore = request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as patch:
        yield open_storage(f"{use(store, patch)}/{ODD}")


class TestObjectStores(StorageConformance):
    @pytest.fixture
    def storage(self, opened: Storage) -> Storage:
        return opened.sub(uuid.uuid4().hex)

    @pytest.fixture
    def careless(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.node.callspec.params["opened"] == "rclone")

    def test_the_store_is_asked_whether_it_can_fence(
        self, storage: Storage, careless: bool
    ) -> None:
        assert storage.capabilities.exclusive_create is not careless
        assert storage.list("") == []

    def test_a_store_that_cannot_fence_loses_nothing_with_one_supervisor(
        self, storage: Storage
    ) -> None:
        """What is there is seen before it is written over, as long as nobody else writes."""
        storage.create("spec.json", b"first")
        for again in (b"first", b"second"):
            with pytest.raises(AlreadyExists):
                storage.create("spec.json", again)
        assert storage.read("spec.json") == b"first"


def test_large_files_are_transferred_in_parts(
    seaweed: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(use(seaweed, monkeypatch))
    assert isinstance(storage, FsspecStorage)
    data = random.Random(1).randbytes(33 << 20)
    with storage.stage("large") as path:
        path.write_bytes(data)
    tag = storage._client.files.info(f"{storage._base}/large")["ETag"]
    assert tag.endswith('-3"'), "of so many parts is the object"
    assert storage.unfinished() == []
    with storage.fetch("large") as path:
        assert path.read_bytes() == data
    buffer = memoryview(bytearray(len(data) + 1))
    assert storage.read_into("large", buffer) == len(data)
    assert buffer == data + b"\0"


@pytest.mark.parametrize(
    ("store", "other"), [("seaweed", "s3a"), ("azurite", "abfs")], indirect=["store"]
)
def test_a_store_has_several_names(
    store: ObjectStore, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = use(store, monkeypatch)
    open_storage(url).create("spec.json", b"1")
    scheme, _, rest = url.partition("://")
    assert scheme != other
    assert open_storage(f"{other}://{rest}").read("spec.json") == b"1"


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_every_spelling_of_an_address_lists_what_was_written(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = use(store, monkeypatch)
    scheme, _, rest = url.partition("://")
    bucket, _, folder = rest.partition("/")
    spellings = [
        f"{scheme}://{bucket}//{folder}", f"{scheme}://{bucket}/{folder}//",
        f"{scheme.upper()}://{bucket}/./{folder}/x/..", url,
    ]  # fmt: skip
    for number, spelling in enumerate(spellings, start=1):
        open_storage(f"{spelling}/job").create(f"journal/{number}.json", b"x")
        for other in spellings:
            storage = open_storage(f"{other}//job/")
            assert len(storage.list("journal")) == number
            assert storage.root == f"{url}/job"


@pytest.mark.parametrize("store", ["moto", "azurite", "gcs"], indirect=True)  # SeaweedFS makes it
def test_a_missing_bucket_is_named(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    use(store, monkeypatch)
    scheme = store.bucket.partition("://")[0]
    storage = open_storage(f"{scheme}://no-such-bucket/jobs")
    assert storage.list("") == []
    assert not storage.exists("a")
    with pytest.raises(NotFound):
        storage.read("a")
    with pytest.raises(StorageError, match="the bucket does not exist"):
        storage.create("a", b"1")


def test_wrong_keys_are_reported_immediately_and_not_shown(
    seaweed: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = use(seaweed, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    begin = time.monotonic()
    with pytest.raises(StorageError, match=r"[Ss]ignature") as caught:
        open_storage(url).create("a", b"1")
    assert time.monotonic() - begin < USUAL
    assert "not-the-secret" not in str(caught.value)


AT_EXIT = """
import atexit, sys
from outlast_checkpoints.storage import open_storage
storage = open_storage(sys.argv[1])
storage.create("first", b"1")
atexit.register(lambda: storage.replace("last", b"2", durable=False))
"""


@pytest.mark.parametrize("store", ["seaweed", "azurite"], indirect=True)
def test_a_process_can_write_to_its_very_end(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has closed its pools of threads by then, in which the clients look up names."""
    url = use(store, monkeypatch)
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, url], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert open_storage(url).read("last") == b"2"


@pytest.mark.parametrize("store", ["seaweed", "moto"], indirect=True)
def test_a_large_file_is_uploaded_while_it_is_written(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage = open_storage(use(store, monkeypatch))
    data, half = random.Random(2).randbytes(40 << 20), 20 << 20
    local = tmp_path / "file"
    upload = storage.follow("large", local, len(data))
    assert upload is not None
    local.write_bytes(data[:half])
    upload.grown(half)
    give_up = time.monotonic() + 60
    while not storage.unfinished():  # it has begun
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert not storage.exists("large")
    local.write_bytes(data)
    upload.grown(len(data))
    assert upload.finish()
    assert storage.read("large") == data
    assert storage.unfinished() == []


def test_a_cancelled_upload_leaves_nothing(
    seaweed: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage = open_storage(use(seaweed, monkeypatch))
    local = tmp_path / "file"
    local.write_bytes(bytes(20 << 20))
    upload = storage.follow("large", local, 40 << 20)
    assert upload is not None
    upload.grown(20 << 20)
    upload.cancel()
    assert not upload.finish()
    assert not storage.exists("large")
    assert storage.unfinished() == []


def test_an_upload_that_fails_says_so(
    seaweed: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage = open_storage(use(seaweed, monkeypatch))
    upload = storage.follow("large", tmp_path / "missing", 40 << 20)
    assert upload is not None
    upload.grown(40 << 20)
    assert not upload.finish()
    assert not storage.exists("large")


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_small_files_are_not_followed(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage = open_storage(use(store, monkeypatch))
    assert storage.follow("small", tmp_path / "file", 1 << 20) is None

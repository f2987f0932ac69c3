"""The conformance suite on object stores, on real servers of them on loopback.

rclone's server is the one that takes preconditions and overlooks them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from checkpoints.errors import AlreadyExists
from checkpoints.storage import Storage, open_storage
from checkpoints.testing import StorageConformance
from tests.object_stores import ObjectStore

STORES = ("seaweed", "moto", "azurite", "gcs", "rclone")


@pytest.fixture(scope="module", params=STORES)
def opened(request: pytest.FixtureRequest) -> Iterator[Storage]:
    store: ObjectStore = request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield open_storage(store.folder())


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

    def test_a_careless_store_loses_nothing_to_one_supervisor(self, storage: Storage) -> None:
        """What is there is seen before it is written over, as long as nobody else writes."""
        storage.create("spec.json", b"first")
        for again in (b"first", b"second"):
            with pytest.raises(AlreadyExists):
                storage.create("spec.json", again)
        assert storage.read("spec.json") == b"first"

"""The network does not affect the training's random numbers."""

from __future__ import annotations

import random
import sys

import pytest
import tenacity

from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.private_rng import rng
from outlast_checkpoints.storage.retry_budget import patience
from tests.support.object_stores import free_ports, package, s3_environment


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket at a port where nothing listens."""
    package("s3fs")
    for name, value in s3_environment(*free_ports(1)).items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/job"


def test_retry_pauses_do_not_consume_random_numbers_of_the_training(nobody: str) -> None:
    storage = open_storage(nobody)
    before = random.getstate(), rng.getstate()
    with patience(1.0), pytest.raises(StorageError):
        storage.read("spec.json")
    assert random.getstate() == before[0]
    assert rng.getstate() != before[1]  # there was a pause


def test_every_client_uses_the_private_generator(nobody: str) -> None:
    open_storage(nobody).local_path("")
    assert tenacity.wait.random is rng
    import aiohttp.connector

    assert aiohttp.connector.random is rng
    assert sys.modules["random"] is random


def test_the_private_module_has_everything_of_random() -> None:
    """Azure's client creates its own generator for the pauses between parts."""
    assert isinstance(rng.Random(1), random.Random)
    assert isinstance(rng.SystemRandom().random(), float)
    with pytest.raises(AttributeError):
        rng.no_such_thing()

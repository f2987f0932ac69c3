"""An S3 server behind a certificate of its own and behind a proxy, as the environment says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage import fsspec_clients, open_storage
from outlast_checkpoints.storage.retry_budget import USUAL, patience
from tests.support import tls
from tests.support.object_stores import ObjectStore, free_ports, use

NAMES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tls.make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def url(
    moto: ObjectStore, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An unused folder of a server that only talks TLS."""
    url = use(moto, monkeypatch)
    for name in (*NAMES, "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    port = int(moto.environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with tls.behind_tls(port, *certificate) as secured:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{secured}")
        yield url


def works(url: str) -> None:
    storage = open_storage(url)
    storage.create("spec.json", b"1")
    assert storage.capabilities.exclusive_create
    with storage.stage("large") as path:
        path.write_bytes(b"2")
    assert storage.list("") == ["large", "spec.json"]
    storage.delete_tree("")


def test_a_certificate_is_trusted_by_name_only(
    url: str, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_clients, "RENEW_EVERY", 0.0)
    storage, began = open_storage(url), time.monotonic()
    with pytest.raises(StorageError, match=r"(?i)certificate"), patience(0):
        storage.read("a")
    assert time.monotonic() - began < USUAL
    # A training waits for the store meanwhile; the administrator names the certificate.
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    works(url)
    storage.create("a", b"1")
    assert storage.read("a") == b"1"


def test_a_proxy_is_used_except_for_what_no_proxy_names(
    url: str, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    told: list[str] = []
    with tls.proxy(told) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        works(url)
        assert told
        assert {one.rpartition(":")[0] for one in told} == {"CONNECT 127.0.0.1"}
        told.clear()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        works(url)
        assert told == []


def test_a_proxy_that_is_not_there_is_an_outage(
    url: str, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(StorageError, match=r"(?i)proxy"), patience(0):
        open_storage(url).read("a")

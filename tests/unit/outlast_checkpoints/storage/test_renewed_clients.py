"""Credentials, proxies and endpoints that change in mid-run are read again, by a new client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage import fsspec_clients, open_storage, retry, s3_parts
from outlast_checkpoints.storage.fsspec_clients import Client
from outlast_checkpoints.storage.retry_budget import patience
from tests.support.object_stores import free_ports, package
from tests.unit.outlast_checkpoints.storage.test_fsspec_clients import running

REFUSALS = {
    "ExpiredToken": 400,
    "InvalidAccessKeyId": 403,
    "AccessDenied": 403,
    "RequestExpired": 400,
}


class Guard(ThreadingHTTPServer):
    """A server that answers only requests with the newest session token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.token = "token-a"
        self.refusal = "ExpiredToken"
        self.refused = 0


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Guard

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        good = self.headers.get("X-Amz-Security-Token") == self.server.token
        self.server.refused += not good
        code = self.server.refusal
        content = b"" if self.command == "PUT" else b"content"
        if self.headers.get("Range"):
            content = content[:3]
        body = content if good else f"<Error><Code>{code}</Code></Error>".encode()
        self.send_response(200 if good else REFUSALS[code])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = _answer  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Guard]:
    package("s3fs")
    made = Guard()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with running(made) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield made


def write_token(folder: Path, token: str) -> None:
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = secrettest\n"
        f"aws_session_token = {token}\n"
    )


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_new_session_token_is_found(
    guard: Guard, tmp_path: Path, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_clients, "RENEW_EVERY", 0.0)
    write_token(tmp_path, "token-a")
    storage = open_storage("s3://bucket/job")
    assert storage.read("a") == b"content"
    guard.token, guard.refusal = "token-b", refusal
    monkeypatch.setattr(fsspec_clients, "RENEW_EVERY", 1e9)
    with pytest.raises(StorageError), patience(0):
        storage.read("a")
    assert guard.refused == 1, "a client is not renewed at every refusal"
    monkeypatch.setattr(fsspec_clients, "RENEW_EVERY", 0.0)
    write_token(tmp_path, "token-b")
    assert storage.read("a") == b"content", "of the file"
    guard.token = "token-c"
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
        monkeypatch.setenv(f"AWS_{name}", "token-c")
    storage.replace("a", b"content")  # a write, by the environment
    with storage.stage("b", over=True) as path:
        path.write_bytes(b"content")
    assert len(storage._client._opened) == 1  # type: ignore[attr-defined]


def test_transfers_in_parts_find_a_new_session_token(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_clients, "RENEW_EVERY", 0.0)
    monkeypatch.setattr(s3_parts, "PART_SIZE", 3)
    write_token(tmp_path, "token-a")
    storage = open_storage("s3://bucket/job")
    buffer = memoryview(bytearray(6))
    for token in ("token-a", "token-b"):
        guard.token = token
        write_token(tmp_path, token)
        guard.refused = 0
        assert storage.read_into("a", buffer) == 6
        assert buffer == b"concon"  # the server answers each range with its first bytes
        assert bool(guard.refused) is (token == "token-b")


def test_a_new_endpoint_is_found(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_clients, "RENEW_EVERY", 0.0)
    write_token(tmp_path, "token-a")
    there = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    storage = open_storage("s3://bucket/job")
    with pytest.raises(StorageError), patience(0):
        storage.read("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", there)
    with patience(0):
        assert storage.read("a") == b"content"


def test_a_given_file_system_is_kept() -> None:
    assert not Client("memory://x").renew()
    assert not Client("s3://x", filesystem=object()).renew()


def test_which_errors_new_credentials_may_end() -> None:
    expired = OSError("expired")
    expired.response = {"Error": {"Code": "ExpiredToken"}}  # type: ignore[attr-defined]
    refresh = type("RefreshError", (Exception,), {})("invalid_grant")
    for error in (PermissionError("no"), OSError("Forbidden: b/o"), expired, refresh):
        assert retry.was_unauthorised(error)
    for other in (FileNotFoundError("a"), TimeoutError(), OSError("reset"), ValueError()):
        assert not retry.was_unauthorised(other)
    assert retry.had_no_answer(ConnectionResetError())
    assert not retry.had_no_answer(FileNotFoundError())

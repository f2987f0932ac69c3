"""Storage clients send one request per call; only our code retries.

The server is scripted. The contract tests use real servers.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlast import exit_codes
from outlast.cli import main
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.errors import (
    AlreadyExists,
    NotFound,
    OutlastError,
    ReadOnly,
    StorageError,
    UsageError,
)
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.fsspec_clients import Client
from outlast_checkpoints.storage.remote import FsspecStorage
from outlast_checkpoints.storage.retry import is_transient, status_of
from outlast_checkpoints.storage.retry_budget import patience
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support import gcs_double
from tests.support.object_stores import AZURITE_ACCOUNT, AZURITE_KEY, package, s3_environment

HANG_UP = 0  # an answer: none
SCHEMES = ("s3", "gs", "az")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "http": "aiohttp"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, body))
        statuses = self.server.statuses
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status == HANG_UP:
            self.close_connection = True
            return
        content = self.server.content if (self.command, status) == ("GET", 200) else b""
        part = bool(content) and self.headers.get("x-ms-range")
        self.send_response(206 if part else status)
        self.send_header("Content-Length", str(len(content)))
        if part:
            self.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
        if status == 409:
            self.send_header("x-ms-error-code", "BlobAlreadyExists")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A server that answers with the given statuses and repeats the last. HANG_UP: no answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = [200]
        self.content = b"content"
        self.requests: list[tuple[str, str, bytes]] = []

    def handle_error(self, *args: Any) -> None:
        """Ignore a client that has hung up."""


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    with running(made) as url:
        account = f"AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY}"
        environment = {
            **s3_environment(made.server_address[1]),
            "STORAGE_EMULATOR_HOST": url,
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={url}/{AZURITE_ACCOUNT};"
            ),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def storage(server: Server, scheme: str) -> FsspecStorage:
    package(PACKAGES[scheme])
    url = f"{scheme}://bucket/job"
    client = Client(url)
    client.exclusive = True
    return FsspecStorage(client, client.base(), url)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("status", [429, 500, 503, HANG_UP])
def test_a_call_is_one_request_unless_it_is_retried(
    storage: FsspecStorage, server: Server, status: int
) -> None:
    server.statuses = [status]
    with pytest.raises(Exception) as caught:  # noqa: PT011  (each client has its own)
        storage._client.files.cat_file("bucket/job/x")
    assert len(server.requests) == 1
    assert is_transient(caught.value)
    server.requests.clear()
    with patience(0.0), pytest.raises(StorageError):
        storage.read("x")
    assert len(server.requests) == 1
    server.requests.clear()
    server.statuses = [status, status, 200]
    assert storage.read("x") == b"content"
    assert len(server.requests) == 3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("status", [400, 403, 404, 501])
def test_a_permanent_error_is_one_request(
    storage: FsspecStorage, server: Server, status: int
) -> None:
    server.statuses = [status]
    with pytest.raises(StorageError) as caught:
        storage.read("x")
    assert len(server.requests) == 1
    assert isinstance(caught.value, NotFound) == (status == 404)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_missing_bucket_is_reported_at_the_first_write(
    storage: FsspecStorage, server: Server
) -> None:
    server.statuses = [404]
    with pytest.raises(StorageError, match="the bucket does not exist") as caught:
        storage.create("x", b"1")
    assert not isinstance(caught.value, NotFound)
    assert len(server.requests) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_create_whose_answer_was_lost_is_recognized_by_its_content(
    storage: FsspecStorage, server: Server, scheme: str
) -> None:
    refusal = 409 if scheme == "az" else 412
    server.content = b"mine"
    server.statuses = [HANG_UP, refusal, 200]
    storage.create("x", b"mine")
    server.statuses = [HANG_UP, refusal, 200]
    with pytest.raises(AlreadyExists):
        storage.create("x", b"another")
    # Nothing was lost: it is somebody else's, whatever it holds.
    server.statuses = [refusal, 200]
    with pytest.raises(AlreadyExists):
        storage.create("x", b"mine")


def test_conflicting_writes_are_retried(server: Server) -> None:
    """S3 answers a condition with 409 while another request for the same key is under way."""
    package("s3fs")
    client = Client("s3://bucket/job")
    client.exclusive = True
    storage = FsspecStorage(client, client.base(), client.url)
    server.statuses = [409, 409, 200]
    storage.create("x", b"1")
    assert [request[0] for request in server.requests] == ["PUT"] * 3


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_resumable_upload_arrives_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package("gcsfs")
    with gcs_double.serve("bucket") as double:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", double.url)
        storage = open_storage("gs://bucket/job")
        data = np.random.default_rng(1).bytes(6 << 20)  # a resumable upload from 5 MiB on
        with storage.stage("large") as path:
            path.write_bytes(data)
        assert storage.read("large") == data
        assert not double.uploads
        with storage.fetch("large") as path:
            assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("url", "missing", "extra"),
    [
        ("s3://bucket/jobs", "s3fs", "s3"),
        ("gs://bucket/jobs", "gcsfs", "gcs"),
        ("az://container/jobs", "adlfs", "azure"),
        ("abfs://container/jobs", "adlfs", "azure"),
        ("https://host/jobs", "aiohttp", "http"),
    ],
)
def test_a_missing_client_is_named_with_its_extra(
    url: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError) as caught:
        open_storage(url)
    assert f"needs {missing}, which is not installed" in str(caught.value)
    assert f"pip install 'outlast[{extra}]'" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter22@bucket/jobs",
        "gs://me:hunter22@bucket/jobs",
        "az://container/jobs?sv=2024&sig=hunter22",
        "abfs://me:hunter22@account.dfs.core.windows.net/jobs",
        "https://me:hunter22@host/jobs",
        "https://host/jobs?token=hunter22",
    ],
)
def test_a_url_with_credentials_is_refused_without_showing_them(url: str) -> None:
    with pytest.raises(UsageError, match="carries credentials") as caught:
        open_storage(url)
    assert "hunter22" not in str(caught.value)


def test_azure_without_any_account_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    package("adlfs")
    for name in list(os.environ):
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_ANON", "true")
    with pytest.raises(UsageError, match="AZURE_STORAGE_CONNECTION_STRING"):
        open_storage("az://container/jobs")


def test_a_forked_process_has_its_own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    package("gcsfs")
    with gcs_double.serve("bucket") as double:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", double.url)
        storage = open_storage("gs://bucket/job").sub("x")
        storage.create("spec.json", b"1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads
            child = os.fork()
        if child == 0:
            code = 1
            with suppress(BaseException):
                assert storage.read("spec.json") == b"1"
                storage.create("of the child", b"2")
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert storage.read("of the child") == b"2"


@pytest.fixture
def on_the_web(tmp_path: Path) -> Iterator[tuple[str, Storage]]:
    """The URL of a folder that a plain web server shows, and the folder."""
    package("aiohttp")

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Quiet)) as url:
        yield f"{url}/jobs", open_storage(tmp_path / "jobs")


def test_a_job_can_be_read_from_the_web(on_the_web: tuple[str, Storage]) -> None:
    url, folder = on_the_web
    job = folder.sub("mlp")
    store = CheckpointStore(job, attempt=1)
    store.begin()
    snapshot = Snapshot(
        Progress(phase=0, step=3, epoch=0, batch=3),
        files={"model.weights.h5": ArrayFile({"layers/dense/vars/0": np.arange(6.0)})},
    )
    saved = store.save(snapshot, reason="step")
    job.create("journal/00000001.json", b"0123456789")

    web = open_storage(url)
    assert web.list("") == ["mlp"]
    assert web.exists("mlp/journal/00000001.json")
    assert not web.exists("mlp/journal/00000002.json")
    assert web.list("mlp/none") == []
    there = web.sub("mlp")
    assert there.list("") == ["attempts", "checkpoints", "journal"]
    assert there.list("journal") == ["00000001.json"]
    assert there.read_range("journal/00000001.json", 2, 5) == b"234"
    assert there.read_range("journal/00000001.json", 7, None) == b"789"
    found, damages = CheckpointStore(there).latest()
    assert found is not None
    assert (found.checkpoint, damages) == (saved.checkpoint, [])
    loaded = CheckpointStore(there).load(found.id)
    assert loaded.files["model.weights.h5"]["layers/dense/vars/0"].tolist() == list(range(6))


def test_the_command_line_reads_jobs_from_the_web(
    on_the_web: tuple[str, Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = on_the_web
    submit(folder, JobSpec(job="mlp", script="train.py"))

    def say(code: int, *words: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(list(words))
        said = capsys.readouterr()
        assert left.value.code == code, said.err
        return said.out + said.err

    assert "mlp  pending" in say(exit_codes.DONE, "list", "--root", url)
    assert '"state": "pending"' in say(exit_codes.DONE, "status", "--json", f"{url}/mlp")
    assert "http:// is read-only" in say(exit_codes.USAGE, "stop", f"{url}/mlp")


def test_nothing_can_be_written_to_the_web(on_the_web: tuple[str, Storage]) -> None:
    web = open_storage(on_the_web[0])

    def stage() -> None:
        with web.stage("x"):
            pass

    for write in (
        lambda: web.create("x", b"1"),
        lambda: web.replace("x", b"1"),
        lambda: web.delete("x"),
        lambda: web.delete_tree("x"),
        stage,
    ):
        with pytest.raises(ReadOnly, match="http:// is read-only") as caught:
            write()
        assert isinstance(caught.value, OutlastError)
    assert not web.capabilities.exclusive_create


def test_a_failing_web_server_is_not_a_missing_file(server: Server) -> None:
    package("aiohttp")
    web = open_storage(f"http://127.0.0.1:{server.server_address[1]}/jobs")
    server.statuses = [500]
    with patience(0.0), pytest.raises(StorageError) as caught:
        web.exists("mlp/spec.json")
    assert not isinstance(caught.value, NotFound)
    server.statuses = [404]
    assert not web.exists("mlp/spec.json")


def test_the_status_is_found_in_wrapped_errors() -> None:
    class Answer(Exception):
        status_code = 503

    wrapped = OSError("wrapped")
    wrapped.__cause__ = Answer()
    assert status_of(wrapped) == 503
    assert is_transient(wrapped)
    assert status_of(OSError("none")) is None

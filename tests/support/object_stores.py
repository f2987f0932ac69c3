"""Object stores for tests: real servers on loopback, each started once per test process.

A server starts when a test first needs it. At the end it is killed and its data deleted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import gcs_double

# Where .ci/run puts what comes from npm; it is thrown away with the virtual environment.
NODE_TOOLS = Path(sys.prefix) / "node" / "node_modules" / ".bin"
PATIENCE = 120  # seconds that a server may take to come up; it takes a few
KEYS = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "secrettest"}
# Azurite's own, published account: it has no other unless told so.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@dataclass(frozen=True)
class ObjectStore:
    """A running server.

    bucket: the URL of a bucket that is there. environment: what a client needs to find it. pid: of
    its process, None where it is a thread of this one.
    """

    bucket: str
    environment: Mapping[str, str]
    pid: int | None

    def folder(self) -> str:
        """Return the URL of an unused folder."""
        return f"{self.bucket}/{uuid.uuid4().hex[:12]}"


def use(store: ObjectStore, patch: pytest.MonkeyPatch) -> str:
    """Set the environment for a store's clients; return the URL of a new folder there."""
    for name, value in store.environment.items():
        patch.setenv(name, value)
    return store.folder()


def free_ports(count: int) -> list[int]:
    """Return free loopback ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def server(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a folder until the block is left. Its output goes to "server.log"."""
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()  # its data goes away with the folder: nothing is worth an orderly end
        process.wait()


def until_ready(process: subprocess.Popen[bytes], folder: Path, ready: Callable[[], Any]) -> None:
    """Wait until `ready` no longer raises."""
    give_up = time.monotonic() + PATIENCE
    while (problem := _problem(ready)) is not None:
        words = (folder / "server.log").read_text(errors="replace")[-2000:]
        assert process.poll() is None, f"it ended with {process.returncode}:\n{words}"
        assert time.monotonic() < give_up, f"it does not come up: {problem}\n{words}"
        time.sleep(0.1)


def _problem(ready: Callable[[], Any]) -> Exception | None:
    try:
        ready()
    except Exception as error:  # noqa: BLE001  (whatever a server says that comes up)
        return error
    return None


def make_bucket(environment: Mapping[str, str], name: str) -> None:
    """Create an S3 bucket and check that it accepts objects."""
    import botocore.config
    import botocore.session

    config = botocore.config.Config(
        retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30
    )
    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
        config=config,
    )
    try:
        if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=name)
        client.put_object(Bucket=name, Key="ready", Body=b"")
        client.delete_object(Bucket=name, Key="ready")
    finally:
        client.close()


def s3_environment(port: int) -> dict[str, str]:
    return {
        **KEYS,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        # Clients use neither a cloud's metadata service nor the developer's profiles.
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def run_seaweed(folder: Path, *, volumes: int = 20) -> Iterator[ObjectStore]:
    """SeaweedFS, a real S3 server with signatures, preconditions and multipart uploads.

    volumes: how many of 64 MB it may have. Those of deleted files are not used again for a while.
    """
    s3, *others = free_ports(8)
    identity = {
        "name": "admin",
        "credentials": [
            {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
        ],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        tool("weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.volumeSizeLimitMB=64", f"-volume.max={volumes}", "-master.telemetry=false",
        "-filer", f"-filer.localSocket={folder}/filer.sock",
        "-s3", f"-s3.config={folder}/s3.json", f"-s3.localSocket={folder}/s3.sock",
        f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    sockets = []
    for role in ("s3", "master", "volume", "filer"):
        grpc = others.pop()
        command += [f"-{role}.port.grpc={grpc}"]
        command += [] if role == "s3" else [f"-{role}.port={others.pop()}"]
        sockets.append(Path(f"/tmp/seaweedfs-{role}-grpc-{grpc}.sock"))  # wherever it is told
    environment = s3_environment(s3)
    try:
        with server(command, folder) as process:
            until_ready(process, folder, lambda: make_bucket(environment, "bucket"))
            yield ObjectStore("s3://bucket", environment, process.pid)
    finally:
        for left in sockets:
            left.unlink(missing_ok=True)


@contextmanager
def run_moto(folder: Path) -> Iterator[ObjectStore]:
    """Moto's server, a fast in-memory double of S3 with preconditions but no signatures."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = s3_environment(port)
    with server(command, folder) as process:
        until_ready(process, folder, lambda: make_bucket(environment, "bucket"))
        yield ObjectStore("s3://bucket", environment, process.pid)


@contextmanager
def run_rclone(folder: Path) -> Iterator[ObjectStore]:
    """rclone's S3 server, which accepts preconditions but ignores them."""
    (port,) = free_ports(1)
    (folder / "buckets").mkdir()
    keys = ",".join(KEYS.values())
    command = [
        tool("rclone"), "serve", "s3", f"--addr=127.0.0.1:{port}", f"--auth-key={keys}",
        f"--config={os.devnull}", "--vfs-cache-mode=off", str(folder / "buckets"),
    ]  # fmt: skip
    environment = s3_environment(port)
    with server(command, folder) as process:
        until_ready(process, folder, lambda: make_bucket(environment, "bucket"))
        yield ObjectStore("s3://bucket", environment, process.pid)


@contextmanager
def run_azurite(folder: Path) -> Iterator[ObjectStore]:
    """Azurite, Microsoft's own emulator of Azure's blob storage."""
    (port,) = free_ports(1)
    (folder / "data").mkdir()
    command = [
        tool("azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", str(port),
        "--location", str(folder / "data"), "--silent", "--skipApiVersionCheck",
        "--disableTelemetry",
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}"
    environment = {
        "AZURE_STORAGE_CONNECTION_STRING": (
            f"DefaultEndpointsProtocol=http;AccountName={AZURITE_ACCOUNT};"
            f"AccountKey={AZURITE_KEY};BlobEndpoint={endpoint};"
        )
    }

    def make_container() -> None:
        from azure.core.exceptions import ResourceExistsError
        from azure.storage.blob import BlobServiceClient

        with (
            BlobServiceClient.from_connection_string(
                environment["AZURE_STORAGE_CONNECTION_STRING"], retry_total=0
            ) as client,
            suppress(ResourceExistsError),
        ):
            client.create_container("bucket")

    with server(command, folder) as process:
        until_ready(process, folder, make_container)
        yield ObjectStore("az://bucket", environment, process.pid)


@contextmanager
def run_gcs() -> Iterator[ObjectStore]:
    """Our double of Google Cloud Storage, in a thread of this process."""
    with gcs_double.serve("bucket") as double:
        yield ObjectStore("gs://bucket", {"STORAGE_EMULATOR_HOST": double.url}, None)


def tool(name: str) -> str:
    """Return the path of a server's program. Skip or fail (see conftest) if it is missing."""
    for folder in (Path(sys.executable).parent, NODE_TOOLS):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        lack(f"{name} is not installed (.ci/run installs what the tests need)")
    return str(found)


def package(name: str) -> None:
    """Skip (or fail) if an optional package is not installed."""
    if importlib.util.find_spec(name) is None:
        lack(f"{name} is not installed (make install installs it)")


def lack(reason: str) -> None:
    if os.environ.get("OUTLAST_REQUIRE") == "all":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


_NEEDED = {"seaweed": "s3fs", "moto": "moto", "rclone": "s3fs", "azurite": "adlfs", "gcs": "gcsfs"}


def _fixture(name: str, run: Callable[..., AbstractContextManager[ObjectStore]]) -> Any:
    @pytest.fixture(scope="session", name=name)
    def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
        package(_NEEDED[name])
        folder = [] if name == "gcs" else [tmp_path_factory.mktemp(name)]
        with run(*folder) as found:
            yield found

    store.__doc__ = run.__doc__
    return store


seaweed = _fixture("seaweed", run_seaweed)
moto = _fixture("moto", run_moto)
rclone = _fixture("rclone", run_rclone)
azurite = _fixture("azurite", run_azurite)
gcs = _fixture("gcs", run_gcs)

"""`make nfs`: a real NFS server on loopback, and what jobs do on it.

    python -m tests.testbeds.nfs.check

Needs root, nfs-ganesha with its VFS module and rpcbind. The client is the kernel's; where the
kernel has none it is `fuse-nfs` (libnfs), if that is on the PATH. Everything runs in a network
namespace of its own, so no port of this machine is opened. On the mount: the conformance suite of
storages, processes that race for the same claims, and a training. Its attempts are killed, then
the server is killed and started again. Its end is compared with that of a twin in a folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from outlast.job import heartbeat
from outlast_checkpoints.errors import AlreadyExists, OutlastError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance.jobs import PATH

PORT, MOUNT_PORT = 22049, 22048  # in the namespace
RACERS, CLAIMS = 4, 100
KILLS = 2
CONFIG = """
NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = {port}; MNT_Port = {mount}; Enable_NLM = false;
  Enable_RQUOTA = false; }}
EXPORT {{ Export_Id = 1; Path = {export}; Pseudo = /export; Access_Type = RW;
  Squash = No_Root_Squash; SecType = sys; Transports = TCP; FSAL {{ Name = VFS; }} }}
"""
SCRIPT = """
import time

import numpy as np

from outlast import Loop

weights = np.zeros(1000)
for step in (loop := Loop({"w": weights}, None, epochs=6, steps_per_epoch=50, verbose=0)):
    weights += np.random.default_rng(step).standard_normal(1000) * (1 + weights[0] % 1)
    time.sleep(0.05)
    loop.log(sum=float(weights.sum()))
"""


class Server:
    """An NFS server in its network namespace. It can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.export = folder / "export"
        self.export.mkdir()
        config = CONFIG.format(port=PORT, mount=MOUNT_PORT, export=self.export)
        (folder / "ganesha.conf").write_text(config)
        holder = "ip link set lo up; exec sleep infinity"
        self.holder = subprocess.Popen(["unshare", "-n", "sh", "-c", holder])
        time.sleep(0.5)
        self.rpcbind = self.spawn("rpcbind", "-f", "-w")
        time.sleep(0.5)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def spawn(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in the namespace."""
        inside = ["nsenter", "-t", str(self.holder.pid), "-n", *command]
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(inside, stdout=log, stderr=log)

    def start(self) -> None:
        names = {"-f": "ganesha.conf", "-L": "ganesha.log", "-p": "ganesha.pid"}
        options = [part for flag, name in names.items() for part in (flag, f"{self.folder}/{name}")]
        self.process = self.spawn("ganesha.nfsd", "-F", *options)
        time.sleep(5)  # its grace

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.kill()
        for process in (self.rpcbind, self.holder):
            process.kill()
            process.wait()


@contextmanager
def mounted(server: Server, folder: Path) -> Iterator[str]:
    """Mount the export; yield which client does it."""
    folder.mkdir()
    options = f"vers=3,tcp,port={PORT},mountport={MOUNT_PORT},nolock,soft"
    kernel = ["mount", "-t", "nfs", "-o", options, f"127.0.0.1:{server.export}", str(folder)]
    if "nfs" in Path("/proc/filesystems").read_text().split():
        client, process = "the kernel's client", server.spawn(*kernel)
    elif shutil.which("fuse-nfs"):
        url = f"nfs://127.0.0.1{server.export}?version=3&nfsport={PORT}&mountport={MOUNT_PORT}"
        client = "fuse-nfs"
        process = server.spawn("fuse-nfs", "-n", url, "-m", str(folder), "-q", "-Q")
    else:
        sys.exit("the kernel has no NFS client, and fuse-nfs is not on the PATH")
    code = process.wait(60)
    if code or not os.path.ismount(folder):
        sys.exit(f"the mount ended with {code}: {(server.folder / 'server.log').read_text()}")
    try:
        yield client
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def claim_all(root: str, number: int) -> int:
    """Create what others create at the same time; return how often this process was first."""
    storage, won = open_storage(root), 0
    for claim in range(CLAIMS):
        with suppress(AlreadyExists):
            storage.create(f"journal/{claim:08d}.json", str(number).encode())
            won += 1
    return won


def race(mount: Path) -> None:
    root = str(mount / "race")
    assert open_storage(root).capabilities.exclusive_create
    with ProcessPoolExecutor(RACERS) as pool:
        won = list(pool.map(claim_all, [root] * RACERS, range(RACERS)))
    print(f"{CLAIMS} claims, won by {RACERS} processes: {won}", flush=True)
    assert sum(won) == CLAIMS


def conform(mount: Path, folder: Path) -> None:
    """Run the conformance suite that outlast_checkpoints ships."""
    test = folder / "test_nfs.py"
    test.write_text(
        "import uuid\nimport pytest\nfrom outlast_checkpoints.storage import open_storage\n"
        "from outlast_checkpoints.testing import StorageConformance\n\n"
        "class TestNfs(StorageConformance):\n    @pytest.fixture\n    def storage(self):\n"
        f"        return open_storage(f'{mount}/{{uuid.uuid4().hex}}')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, str(test)]
    subprocess.run(command, check=True, cwd=folder)


def training(script: Path, root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "outlast", "run", "--name", "job", "--seed", "7", "--root"]
    with (script.parent / f"{root.name}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, str(root), "--save-every", "10", str(script)],
            env={**os.environ, "PYTHONPATH": PATH}, stdout=log, stderr=log,
        )  # fmt: skip


def killed_training(server: Server, script: Path, root: Path) -> None:
    """Train; kill attempts, then the server while an attempt trains."""
    process, storage = training(script, root), open_storage(root / "job")
    for number in range(1, KILLS + 2):
        while (beat := _beat(storage, number)) is None or beat.step % 300 < 20:
            assert process.poll() is None, f"it ended with {process.returncode}"
            time.sleep(0.2)
        if number <= KILLS:
            os.kill(beat.pid, signal.SIGKILL)
        else:
            server.kill()
            time.sleep(4)
            server.start()
    assert process.wait(300) == 0


def _beat(storage: object, attempt: int) -> heartbeat.Beat | None:
    with suppress(OutlastError):
        return heartbeat.read(storage, attempt)  # type: ignore[arg-type]
    return None


def end_of(root: Path) -> bytes:
    store = CheckpointStore(open_storage(root / "job"))
    last = store.ids()[-1]
    assert store.verify(last) == []
    return b"".join(
        name.encode() + array.tobytes()
        for file, arrays in sorted(store.load(last).files.items())
        for name, array in sorted(arrays.items())
    )


def main() -> None:
    missing = [name for name in ("ganesha.nfsd", "rpcbind", "nsenter") if not shutil.which(name)]
    if missing or os.geteuid():
        sys.exit(f"it needs root, and {', '.join(missing) or 'nothing else'}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outlast-nfs-")))
        server = Server(folder)
        stack.callback(server.close)
        mount = folder / "mount"
        print(f"mounted by {stack.enter_context(mounted(server, mount))}", flush=True)
        conform(mount, folder)
        race(mount)
        script = folder / "loop.py"
        script.write_text(SCRIPT)
        killed_training(server, script, mount / "jobs")
        assert training(script, folder / "twin").wait(300) == 0
        same = end_of(mount / "jobs") == end_of(folder / "twin")
        print(f"{KILLS} attempts and the server killed: the end is {'the same' if same else 'NOT'}")
        if not same:
            sys.exit(1)


if __name__ == "__main__":
    main()

"""A real Slurm on this machine: one controller, several nodes, all on loopback."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
START_WITHIN = 60.0
CREDENTIAL_SECONDS = 2.5

CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=requeue_delay=1,sched_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=300
JobRequeue=1
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=low Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes={names} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""  # noqa: E501
NODE = "NodeName={name} NodeAddr=127.0.0.1 NodeHostname=localhost Port={port} CPUs=2 State=UNKNOWN"


class Cluster:
    """A running cluster. `environment` is what its commands and `outlast` need."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        for name in ("state", "munge"):
            (self.folder / name).mkdir()
        ports = _free_ports(1 + len(self.names))
        nodes = [
            NODE.format(name=name, port=port)
            for name, port in zip(self.names, ports[1:], strict=True)
        ]
        text = CONF.format(
            folder=self.folder,
            controller=ports[0],
            nodes="\n".join(nodes),
            names=",".join(self.names),
        )
        Path(self.environment["SLURM_CONF"]).write_text(text)
        self._munge()
        self._run("slurmctld", "slurmctld", "-D", "-c")
        for name in self.names:
            self.start_node(name)
        self.wait(lambda: self.squeue_nodes().count("idle") == len(self.names), "idle nodes")

    def start_node(self, name: str) -> None:
        self._run(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon at once. The processes of its jobs keep running."""
        daemon = self._processes.pop(name)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()

    def squeue_nodes(self) -> list[str]:
        done = self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%T", check=False)
        return done.split()

    def call(self, *command: str, check: bool = True) -> str:
        """Return what a command prints, Slurm's or any other."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def show(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        words = self.call("scontrol", "show", "job", "-o", job, check=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_now(self, job: str, restart: int) -> None:
        """Wait until a job was restarted `restart` times, without Slurm's delay of two minutes."""

        def started() -> bool:
            found = self.show(job)
            state = found.get("JobState")
            if state == "PENDING" and found.get("Reason") == "BeginTime":
                waits.append(time.monotonic())
                # Its credential of before is revoked to the second, one of the same is as well.
                if waits[-1] - waits[0] >= CREDENTIAL_SECONDS:
                    self.call("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)
            return int(found.get("Restarts", "0")) >= restart and state in ("RUNNING", "COMPLETED")

        waits: list[float] = []
        self.wait(started, f"start {restart} of {job}")

    def wait(self, holds: Callable[[], object], what: str, within: float = START_WITHIN) -> None:
        until = time.monotonic() + within
        while not holds():
            if time.monotonic() > until:
                queue = self.call("squeue", check=False)
                log = (self.folder / "slurmctld.log").read_text()[-3000:]
                raise TimeoutError(f"no {what} within {within} s\n{queue}\n{log}")
            time.sleep(0.2)

    def stop(self) -> None:
        self.call("scancel", "--full", "-s", "KILL", "-u", "root", check=False)
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _munge(self) -> None:
        """Start munged, which must run as the owner of its key."""
        user, folder = pwd.getpwnam("munge"), self.folder / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for path in (folder, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        self._run(
            "munged",
            *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"),
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--log-file={folder}/log"),
            f"--seed-file={folder}/seed",
        )
        self.wait((folder / "socket").exists, "munge socket")
        (self.folder / "munge.socket").symlink_to(folder / "socket")

    def _run(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )


def demand(require: Callable[[str], str]) -> None:
    """Skip if no cluster can be started here, or fail if everything is required."""
    for tool in NEEDED:
        require(tool)
    if os.geteuid() != 0:
        pytest.skip("only root can start slurmd")


@contextmanager
def running(nodes: int = 2) -> Iterator[Cluster]:
    """Run a cluster until the block is left, and remove everything of it."""
    # Its sockets need a short path, and its daemons one that everybody may enter.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder), nodes)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _free_ports(count: int) -> list[int]:
    held = []
    try:
        for _ in range(count):
            one = socket.socket()
            one.bind(("127.0.0.1", 0))
            held.append(one)
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()

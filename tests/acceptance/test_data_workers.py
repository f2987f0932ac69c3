"""Signals and worker processes of training data: real processes in a session of their own.

What ends a training politely often goes to every process of it: Slurm's scancel, a container that
stops, Ctrl-C on a terminal. Workers that ended of it would take the last steps along.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from outlast import exit_codes
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance.jobs import TOP

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

PATIENCE_S = 120  # only a failure takes that long
SCRIPT = Path(__file__).parent / "scripts" / "workers.py"
HELD_AT = 3  # steps done when the signal comes


class Trainings:
    """The trainings of scripts/workers.py, each a process that leads a session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output.log"
        self.sessions: list[int] = []
        with self.output.open("wb") as output:
            self.server = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(folder), str(HELD_AT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TOP)},
            )

    def start(self, kind: str, name: str) -> int:
        """Start a training on a kind of data; return its process id once it is within a step."""
        self._tell(f"{kind} {name}\n")
        pid = int(self._hear())
        self.sessions.append(pid)
        assert self._hear() == "held", self.said()
        return pid

    def code(self) -> int:
        """Return the exit code of the training that was started last."""
        return int(self._hear())

    def told(self, name: str) -> str:
        return (self.folder / f"{name}.told").read_text()

    def step(self, name: str) -> int | None:
        """Return the step of the newest checkpoint."""
        newest, _ = CheckpointStore(open_storage(self.folder / name)).latest()
        return None if newest is None else newest.progress.step

    def left(self, session: int) -> list[psutil.Process]:
        """Return what is left of a session, once it is nothing or patience has ended."""
        until = time.monotonic() + PATIENCE_S / 4
        while (found := in_session(session)) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def close(self) -> None:
        for session in self.sessions:
            for process in in_session(session):
                process.kill()
        with self.server as server:
            assert server.stdin is not None
            server.stdin.close()

    def said(self) -> str:
        return self.output.read_text(errors="replace")[-3000:]

    def _tell(self, line: str) -> None:
        assert self.server.stdin is not None
        self.server.stdin.write(line)
        self.server.stdin.flush()

    def _hear(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()


def in_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    trainings = Trainings(tmp_path_factory.mktemp("workers"))
    yield trainings
    trainings.close()


TERM, INT = signal.SIGTERM, signal.SIGINT
# New interpreters take their time: one signal shows it for those.
SIGNALS = {
    "torch": (TERM, INT),
    "torch-spawn": (TERM,),
    "torch-stuck": (TERM,),
    "pydataset": (TERM, INT),
    "pydataset-validation": (TERM,),
    "torch-validation": (TERM,),
    "grain": (TERM,),
}


@pytest.mark.parametrize(
    ("kind", "signum"),
    [
        pytest.param(kind, signum, id=f"{kind}-{signum.name}")
        for kind, signums in SIGNALS.items()
        for signum in signums
    ],
)
def test_a_signal_to_all_processes_saves_and_leaves(
    trainings: Trainings,
    require_package: Callable[[str], None],
    kind: str,
    signum: signal.Signals,
) -> None:
    package = kind.partition("-")[0]
    if package != "pydataset":
        require_package(package)
    name = f"{kind}-{signum.name}"
    pid = trainings.start(kind, name)
    workers = len(in_session(pid)) - 1
    assert workers >= 2
    os.killpg(pid, signum)
    code = trainings.code()
    # A bare script that is interrupted ends as any script does, its state saved.
    wanted = exit_codes.RESUMABLE if signum == signal.SIGTERM else exit_codes.INTERRUPTED
    assert code == wanted, trainings.said()
    assert trainings.step(name) == HELD_AT
    assert trainings.left(pid) == []


@pytest.mark.parametrize("kind", ["pydataset", "torch"])
def test_workers_end_when_the_training_is_killed(
    trainings: Trainings, require_package: Callable[[str], None], kind: str
) -> None:
    """Grain's do not, with or without Outlast; a supervisor ends them."""
    if kind == "torch":
        require_package(kind)
    pid = trainings.start(kind, f"{kind}-killed")
    os.kill(pid, signal.SIGKILL)
    assert trainings.code() == -signal.SIGKILL
    assert trainings.left(pid) == []


@pytest.mark.parametrize("kind", ["pydataset", "pydataset-validation"])
def test_a_worker_process_that_is_killed_ends_the_attempt(trainings: Trainings, kind: str) -> None:
    name = f"{kind}-fatal"
    pid = trainings.start(kind, name)
    victim = next(process for process in in_session(pid) if process.pid != pid)
    victim.kill()
    os.kill(pid, signal.SIGUSR2)  # lets it go on
    assert trainings.code() == 1, trainings.said()
    assert f"process {victim.pid} was killed by SIGKILL" in trainings.told(name)
    assert trainings.left(pid) == []

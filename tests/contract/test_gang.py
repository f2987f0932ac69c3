"""The seams support a gang: several processes that are one attempt, here three local ones."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from outlast.backends.base import Exit, Handle
from outlast.backends.local import LocalBackend
from outlast.errors import BackendFailed, SpecInvalid
from outlast.job import heartbeat
from outlast.job.events import Claimed, Ended, Launched
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast.job.outcome import Outcome
from outlast.job.preload import Preload
from outlast.job.rank import Rank
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast.supervisor.supervisor import Supervisor
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

SIZE = 3
PATIENCE = 120.0

# Each says who it is; one of them begins; all train until they are told that it is enough.
SCRIPT = """
import os, pathlib, time
from outlast_checkpoints.errors import Superseded
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast.attempt import context

ctx = context.current()
here = pathlib.Path(__file__).parent
me = f"{ctx.attempt}-{os.environ['RANK']}-{os.environ['WORLD_SIZE']}"
try:
    CheckpointStore(ctx.storage, attempt=ctx.attempt, fence=ctx.fence).begin()
    (here / f"began-{me}").touch()
except Superseded:
    pass
(here / f".{me}").write_text(str(os.getpid()))
(here / f".{me}").rename(here / f"rank-{me}")
while not (here / "done").exists():
    ctx.status.tick()
    time.sleep(0.01)
    if ctx.stop.requested:
        ctx.leave()
"""


class Gang:
    """A backend whose attempts are several processes: one handle, one end, one output.

    The first that ends badly ends all, and how it ended is how the attempt did; one that leaves
    with its state saved has the others asked to do the same.
    """

    def __init__(self, size: int = SIZE, *, fails_at: int | None = None) -> None:
        self._local, self._size, self._fails_at = LocalBackend(), size, fails_at
        self._first_bad: dict[int, Exit] = {}

    def launch(self, spec: JobSpec, storage: Storage, attempt: int) -> Handle:
        members: list[Handle] = []
        try:
            for number in range(self._size):
                said = Rank(number=number, of=self._size).variables(local=number)
                python = "/no-such-python" if number == self._fails_at else spec.python
                own = msgspec.structs.replace(spec, env={**spec.env, **said}, python=python)
                members.append(self._local.launch(own, storage, attempt))
        except (BackendFailed, SpecInvalid):
            for member in members:
                self._local.kill(member)
                while self._local.poll(member) is None:
                    time.sleep(0.01)
            raise
        return {"members": members}

    def poll(self, handle: Handle) -> Exit | None:
        exits = [self._local.poll(member) for member in handle["members"]]
        bad = [end for end in exits if end is not None and end != Exit(code=0)]
        if bad:
            first = self._first_bad.setdefault(handle["members"][0]["pid"], bad[0])
            if None in exits:
                self.signal(handle, signal.SIGTERM) if first.code == 75 else self.kill(handle)
                return None
            return first
        return None if None in exits else Exit(code=0)

    def signal(self, handle: Handle, signum: int) -> None:
        for member in handle["members"]:
            self._local.signal(member, signum)

    def kill(self, handle: Handle) -> None:
        for member in handle["members"]:
            self._local.kill(member)

    def output(self, handle: Handle, start: int = 0) -> bytes:
        return self._local.output(handle["members"][0], start)

    def finish(self, handle: Handle, storage: Storage, attempt: int) -> None:
        for member in handle["members"]:
            self._local.finish(member, storage, attempt)

    def preload(self, handle: Handle) -> Preload | None:
        return None

    def prepare(self, spec: JobSpec, preload: Preload) -> None:
        pass

    def close(self) -> None:
        self._local.close()


class Supervised:
    """A job whose attempts are gangs, its supervisor in a thread of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "train.py").write_text(SCRIPT)
        root = open_storage(folder / "jobs")
        values: dict[str, Any] = {"script": "train.py", "cwd": str(folder), "backoff": 0.0}
        submit(root, JobSpec(job="j", heartbeat_every=0.1, **values))
        self.storage = root.sub("j")
        self.supervisor = Supervisor(self.storage, backend=Gang())
        self._thread = threading.Thread(target=self.supervisor.run)
        self._thread.start()

    def members(self, attempt: int) -> list[psutil.Process]:
        """Return the processes of an attempt by rank, once all are there."""
        places = [self.folder / f"rank-{attempt}-{rank}-{SIZE}" for rank in range(SIZE)]
        until(lambda: all(place.exists() for place in places))
        return [psutil.Process(int(place.read_text())) for place in places]

    def began(self, attempt: int) -> int:
        return len(list(self.folder.glob(f"began-{attempt}-*")))

    def job(self) -> Job:
        return Journal(self.storage).existing_job()

    def events(self, kind: type) -> list[Any]:
        return [e.event for e in Journal(self.storage).read() if isinstance(e.event, kind)]

    def enough(self) -> None:
        (self.folder / "done").touch()
        self._thread.join(PATIENCE)

    def close(self) -> None:
        self.supervisor.terminate()
        self._thread.join(PATIENCE)


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.close()


def until(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running()


@pytest.mark.parametrize("rank", [0, 2])
def test_the_death_of_one_member_restarts_all_as_one_attempt(gang: Supervised, rank: int) -> None:
    first = gang.members(1)
    first[rank].kill()
    second = gang.members(2)
    assert all(gone(process) for process in first)
    assert (gang.began(1), gang.began(2)) == (1, 1)  # of each attempt one can commit
    until(lambda: (beat := heartbeat.read(gang.storage, 2)) is not None and beat.count > 2)
    beat = heartbeat.read(gang.storage, 2)
    assert beat is not None
    assert beat.pid == second[0].pid  # the first speaks for the attempt
    gang.enough()
    assert gang.job().state is State.SUCCEEDED
    assert [event.attempt for event in gang.events(Claimed)] == [1, 2]
    assert [len(event.handle["members"]) for event in gang.events(Launched)] == [SIZE, SIZE]
    outcomes = [event.outcome for event in gang.events(Ended)]
    assert outcomes == [Outcome.KILLED, Outcome.COMPLETED]


def test_all_members_save_and_leave_on_request(gang: Supervised) -> None:
    members = gang.members(1)
    gang.close()
    assert all(gone(process) for process in members)
    assert gang.job().outcome is Outcome.PREEMPTED
    assert gang.job().owner is None


def test_when_one_member_leaves_the_others_are_asked_to_leave(gang: Supervised) -> None:
    members = gang.members(1)
    os.kill(members[1].pid, signal.SIGTERM)
    gang.members(2)
    assert all(gone(process) for process in members)
    assert [event.outcome for event in gang.events(Ended)] == [Outcome.PREEMPTED]
    gang.enough()


def test_if_one_member_cannot_start_the_others_are_ended(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import time; time.sleep(1000)")
    root = open_storage(tmp_path / "jobs")
    spec = JobSpec(job="j", script="train.py", cwd=str(tmp_path))
    submit(root, spec)
    with pytest.raises(BackendFailed, match="no-such-python"):
        Gang(fails_at=2).launch(spec, root.sub("j"), 1)

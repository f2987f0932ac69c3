"""Spares of the local backend fork from attempt to attempt, and no process stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from outlast.backends import orphans
from outlast.backends.base import Exit, Handle
from outlast.backends.local import LocalBackend
from outlast.job import spec as specs
from outlast.job.preload import Preload
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage

PATIENCE = 120.0

# What the spare imports: notes that it did, and makes it fork whatever this machine has.
IMPORTED = """
import __main__, os, pathlib
__main__.ACCELERATORS = ()
with (pathlib.Path(__file__).parent / "imports").open("a") as file:
    file.write(f"{os.getpid()}\\n")
"""

# Tells how it is, then ends as it is told to.
SCRIPT = """
import json, os, pathlib, random, subprocess, sys, time
from outlast.attempt import context
from outlast.job.preload import Preload, report
here = pathlib.Path(__file__).parent
attempt = context.current().attempt
files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
children = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/children")]
told = dict(
    pid=os.getpid(), parent=os.getppid(), session=os.getsid(0), group=os.getpgrp(),
    pipes=[name for name in files if name.startswith("pipe")], children="".join(children),
    environ=dict(os.environ), stdin=sys.stdin.read(), drawn=random.random(),
)
if (here / "starts").exists():
    told["orphan"] = subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
print("out", flush=True)
report(Preload(modules=[f"reported{attempt}"], environment={"TF_X": None}))
(here / ".told").write_text(json.dumps(told))
(here / ".told").rename(here / f"told-{attempt}")
while not (here / f"go-{attempt}").exists():
    time.sleep(0.01)
sys.exit(int((here / f"go-{attempt}").read_text()))
"""  # noqa: E501


def until(look: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)
    return found


class Job:
    """A job whose attempts this process launches, as its supervisor would."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        (folder / "train.py").write_text(SCRIPT)
        self.module("imported", IMPORTED)
        self.spec = JobSpec(
            job="j",
            script="train.py",
            cwd=str(folder),
            env={"PYTHONPATH": str(folder)},
            warm_spare=True,
            **options,
        )
        self.storage = open_storage(folder / "j")
        self.storage.create(layout.SPEC, specs.encode(self.spec))
        self.backend = LocalBackend()
        self.handles: list[Handle] = []

    def module(self, name: str, code: str) -> None:
        """Write something that a spare can import."""
        (self.folder / f"{name}.py").write_text(code)

    def launch(self) -> dict[str, Any]:
        """Launch the next attempt; return what it tells of itself."""
        number = len(self.handles) + 1
        self.handles.append(self.backend.launch(self.spec, self.storage, number))
        told = self.folder / f"told-{number}"
        until(told.exists)
        found: dict[str, Any] = json.loads(told.read_text())
        assert self.handles[-1]["pid"] in (found["pid"], found["parent"])
        return found

    def leave(self, code: int) -> Exit:
        """Let the present attempt end with this code; return what the backend sees."""
        (self.folder / f".go-{len(self.handles)}").write_text(str(code))
        (self.folder / f".go-{len(self.handles)}").rename(self.folder / f"go-{len(self.handles)}")
        return self.end()

    def end(self) -> Exit:
        found: Exit = until(lambda: self.backend.poll(self.handles[-1]))
        return found

    def kill(self) -> Exit:
        self.backend.signal(self.handles[-1], signal.SIGKILL)
        return self.end()

    def spare(self, *modules: str) -> int:
        """Return the pid of the one spare that there is, ready for these modules, in the end."""
        preload = Preload(modules=[*modules] or ["imported"])

        def look() -> list[int]:
            self.backend.prepare(self.spec, preload)
            return self.spares()

        (pid,) = until(look)
        assert isinstance(pid, int)
        return pid

    def spares(self) -> list[int]:
        attempts = [handle["pid"] for handle in self.handles]
        return [pid for pid in spares_of(psutil.Process()) if pid not in attempts]

    def imported(self, times: int) -> bool:
        """Return whether there were so many processes that have imported, not forked."""
        place = self.folder / "imports"
        return place.exists() and len(place.read_text().splitlines()) == times

    def close(self) -> None:
        for handle in self.handles:
            self.backend.kill(handle)
            until(partial(self.backend.poll, handle))
        self.backend.close()


def spares_of(parent: psutil.Process) -> list[int]:
    found = []
    for child in parent.children():
        try:
            found += [child.pid] if "outlast.attempt.warm_spare" in child.cmdline() else []
        except psutil.Error:
            continue
    return found


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.close()
    until(lambda: not job.spares())  # a wrapper is dead a moment before what it ran
    assert not orphans.adopting()


def test_one_imported_spare_serves_any_number_of_attempts(job: Job) -> None:
    """And an attempt does not see how it was started, nor the next spare."""
    cold = job.launch()
    lineage = [job.spare()]
    until(partial(job.imported, 1))
    assert job.kill() == Exit(signal=signal.SIGKILL)
    for end in (75, 0, -signal.SIGKILL, 1):
        told = job.launch()
        assert told["pid"] == lineage[-1]
        assert told["parent"] == os.getpid()
        assert told["session"] == told["group"] == told["pid"]
        assert told["children"] == cold["children"] == ""
        assert len(told["pipes"]) == len(cold["pipes"]) == 1  # for its reports; not inherited
        assert told["environ"].pop("OUTLAST_ATTEMPT") == str(len(lineage) + 1)
        told["environ"]["OUTLAST_ATTEMPT"] = cold["environ"]["OUTLAST_ATTEMPT"]
        for same in ("environ", "stdin", "drawn"):
            assert told[same] == cold[same]
        assert job.backend.output(job.handles[-1]) == b"out\n"
        lineage.append(job.spare())
        assert os.getsid(lineage[-1]) == lineage[-1]
        assert (job.leave(end) if end >= 0 else job.kill()) == (
            Exit(code=end) if end >= 0 else Exit(signal=-end)
        )
        assert job.spare() == lineage[-1]
    assert len(set(lineage)) == 5
    assert job.imported(1)


def test_what_an_attempt_has_imported_arrives_through_a_pipe(job: Job) -> None:
    """A cold attempt, one that was a spare, and one that was a fork; nobody else is heard."""
    job.launch()
    for attempt in (1, 2, 3):
        handle = job.handles[-1]
        assert job.backend.preload(handle) == Preload(
            modules=[f"reported{attempt}"], environment={"TF_X": None}
        )
        assert LocalBackend().preload(handle) is None
        job.spare()
        assert job.backend.preload(handle) is not None
        job.kill()
        job.launch()


def test_a_signal_reaches_an_attempt_that_is_a_fork(job: Job) -> None:
    for _ in range(2):
        job.spare()
        job.launch()
    job.spare()
    job.backend.signal(job.handles[-1], signal.SIGTERM)
    assert job.backend.poll(job.handles[-1]) is None  # a request to leave, which it does not heed
    job.backend.kill(job.handles[-1])
    assert job.end() == Exit(signal=signal.SIGKILL)
    assert job.imported(1)


NO_FORK = {
    "no process left": "import errno, os\n"
    "def fork(): raise BlockingIOError(errno.EAGAIN, 'none left')\n"
    "os.fork = fork\n",
    "an accelerator": "import __main__\n__main__.ACCELERATORS = ('null',)\n",
    "a thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n",
    "no subreaper": "",
    "a wrapper in between": "",
}


@pytest.mark.parametrize("why", NO_FORK)
def test_where_it_does_not_fork_the_next_spare_is_a_new_one(
    job: Job, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "no subreaper":
        monkeypatch.setattr(orphans, "_prctl", lambda *_: False)
    if why == "a wrapper in between":
        wrapper = job.folder / "python"
        wrapper.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\n')
        wrapper.chmod(0o755)
        job.spec = msgspec.structs.replace(job.spec, python=str(wrapper))
    job.module("hindered", NO_FORK[why])
    for number in (1, 2):
        waiting = job.spare("imported", "hindered")
        until(partial(job.imported, number))
        job.launch()
        assert job.handles[-1]["pid"] == waiting
        assert job.spares() == []
    assert job.leave(3) == Exit(code=3)


def test_a_spare_with_another_preload_is_replaced(job: Job) -> None:
    job.module("other", "")
    first = job.spare("imported")
    job.launch()
    spare = job.spare("imported")
    assert spare != first
    other = job.spare("imported", "other")
    assert other != spare
    assert job.spare("imported", "other") == other
    assert not psutil.pid_exists(spare)


def test_a_spare_that_has_died_is_replaced(job: Job) -> None:
    job.spare()
    job.launch()
    spare = job.spare()
    os.kill(spare, signal.SIGKILL)
    assert until(lambda: job.spare() != spare)
    until(partial(job.imported, 2))
    job.kill()
    waiting = job.spare()
    os.kill(waiting, signal.SIGKILL)
    os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)
    assert job.launch()["pid"] != waiting
    assert job.leave(0) == Exit(code=0)


def test_closing_ends_the_spare_but_not_the_attempt(job: Job) -> None:
    job.spare()
    job.launch()
    spare = job.spare()
    job.backend.close()
    assert not psutil.pid_exists(spare)
    assert not orphans.adopting()
    assert job.leave(0) == Exit(code=0)


def test_a_spare_ends_with_its_supervisor(tmp_path: Path) -> None:
    """Killed without a word, it leaves neither the spare nor for long the attempt."""
    Job(tmp_path, grace=0.1)
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE
    )
    with supervisor:
        assert supervisor.stdout is not None
        attempt, spare = map(psutil.Process, map(int, supervisor.stdout.readline().split()))
        supervisor.kill()
    assert psutil.wait_procs([attempt, spare], PATIENCE)[1] == []


SUPERVISOR = """
import sys, time
from outlast_checkpoints.storage import open_storage
from pathlib import Path
from outlast.job import spec
from outlast.backends.local import LocalBackend
from outlast.job.preload import Preload

storage = open_storage(Path(sys.argv[1]) / "j")
job = spec.decode(storage.read("spec.json"))
backend, preload = LocalBackend(), Preload(modules=["imported"])
backend.prepare(job, preload)
handle = backend.launch(job, storage, 1)
while (spare := backend._spare.child()) is None:
    time.sleep(0.01)
print(handle["pid"], spare.pid, flush=True)
time.sleep(1000)
"""


def test_orphans_are_reaped_but_not_the_children_of_others(job: Job) -> None:
    job.spare()
    (job.folder / "starts").touch()
    orphan = job.launch()["orphan"]
    job.kill()
    assert psutil.Process(orphan).ppid() == os.getpid()  # in a session of its own: it lives on
    os.kill(orphan, signal.SIGKILL)

    def gone() -> bool:
        job.backend.poll(job.handles[-1])
        return not psutil.pid_exists(orphan)

    until(gone)
    mine = subprocess.Popen(["sh", "-c", "exit 3"])
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    job.backend.poll(job.handles[-1])
    assert mine.wait() == 3

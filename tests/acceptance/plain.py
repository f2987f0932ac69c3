"""Jobs of small scripts that need no TensorFlow, supervised by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from outlast.job import heartbeat, logs
from outlast.job.events import Ended
from outlast.job.heartbeat import Beat
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast.job.spec import JobSpec
from outlast.supervisor.supervisor import submit
from outlast_checkpoints.storage import open_storage

PATIENCE = 120.0  # seconds; all here happens at once unless the machine is busy

# `training(steps)` does what fit does as seen from outside: steps, saves as files, heeds the stop
TRAINING = """
import os, pathlib, signal, sys, time
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast.attempt import context

here = pathlib.Path(__file__).parent
ctx = context.current()

def commit(step):
    ctx.fence()
    name = CheckpointId(0, step, Stage.STEP, ctx.attempt)
    ctx.storage.create(layout.manifest(name), b"{}")

def step():
    ctx.status.phase = 0
    ctx.status.activity = "training"
    ctx.status.step += 1
    ctx.status.steps_done += 1
    ctx.status.tick()
    time.sleep(0.01)
    if ctx.stop.requested:
        ctx.status.activity = "saving"
        commit(ctx.status.step)
        print("saved because of", ctx.stop.reason)
        ctx.leave()

def go_on_for_ever():
    while True:
        step()
"""


class PlainJob:
    """A job of one script; its supervisor is a process started by `start`."""

    def __init__(self, folder: Path, code: str, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "train.py"
        script.write_text(TRAINING + code, encoding="utf-8")
        values: dict[str, Any] = {
            "job": "plain",
            "script": script.name,
            "cwd": str(folder),
            "backoff": 0.0,
            "heartbeat_every": 0.2,
            "lost_after": 5.0,
            "grace": 60.0,
        }
        self.folder = folder
        self.spec = JobSpec(**{**values, **options})
        root = open_storage(folder / "jobs")
        submit(root, self.spec)
        self.storage = root.sub(self.spec.job)
        self.journal = Journal(self.storage)
        self.supervisors: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for supervisor in self.supervisors:
            supervisor.kill()
            with supervisor:  # closes its pipe, read to the end or not
                pass
        for entry in self.journal.read():
            handle = getattr(entry.event, "handle", None)
            if handle and handle.get("pid"):
                try:
                    os.killpg(handle["pid"], signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def start(self) -> subprocess.Popen[str]:
        """Start a supervisor in the foreground."""
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "outlast.supervisor.detached", self.storage.root],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.supervisors.append(supervisor)
        return supervisor

    def run(self) -> int:
        """Supervise to the end; return the exit code."""
        return self.end(self.start())

    def end(self, supervisor: subprocess.Popen[str]) -> int:
        supervisor.wait(PATIENCE)
        return supervisor.returncode

    def until(self, what: Callable[[], Any]) -> Any:
        """Return what `what` returns once that is true."""
        until = time.monotonic() + PATIENCE
        while not (found := what()):
            assert time.monotonic() < until, self.diagnostics()
            time.sleep(0.02)
        return found

    def beat(self) -> Beat | None:
        attempt = self.journal.existing_job().attempt
        return heartbeat.read(self.storage, attempt) if attempt else None

    def training(self, attempt: int = 1) -> Beat:
        """Wait until that attempt has trained some steps."""

        def trains() -> Beat | None:
            beat = heartbeat.read(self.storage, attempt)
            running = self.job.state is State.RUNNING
            return beat if running and beat is not None and beat.step >= 3 else None

        found = self.until(trains)
        assert isinstance(found, Beat)
        return found

    @property
    def job(self) -> Job:
        return self.journal.existing_job()

    @property
    def ends(self) -> list[Ended]:
        events = (entry.event for entry in self.journal.read())
        return [event for event in events if isinstance(event, Ended)]

    def output(self, attempt: int = 1) -> str:
        return self.storage.read(f"attempts/{attempt:04d}/output.log").decode()

    def log(self, **options: Any) -> list[str]:
        return [str(row["event"]) for row in logs.read(self.storage, **options)]

    def diagnostics(self) -> str:
        """Return all that is known, for a failing test."""
        lines = [f"{entry.state} {entry.event}" for entry in self.journal.read()]
        lines += [logs.render(row) for row in logs.read(self.storage)]
        return "\n".join(lines)


Make = Callable[..., PlainJob]

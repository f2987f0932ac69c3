"""After a reboot: `outlast resume --all` and `--latest` over a root with jobs of every kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outlast.job import heartbeat
from outlast.job.events import Released
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.spec import JobSpec
from outlast.job.submission import request_stop, submit
from outlast.supervisor.supervisor import Supervisor
from outlast_checkpoints.storage import open_storage

pytestmark = pytest.mark.acceptance
PATIENCE = 120

SCRIPT = """
import pathlib, sys, time
print("here", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
"""


class Root:
    """A root of jobs that end when the file "go" is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.go = folder / "go"
        self.url = str(folder / "jobs")
        (folder / "train.py").write_text(SCRIPT)
        self.processes: list[subprocess.Popen[str]] = []
        self.env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def end(self) -> None:
        """Let nothing outlive a test that has failed."""
        self.go.touch()
        for process in self.processes:
            process.wait(PATIENCE)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def make(self, name: str, go: str | None = None, **options: Any) -> None:
        args = [str(self.go) if go is None else go]
        values = {"script": "train.py", "cwd": str(self.folder), "args": args}
        spec = JobSpec(job=name, heartbeat_every=0.2, **{**values, **options})
        submit(open_storage(self.url), spec)

    def journal(self, name: str) -> Journal:
        return Journal(open_storage(f"{self.url}/{name}"))

    def state(self, name: str) -> State:
        return self.journal(name).existing_job().state

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "outlast", *arguments, "--root", self.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
        )
        self.processes.append(process)
        return process

    def resume(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start("resume", *arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def until(self, what: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < give_up
            time.sleep(0.05)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    found = Root(tmp_path)
    try:
        yield found
    finally:
        found.end()


def kill_running(root: Root, name: str) -> None:
    """Let supervisor and attempt die as they do when the power goes."""
    supervisor = root.start("resume", name)
    storage = open_storage(f"{root.url}/{name}")
    root.until(lambda: heartbeat.read(storage, 1) is not None)
    supervisor.kill()
    supervisor.wait(PATIENCE)
    beat = heartbeat.read(storage, 1)
    assert beat is not None
    os.kill(beat.pid, signal.SIGKILL)


def test_every_unfinished_job_is_resumed_once(root: Root) -> None:
    there = str(root.folder / "train.py")
    for name in ("never-run", "at-work", "stopped", "killed"):
        root.make(name)
    root.make("done", there)
    root.make("failed", script="no-such.py")
    root.make("by-hand", script=None)
    for name in ("done", "failed"):
        Supervisor(open_storage(f"{root.url}/{name}")).run()
    request_stop(open_storage(f"{root.url}/stopped"))
    kill_running(root, "killed")
    busy = root.start("resume", "at-work")
    root.until(lambda: root.state("at-work") is State.RUNNING)

    boots = [root.start("resume", "--all", "--json") for _ in range(2)]
    answers = [boot.communicate(timeout=PATIENCE) for boot in boots]
    assert [boot.returncode for boot in boots] == [0, 0], answers
    told = [{row["job"]: row["how"] for row in json.loads(out)} for out, _ in answers]
    unfinished = {"at-work", "by-hand", "killed", "never-run"}
    assert all(set(one) <= unfinished for one in told)
    for name in ("never-run", "killed"):
        assert sorted(one[name] for one in told) == ["busy", "started"]
    assert [one["at-work"] for one in told] == ["busy"] * 2
    assert [one["by-hand"] for one in told] == ["skipped"] * 2
    root.go.touch()
    assert busy.wait(PATIENCE) == 0
    root.until(lambda: all(root.state(n) is State.SUCCEEDED for n in ("never-run", "killed")))
    attempts = {
        name: (root.state(name), root.journal(name).existing_job().attempt)
        for name in ("never-run", "killed", "at-work", "stopped", "failed", "done")
    }
    assert attempts == {
        "never-run": (State.SUCCEEDED, 1),
        "killed": (State.SUCCEEDED, 2),
        "at-work": (State.SUCCEEDED, 1),
        "stopped": (State.STOPPED, 0),
        "failed": (State.FAILED, 1),
        "done": (State.SUCCEEDED, 1),
    }

    # What cannot be brought back is named, and keeps nothing else from coming.
    root.make("damaged")
    event = Path(root.url) / "damaged" / "journal" / "00000001.json"
    event.write_bytes(b"not an event")
    code, out, err = root.resume("--all")
    assert (code, out) == (1, "")
    assert "damaged: failed: " in err


def test_latest_is_the_most_recently_active_job(root: Root) -> None:
    code, _, err = root.resume("--latest")
    assert (code, "No unfinished job" in err) == (0, True)
    there = str(root.folder / "train.py")
    for name in ("older", "newer", "stopped"):
        root.make(name, there)
    request_stop(open_storage(f"{root.url}/stopped"))
    journal = root.journal("older")  # it was at work after the other one was made
    journal.claim(_gone())
    code, _, err = root.resume("--latest")
    assert code == 0, err
    states = {name: root.state(name) for name in ("older", "newer", "stopped")}
    assert states == {
        "older": State.SUCCEEDED,
        "newer": State.PENDING,
        "stopped": State.STOPPED,
    }
    events = [entry.event for entry in journal.read()]
    assert any(isinstance(event, Released) for event in events)


def _gone() -> Any:
    """Return the identity of a process of this machine that has ended."""
    from outlast.job import process_identity

    child = subprocess.Popen(["true"])
    who = process_identity.of_process(child.pid)
    child.wait()
    return who


@pytest.mark.parametrize(
    "arguments", [(), ("--latest", "--all"), ("a", "--all"), ("a", "--latest")]
)
def test_exactly_one_of_job_latest_and_all_is_required(
    root: Root, arguments: tuple[str, ...]
) -> None:
    from click.testing import CliRunner

    from outlast.cli.commands.resume import resume

    answer = CliRunner().invoke(resume, [*arguments, "--root", root.url])
    assert answer.exit_code == 2
    assert "Give exactly one of JOB, --latest and --all." in answer.output

"""A job under `outlast run` that benchmarks kill and watch through its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from outlast.job import heartbeat
from outlast.job.events import Launched
from outlast.job.journal import Entry, Journal
from outlast_checkpoints.storage import open_storage
from tests.benchmarks.commands import OUTLAST

VICTIM = str(Path(__file__).with_name("victim.py"))
PATIENCE = 120.0  # seconds
LOOK_EVERY = 0.05

_Found = TypeVar("_Found")


def until(what: str, look: Callable[[], _Found | None]) -> _Found:
    """Poll `look` until it returns a result, and return that. Raises `TimeoutError`."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        if found := look():
            return found
        time.sleep(LOOK_EVERY)
    raise TimeoutError(f"no {what} within {PATIENCE:.0f} s")


def quiet() -> dict[str, str]:
    """Return the environment of a process whose output is discarded."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}


class KilledJob:
    """`outlast run` of victim.py in a folder, ended by `close`."""

    def __init__(self, root: Path, name: str, network: str, *options: str) -> None:
        self.folder = root / name
        script = [VICTIM, network, "ours", str(self.folder)]
        flags = ["--root", str(root), "--name", name, "--seed", "1", *options]
        self.began = time.time()
        self.process = subprocess.Popen(
            [*OUTLAST, "run", *flags, *script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=quiet(),
            cwd=Path(__file__).parents[2],
        )
        until("job", lambda: (self.folder / "spec.json").exists())
        self._storage = open_storage(self.folder)

    def events(self) -> list[Entry]:
        return Journal(self._storage).read()

    def attempt(self) -> tuple[int, int]:
        """Return number and pid of the newest launched attempt, or (0, 0) before the first."""
        entries = [entry for entry in self.events() if isinstance(entry.event, Launched)]
        if not entries:
            return 0, 0
        event = entries[-1].event
        assert isinstance(event, Launched)
        return event.attempt, event.handle["pid"]

    def beat(self, attempt: int) -> heartbeat.Beat | None:
        return heartbeat.read(self._storage, attempt)

    def log(self, attempt: int) -> list[dict[str, Any]]:
        return rows_of(self.folder / f"attempts/{attempt:04d}/log.jsonl")

    def steps(self, attempt: int) -> list[dict[str, Any]]:
        """Return the rows of the steps that an attempt has written so far."""
        rows = rows_of(self.folder / f"attempts/{attempt:04d}/history.jsonl")
        return [row for row in rows if row["kind"] == "step"]

    def spare(self) -> int | None:
        """Return the pid of the spare once it is ready."""
        _, attempt = self.attempt()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in map(int, children.read_text().split()):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if pid != attempt and b"outlast.attempt.warm_spare" in command and _waits(pid):
                    return pid
        return None

    def kill(self) -> float:
        """Kill the newest attempt; return the time in Unix seconds."""
        _, pid = self.attempt()
        at = time.time()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return at

    def close(self) -> None:
        """Kill the supervisor and then its attempt, so that no new attempt starts."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        _, pid = self.attempt()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _waits(pid: int) -> bool:
    """Return whether a process has used no CPU time for half a second."""

    def used() -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = used()
    time.sleep(0.5)
    return before == used()


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON-lines file; none if it does not exist yet."""
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def start(network: str, how: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start victim.py in a new session, as attempts are: Linux divides CPU time between
    sessions on a busy machine."""
    return subprocess.Popen(
        [sys.executable, VICTIM, network, how, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=quiet(),
        start_new_session=True,
    )

"""One job of the soak: a training of a kind in a folder or a bucket, and its untouched twin."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from outlast.job import heartbeat
from outlast.job.events import Launched
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.process_identity import of_process
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance import forked
from tests.acceptance.jobs import PATH, Training

KINDS = ("mlp", "loop", "numpy", "generator", "tfdata", "callbacks")
OPTIONS = "--save-every 1s,epoch --heartbeat-every 0.5 --lost-after 4 --grace 20"
PATIENCE = 120.0


class SoakedJob(Training):
    """A job of the script "soaked". Its supervisor is started again until the job has ended.

    epochs and pause: how long it is, and how fast. url: of a root in a bucket, for a job there.
    cold: its attempts are new interpreters, as a user's, not forks; those in a bucket always are.
    """

    def __init__(
        self,
        folder: Path,
        digits: Path,
        kind: str,
        epochs: int,
        pause: float,
        *,
        root: Path | None = None,
        url: str | None = None,
        cold: bool = False,
    ) -> None:
        super().__init__(
            folder, "soaked", digits, options=OPTIONS, forked=not (cold or url), root=root
        )
        self.kind, self.epochs, self.address = kind, epochs, url or str(self.root)
        self.vary(f"{kind} {epochs} {pause}")
        self.happened: list[str] = []
        self.limit = 0  # events after which it is left in peace
        if url is not None:
            self.root = url  # type: ignore[assignment]
            self.storage = open_storage(f"{url}/soaked")
            self.store = CheckpointStore(self.storage)
            self.journal = Journal(self.storage)

    def until_epoch(self, epoch: int) -> None:
        new = self.control / "until.new"
        new.write_text(str(epoch))
        new.replace(self.control / "until")

    @property
    def epoch(self) -> int:
        """The epoch that the newest checkpoint or heartbeat shows."""
        newest = self.store.ids()[-1:]
        saved = self.store.manifest(newest[0]).progress.epoch if newest else 0
        job = self.journal.existing_job()
        beat = heartbeat.read(self.storage, job.attempt) if job.attempt else None
        return max(saved, 0 if beat is None else beat.epoch)

    def close(self) -> None:
        """End what is still there."""
        with suppress(OutlastError):  # its store may be away
            super().close()

    def attempt_pid(self) -> int | None:
        """Return the process of the attempt, None if there is none now or the store is away."""
        with suppress(OutlastError):
            events = [entry.event for entry in self.journal.read()]
            handles = [event.handle for event in events if isinstance(event, Launched)]
            if handles and of_process(handles[-1]["pid"]).start == handles[-1]["start"]:
                return int(handles[-1]["pid"])
        return None

    def send(self, signum: signal.Signals, *, attempt: bool) -> bool:
        """Send a signal to the attempt or the supervisor; return whether that was there."""
        supervisor = self.supervisor
        gone = supervisor is None or supervisor.poll() is not None
        pid = self.attempt_pid() if attempt else None if gone or not supervisor else supervisor.pid
        if pid is None:
            return False
        try:
            psutil.Process(pid).send_signal(signum)
        except psutil.NoSuchProcess:
            return False
        return True

    def verb(self, *arguments: str) -> tuple[int, str]:
        """Run a command line; return its exit code and what it said."""
        output = self.control.parent / "verbs.log"
        output.write_text("")
        if self.forked:
            env = {**os.environ, "PYTHONPATH": PATH}
            code = forked.start([*arguments], output, self.control, env).wait(PATIENCE)
        else:
            command = [sys.executable, "-m", "outlast", *arguments]
            with output.open("wb") as log:
                code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        return code, output.read_text()[-1500:]

    def ended(self) -> bool | None:
        """Whether the job has ended for good; None while its supervisor runs."""
        if self.supervisor is not None and self.supervisor.poll() is None:
            return None
        job = self.journal.job()  # there is none yet if the command line was killed at its start
        return job is not None and job.state in (State.SUCCEEDED, State.FAILED)

    def log_bytes(self) -> int:
        """The size of the structured logs and the journal."""
        total = 0
        with suppress(OutlastError):
            for attempt in self.storage.list(layout.ATTEMPTS):
                for name in self.storage.list(f"{layout.ATTEMPTS}/{attempt}"):
                    if name.endswith("log.jsonl"):
                        total += self.storage.size(f"{layout.ATTEMPTS}/{attempt}/{name}")
            for name in self.storage.list(layout.JOURNAL):
                total += self.storage.size(f"{layout.JOURNAL}/{name}")
        return total

    def result(self) -> dict[str, str]:
        """Return digests of the end: arrays, history and what `fit` returned."""
        found = {name: _digest(array) for name, array in self.arrays().items()}
        found["rows"] = _digest(self.rows())
        found["place"] = _digest(self.final().place)
        found["returned"] = _digest(self.returned_history())
        return found


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()

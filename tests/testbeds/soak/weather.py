"""What happens to the jobs of the soak: kills, signals, outages, full disks, and commands."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from outlast import exit_codes
from outlast_checkpoints.errors import OutlastError
from tests.support.away import Cable
from tests.testbeds.soak.soaked_job import SoakedJob

# Codes with which a command may end beside a job in trouble: busy, state saved, storage away.
IN_TROUBLE = {
    exit_codes.DONE, exit_codes.JOB_BUSY, exit_codes.RESUMABLE, exit_codes.STORAGE_FAILED,
}  # fmt: skip
READERS = ("status", "checkpoints", "history", "logs", "verify")


class Disk:
    """A small file system of its own, which can be full. Needs root."""

    def __init__(self, folder: Path, megabytes: int = 48) -> None:
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        self.mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
        self._filler = folder / "filler"

    def fill(self) -> None:
        if self.mounted:
            with suppress(OSError), self._filler.open("wb") as filler:
                while True:
                    filler.write(bytes(1 << 16))
                    filler.flush()

    def clear(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


class Weather:
    """Draws what happens next, and to whom."""

    def __init__(self, chance: random.Random, cable: Cable | None, disk: Disk) -> None:
        self._chance, self._cable, self._disk = chance, cable, disk
        self._timers: list[threading.Timer] = []
        self.count: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._acts: dict[str, tuple[int, Callable[[SoakedJob], object]]] = {
            "kill attempt": (6, lambda job: job.send(signal.SIGKILL, attempt=True)),
            "kill supervisor": (2, lambda job: job.send(signal.SIGKILL, attempt=False)),
            "kill both": (2, self._kill_both),
            "SIGTERM to supervisor": (2, lambda job: job.send(signal.SIGTERM, attempt=False)),
            "SIGTERM to attempt": (2, lambda job: job.send(signal.SIGTERM, attempt=True)),
            "SIGINT to supervisor": (1, lambda job: job.send(signal.SIGINT, attempt=False)),
            "freeze attempt": (1, self._freeze),
            "stop": (2, lambda job: self._verb(job, "stop")),
            "prune": (1, lambda job: self._verb(job, "prune")),
            "read": (2, lambda job: self._verb(job, chance.choice(READERS))),
            "outage": (1 if cable else 0, self._outage),
            "full disk": (1 if disk.mounted else 0, self._full_disk),
        }

    def happen_to(self, jobs: list[SoakedJob]) -> None:
        """Let something happen to one of the jobs."""
        names = list(self._acts)
        weights = [self._acts[name][0] for name in names]
        (name,) = self._chance.choices(names, weights)
        job = self._chance.choice(jobs)
        if self._acts[name][1](job) is not False:
            self.count[name] += 1
            job.happened.append(name)

    def clear_up(self) -> None:
        """End everything that lasts."""
        for timer in self._timers:
            timer.join()
        self._timers.clear()

    def _later(self, after: float, act: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.is_alive()]
        timer = threading.Timer(after, act)
        timer.start()
        self._timers.append(timer)

    def _kill_both(self, job: SoakedJob) -> bool:
        attempt = job.send(signal.SIGKILL, attempt=True)
        return job.send(signal.SIGKILL, attempt=False) or attempt

    def _freeze(self, job: SoakedJob) -> bool:
        pid = job.attempt_pid()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)

        def thaw() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        self._later(self._chance.uniform(0.5, 6), thaw)
        return True

    def _outage(self, job: SoakedJob) -> None:
        assert self._cable is not None
        if not any(timer.is_alive() for timer in self._timers):
            self._cable.cut()
            self._later(self._chance.uniform(1, 15), self._cable.mend)

    def _full_disk(self, job: SoakedJob) -> None:
        if not any(timer.is_alive() for timer in self._timers):
            self._disk.fill()
            self._later(self._chance.uniform(1, 6), self._disk.clear)

    def _verb(self, job: SoakedJob, verb: str) -> bool:
        with suppress(OutlastError):  # its store may be away
            if job.journal.job() is None:
                return False
        code, said = job.verb(verb, "--root", job.address, "soaked")
        if code not in IN_TROUBLE or "unexpected" in said:
            self.complaints.append(f"{job.control.parent.name}: {verb} ended with {code}: {said}")
        return True

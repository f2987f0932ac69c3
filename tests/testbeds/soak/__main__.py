"""`make soak HOURS=n`: jobs of all kinds in all weathers on one machine and in one bucket.

Some jobs last as long as the soak: one in a folder and one in the bucket that nobody touches, and
one whose attempts are killed again and again. Beside them short jobs come and go, in a small file
system and in the bucket, with kills, signals, stops, outages, full disks and commands drawn from a
seed. Every job that has ended is verified and compared with an untouched twin. The long-lived
processes, the temporary files and the logs are watched; the table at the end says what grows.

    python -m tests.testbeds.soak --hours 0.2 --seed 4
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from outlast.job.lifecycle import State
from outlast_checkpoints.errors import OutlastError
from tests.acceptance.jobs import write_digits
from tests.support import object_stores
from tests.support.away import Cable
from tests.testbeds.soak.soaked_job import KINDS, SoakedJob
from tests.testbeds.soak.watch import Watch
from tests.testbeds.soak.weather import Disk, Weather

LONG = 10**6  # epochs; the file "until" ends it
AT_ONCE = 2  # short jobs
SAMPLE = 10.0  # seconds between two looks at what could grow
STARTS = 40  # of a supervisor, before a job counts as stuck


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--server", choices=("seaweed", "moto", "none"), default="seaweed")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="outlast-soak-"))
    print(f"seed {given.seed}, in {folder}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        soak = _Soak(folder, given.seed, given.server, stack)
        good = soak.run(3600 * given.hours)
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


class _Soak:
    def __init__(self, folder: Path, seed: int, server: str, stack: ExitStack) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        self.digits = folder / "digits.npz"
        write_digits(self.digits)
        self.tmp, self.spool = folder / "tmp", folder / "spool"
        for place in (self.tmp, self.spool, folder / "server"):
            place.mkdir()
        os.environ.update(OUTLAST_SPOOL=str(self.spool), XDG_CONFIG_HOME=str(folder / "config"))
        self.bucket, cable = self._bucket(server, stack)
        os.environ["TMPDIR"] = str(self.tmp)
        self.disk = Disk(folder / "disk")
        stack.callback(self.disk.close)
        self.weather = Weather(self.chance, cable, self.disk)
        stack.callback(self.weather.clear_up)
        self.watch = Watch()
        self.jobs: dict[str, SoakedJob] = {}
        stack.callback(self._close)
        self.twins: dict[tuple[str, int], dict[str, str]] = {}
        self.compared = self.differing = self.made = 0
        self.starts: dict[SoakedJob, int] = {}

    def _bucket(self, server: str, stack: ExitStack) -> tuple[str | None, Cable | None]:
        if server == "none":
            return None, None
        run = object_stores.run_seaweed if server == "seaweed" else object_stores.run_moto
        store = stack.enter_context(run(self.folder / "server"))
        cable = Cable(int(store.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]))
        stack.callback(cable.cut)
        os.environ.update(store.environment)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{cable.port}"
        return store.bucket, cable

    # -- jobs ----------------------------------------------------------------------------

    def _job(self, name: str, kind: str, epochs: int, pause: float, place: str) -> SoakedJob:
        url = f"{self.bucket}/{name}" if place == "bucket" and self.bucket else None
        root = self.disk.folder / name if place == "disk" else None
        cold = name.startswith("long")
        at = self.folder / name
        job = SoakedJob(at, self.digits, kind, epochs, pause, root=root, url=url, cold=cold)
        self.starts[job] = 1
        return job

    def _start_long(self) -> None:
        for name, kind, place in (
            ("long in a folder", "mlp", "folder"),
            ("long in the bucket", "numpy", "bucket"),
            ("long, killed", "callbacks", "folder"),
        ):
            self.jobs[name] = self._job(name, kind, LONG, 0.2, place)
            self.jobs[name].start()

    def _start_short(self) -> None:
        kind, epochs = self.chance.choice(KINDS), self.chance.randint(4, 12)
        place = self.chance.choice(("disk", "bucket"))
        name = f"{self.made:04d} {kind} {place}"
        self.made += 1
        self.jobs[name] = job = self._job(name, kind, epochs, 0.05, place)
        job.limit = self.chance.randint(3, 15)
        job.start()

    def _short(self) -> list[SoakedJob]:
        return [job for name, job in self.jobs.items() if not name.startswith("long")]

    def _close(self) -> None:
        for job in self.jobs.values():
            job.close()

    def _look_after(self, name: str, job: SoakedJob) -> None:
        """Start the supervisor of a job again, or settle a job that has ended."""
        try:
            ended = job.ended()
        except OutlastError:  # its store is away
            return
        if ended is None:
            return
        if not ended:
            self.starts[job] += 1
            if self.starts[job] > STARTS:
                self._complain(name, f"stuck{job.diagnostics()}")
                del self.jobs[name], self.starts[job]
                job.close()
            elif job.journal.job() is None:
                job.start()  # it was killed before there was a job
            else:
                job.resume()
            return
        self.weather.clear_up()
        del self.jobs[name], self.starts[job]
        self._settle(name, job)
        job.close()

    def _settle(self, name: str, job: SoakedJob) -> None:
        """Verify a job that has ended, and compare it with its twin."""
        if job.job().state is not State.SUCCEEDED:
            self._complain(name, f"{job.job().state}{job.diagnostics()}")
            return
        code, said = job.verb("verify", "--root", job.address, "soaked")
        if code:
            self._complain(name, f"verify ended with {code}: {said}")
        if self.chance.random() < 0.3:
            copy = self.folder / f"copy {name}"
            code, said = job.verb("copy", "--root", job.address, "soaked", str(copy))
            if code:
                self._complain(name, f"copy ended with {code}: {said}")
            shutil.rmtree(copy, ignore_errors=True)
        self._compare(name, job, job.epochs)

    def _compare(self, name: str, job: SoakedJob, epochs: int) -> None:
        mine, theirs = job.result(), self._twin(job.kind, epochs, long=job.epochs == LONG)
        different = [at for at in {**mine, **theirs} if mine.get(at) != theirs.get(at)]
        self.compared += 1
        if different:
            self.differing += 1
            self._complain(name, f"DIFFERS: {different}")
        else:
            print(f"{name}: same; {len(job.happened)} events", flush=True)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if job.root != self.folder:
                shutil.rmtree(self.disk.folder / name, ignore_errors=True)

    def _twin(self, kind: str, epochs: int, *, long: bool) -> dict[str, str]:
        key = (kind, epochs + LONG if long else epochs)
        if key not in self.twins:
            name = f"twin {len(self.twins)}"
            twin = self._job(name, kind, LONG if long else epochs, 0.0, "folder")
            if long:
                twin.until_epoch(epochs)
            twin.start()
            twin.end()
            self.twins[key] = twin.result()
            del self.starts[twin]
            shutil.rmtree(self.folder / name)
        return self.twins[key]

    def _complain(self, name: str, what: str) -> None:
        self.weather.complaints.append(f"{name}: {what}")
        print(f"!! {name}: {what}", flush=True)

    # -- time ----------------------------------------------------------------------------

    def run(self, seconds: float) -> bool:
        """Let it all happen; return whether nothing differs, grows or went wrong."""
        self._start_long()
        began = sampled = killed = time.monotonic()
        while time.monotonic() - began < seconds:
            if len(self._short()) < AT_ONCE:
                self._start_short()
            time.sleep(self.chance.uniform(0.5, 3))
            if troubled := [job for job in self._short() if len(job.happened) < job.limit]:
                self.weather.happen_to(troubled)
            if time.monotonic() - killed > 45:
                killed = time.monotonic()
                self.jobs["long, killed"].send(signal.SIGKILL, attempt=True)
            for name, job in list(self.jobs.items()):
                self._look_after(name, job)
            if time.monotonic() - sampled > SAMPLE:
                sampled = time.monotonic()
                self._sample()
        self._end()
        return self._report(time.monotonic() - began)

    def _sample(self) -> None:
        for name, job in self.jobs.items():
            if name.startswith("long") and job.supervisor is not None:
                self.watch.process(f"{name}: supervisor", job.supervisor.pid)
                if name != "long, killed":
                    self.watch.process(f"{name}: training", job.attempt_pid())
                with suppress(OutlastError):  # a line for each save and each start
                    per_epoch = job.log_bytes() / max(1, job.epoch)
                    self.watch.note(f"{name}: log, journal", "B/epoch", per_epoch)
        self.watch.files("temporary files", self.tmp)
        self.watch.files("spool", self.spool)
        self.watch.process("this process", os.getpid())

    def _end(self) -> None:
        """Let the short jobs end in peace, then the long ones, and compare them all."""
        self.weather.clear_up()
        for job in self.jobs.values():
            if job.epochs == LONG:
                job.until_epoch(job.epoch + 5)
        over = time.monotonic() + 600
        while self.jobs and time.monotonic() < over:
            for name, job in list(self.jobs.items()):
                if job.epochs == LONG and job.ended():
                    del self.jobs[name]
                    self._compare(name, job, int((job.control / "until").read_text()))
                elif job.epochs != LONG:
                    self._look_after(name, job)
            time.sleep(0.3)
        for name in self.jobs:
            self._complain(name, "has not ended")

    def _report(self, seconds: float) -> bool:
        lines, growing = self.watch.table()
        print(*lines, sep="\n")
        what = ", ".join(f"{name} {n}" for name, n in sorted(self.weather.count.items()))
        complaints = self.weather.complaints
        print(f"events: {what}", *complaints, sep="\n")
        verdict = "flat" if not growing else f"grows: {', '.join(growing)}"
        print(
            f"{seconds / 3600:.2f} h, jobs compared = {self.compared}, differing = "
            f"{self.differing}, complaints = {len(complaints)}, {verdict}"
        )
        return not (growing or complaints or self.differing)


if __name__ == "__main__":
    sys.exit(main())

"""Goodput of a training that is killed every 20 seconds, compared with BackupAndRestore.

`python tests/benchmarks/goodput.py [--full] [--minutes N] [--json]`: a model of 25 million
parameters for a minute, with --full for five. Useful steps are how far the training has come in its
data at the end, whatever was trained twice; the share is that of what the same training reaches
untouched, which is measured before and after for a shorter time and scaled: the time to its first
step, then its steps a second. The peer's untouched training saves nothing; killed, it saves every
10 batches and is started again at once.
"""

from __future__ import annotations

import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.command_line import FULL, main
from tests.benchmarks.figure import Figure, Spread
from tests.benchmarks.killed import KilledJob, start, until
from tests.benchmarks.victim import PLACE

BAR = 0.8
KILL_EVERY = 20.0  # seconds
MINUTES, ALL_MINUTES = 1.0, 5.0
UNTOUCHED = 30.0  # seconds, twice
FLUSHED = 2.0  # seconds after which a step is certainly in the history's file


class Pace(NamedTuple):
    """An uninterrupted training. first: seconds to the first step; rate: steps/s."""

    first: float
    rate: float

    def steps(self, seconds: float) -> float:
        return self.rate * (seconds - self.first)


class Ran(NamedTuple):
    """A killed training. steps: how far it came; failed: starts that failed by themselves."""

    steps: int
    kills: int
    failed: int = 0


def _kill_every(began: float, seconds: float, kill: Callable[[], object]) -> int:
    """Kill at fixed intervals until the time is over; return how often."""
    kills = 0
    while (at := began + (kills + 1) * KILL_EVERY) < began + seconds:
        time.sleep(max(0.0, at - time.time()))
        kill()
        kills += 1
    time.sleep(max(0.0, began + seconds - time.time()))
    return kills


def ours(root: Path, name: str, seconds: float, *, warm: bool) -> Ran:
    """Kill a supervised job at fixed intervals, with default settings."""
    job = KilledJob(root, name, "dense", "--warm-spare" if warm else "--no-warm-spare")
    try:
        kills = _kill_every(job.began, seconds, job.kill)
        time.sleep(FLUSHED)
        newest, _ = job.attempt()
        for attempt in range(newest, 0, -1):
            done = [r["step"] for r in job.steps(attempt) if r["time"] <= job.began + seconds]
            if done:
                return Ran(done[-1], kills)
        return Ran(0, kills)
    finally:
        job.close()


def ours_untouched(root: Path, name: str) -> Pace:
    job = KilledJob(root, name, "dense")
    try:
        until("step", lambda: job.steps(1))
        time.sleep(UNTOUCHED + FLUSHED)
        rows = job.steps(1)
        first, last = rows[0], rows[-1]
        rate = (last["step"] - first["step"]) / (last["time"] - first["time"])
        return Pace(first["time"] - job.began, rate)
    finally:
        job.close()


def _place(folder: Path) -> tuple[float, int, float]:
    """Return what victim.py recorded: time of the first step, number of steps, time of the last."""
    try:
        first, steps, last = PLACE.unpack((folder / "place").read_bytes())
    except (FileNotFoundError, struct.error):
        return 0.0, 0, 0.0
    return first, steps, last


class _Restarting:
    """Restarts a script, like a shell loop around it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.process = self._start()
        self.reached = self.failed = 0

    def _start(self) -> subprocess.Popen[bytes]:
        return start("dense", "keras-backup", self._folder)

    def look(self) -> None:
        """Restart the script if it has ended by itself."""
        if self.process.poll() is not None:
            self.failed += 1
            self.process = self._start()

    def kill(self) -> None:
        self.stop()
        self.process = self._start()

    def stop(self) -> None:
        self.failed += self.process.poll() is not None
        self.process.kill()
        self.process.wait()
        self.reached = _place(self._folder)[1] or self.reached


def keras(folder: Path, seconds: float) -> Ran:
    """Kill fit with BackupAndRestore at fixed intervals, and restart it each time."""
    began = time.time()
    loop = _Restarting(folder)
    try:
        kills = 0
        while (now := time.time()) < began + seconds:
            if now >= began + (kills + 1) * KILL_EVERY:
                kills += 1
                loop.kill()
            loop.look()
            time.sleep(0.2)
    finally:
        loop.stop()
    return Ran(loop.reached, kills, loop.failed)


def keras_untouched(folder: Path) -> Pace:
    folder.mkdir()
    began = time.time()
    process = start("dense", "keras", folder)
    try:
        until("step", lambda: _place(folder)[1])
        time.sleep(UNTOUCHED)
    finally:
        process.kill()
        process.wait()
    first, steps, last = _place(folder)
    return Pace(first - began, (steps - 1) / (last - first))


def run(*, full: bool = False, minutes: float | None = None) -> list[Figure]:
    """Measure once. It takes three times `minutes`, and two minutes more."""
    seconds = 60 * (minutes or (ALL_MINUTES if full else MINUTES))
    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as name:
        root = Path(name)
        paces = [(ours_untouched(root, "before"), keras_untouched(root / "keras-before"))]
        theirs = keras(root / "keras", seconds)
        mine = {warm: ours(root, f"job-{warm}", seconds, warm=warm) for warm in (True, False)}
        paces.append((ours_untouched(root, "after"), keras_untouched(root / "keras-after")))
    untouched = [statistics.mean(pair[which].steps(seconds) for pair in paces) for which in (0, 1)]
    return [_figure(warm, mine[warm], theirs, untouched, seconds) for warm in (True, False)]


def _figure(warm: bool, mine: Ran, theirs: Ran, untouched: list[float], seconds: float) -> Figure:
    share, other = mine.steps / untouched[0], theirs.steps / untouched[1]
    return Figure(
        f"killed every {KILL_EVERY:.0f} s, {'warm' if warm else 'no'} spare",
        "useful share of steps",
        Spread.of([share]),
        Spread.of([other]),
        "fit + BackupAndRestore(save_freq=10)",
        Spread.of([share / other]) if other else None,
        bar=f">= {BAR:g}",
        holds=share >= BAR,
        detail=f"{seconds:.0f} s, {mine.kills} kills: {mine.steps} steps of {untouched[0]:.0f}; "
        f"Keras {theirs.steps} of {untouched[1]:.0f}, {theirs.failed} starts failed by themselves",
    )


if __name__ == "__main__":
    minutes = {"type": float, "help": "default 1, with --full 5"}
    main(__doc__, run, {"--full": FULL, "--minutes": minutes})

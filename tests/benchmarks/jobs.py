"""Thousands of jobs below one root: `list` and `status`, with warm and cold page cache.

`python tests/benchmarks/jobs.py [--full] [--json]`: two thousand jobs, or with --full ten.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2]))

from outlast.job import heartbeat, process_identity
from outlast.job import spec as specs
from outlast.job.events import Ended, Launched, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from tests.benchmarks.command_line import FULL, main
from tests.benchmarks.commands import OUTLAST, forget_files, seconds
from tests.benchmarks.figure import PAIRS, Figure, Spread, compared, in_turn

JOBS, ALL_JOBS = 2_000, 10_000
BAR = 2.0  # seconds

# Reads the newest event of each job with plain system calls.
RAW = """
import os, sys
for entry in os.scandir(sys.argv[1]):
    names = os.listdir(f"{entry.path}/journal")
    file = os.open(f"{entry.path}/journal/{max(names)}", os.O_RDONLY)
    os.read(file, 65536)
    os.close(file)
"""


def make_jobs(root: Path, count: int) -> None:
    """Create finished jobs: the first with the real writers, the others as copies."""
    storage = open_storage(root / "job-00000")
    spec = JobSpec(job="job-00000", script="train.py", created=1e9)
    storage.create(layout.SPEC, specs.encode(spec))
    journal = Journal(storage)
    journal.append(Submitted())
    journal.claim(process_identity.here())
    journal.append(Launched(attempt=1))
    journal.append(Started(attempt=1))
    status = heartbeat.Status()
    status.phase, status.step, status.total_steps, status.epochs = 0, 5000, 5000, 5
    status.logs = {"loss": 0.5, "accuracy": 0.9}
    beat = status.beat(1, 7, process_identity.here())
    storage.replace(layout.heartbeat(1), msgspec.json.encode(beat), durable=False)
    journal.append(
        Ended(attempt=1, outcome=Outcome.COMPLETED, advanced=True, reached=beat.reached())
    )
    first = root / "job-00000"
    files = {p.relative_to(first): p.read_bytes() for p in first.rglob("*") if p.is_file()}
    for number in range(1, count):
        for path, content in files.items():
            to = root / f"job-{number:05d}" / path
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)


def run(*, full: bool = False, pairs: int = PAIRS) -> list[Figure]:
    """Measure everything in a temporary folder."""
    count = ALL_JOBS if full else JOBS
    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as name:
        root = Path(name, "root")
        make_jobs(root, count)
        alone = Path(name, "alone")
        make_jobs(alone, 1)
        listing = lambda: seconds(*OUTLAST, "list", "--root", str(root))  # noqa: E731
        raw = lambda: seconds(sys.executable, "-c", RAW, str(root))  # noqa: E731
        figures = [_list(f"list, {count:,} jobs, warm", listing, raw, pairs, full=full)]
        if forget_files():
            figures.append(
                _list(f"list, {count:,} jobs, cold", _cold(listing), _cold(raw), pairs, full=full)
            )
        mine, theirs = in_turn(
            lambda: seconds(*OUTLAST, "status", "--root", str(root), "job-00000"),
            lambda: seconds(*OUTLAST, "status", "--root", str(alone), "job-00000"),
            pairs,
        )
        figures.append(
            compared(
                f"status, one of {count:,} jobs",
                "s",
                mine,
                theirs,
                "the only job",
                bar=f"< {BAR:g} s",
                holds=Spread.of(mine).median < BAR,
            )
        )
        return figures


def _cold(measure: Callable[[], float]) -> Callable[[], float]:
    def cold() -> float:
        forget_files()
        return measure()

    return cold


def _list(
    name: str, ours: Callable[[], float], peer: Callable[[], float], pairs: int, *, full: bool
) -> Figure:
    mine, theirs = in_turn(ours, peer, pairs)
    return compared(
        name,
        "s",
        mine,
        theirs,
        "the same files, read plainly in Python",
        bar=f"< {BAR:g} s for {ALL_JOBS:,} jobs",
        holds=Spread.of(mine).median < BAR if full else None,
    )


if __name__ == "__main__":
    main(__doc__, run, {"--full": FULL})

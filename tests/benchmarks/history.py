"""A history of millions of rows: appending, reading the last rows, plotting all, resuming.

`python tests/benchmarks/history.py [--full] [--json]`: a million rows, or with --full ten.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outlast.job import process_identity
from outlast.job import spec as specs
from outlast.job.events import Launched, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot
from tests.benchmarks.command_line import FULL, main
from tests.benchmarks.commands import OUTLAST, forget_files, seconds, take
from tests.benchmarks.figure import PAIRS, Figure, Spread, compared, in_turn

ROWS, ALL_ROWS = 1_000_000, 10_000_000
EPOCHS = 100
SAMPLE = 50_000

PANDAS = """
import io, itertools, sys, time
import pandas
with open(sys.argv[1], "rb") as file:
    sample = io.BytesIO(b"".join(itertools.islice(file, int(sys.argv[2]))))
start = time.perf_counter()
pandas.read_json(sample, lines=True)
print(time.perf_counter() - start)
"""


def training(count: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a training of `count` steps, as `fit` writes them."""
    generator = random.Random(1)
    noise = [generator.random() for _ in range(9973)]
    steps = count // EPOCHS
    for step, other in enumerate(itertools.islice(itertools.cycle(noise), count), 1):
        epoch, batch = divmod(step - 1, steps)
        loss = 2.3 / (1 + step * 1e-5) + 0.1 * other
        place = {"phase": 0, "step": step, "epoch": epoch}
        at = 1.7e9 + step * 0.002137
        logs = {"accuracy": 1 - 1 / (2 + step * 1e-5), "loss": loss}
        yield {
            "kind": "step", **place, "batch": batch, "time": at, "logs": logs,
            "batch_loss": loss + noise[step * 7 % 9973] - 0.5,
        }  # fmt: skip
        if batch == steps - 1:
            yield {
                "kind": "epoch",
                **place,
                "time": at,
                "logs": {**logs, "val_loss": loss + 0.1, "val_accuracy": 0.5},
            }


def make_job(folder: Path, count: int) -> tuple[Storage, float, float]:
    """Create a job with a history; return seconds per row for the first and the last tenth."""
    storage = open_storage(folder)
    spec = JobSpec(job=folder.name, script="train.py", created=1e9)
    storage.create(layout.SPEC, specs.encode(spec))
    journal = Journal(storage)
    journal.append(Submitted())
    journal.claim(process_identity.here())
    journal.append(Launched(attempt=1))
    journal.append(Started(attempt=1))
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    history = HistoryWriter(storage, 1)
    history.append({"kind": "phase", "phase": 0, "step": 0, "name": None, "params": {}})
    rows = training(count)
    tenths = []
    for _ in range(10):
        spent, done = 0.0, 0
        while done < count // 10:
            some = list(itertools.islice(rows, min(10_000, count // 10 - done)))
            start = time.perf_counter()
            for row in some:
                history.append(row)
            spent += time.perf_counter() - start
            done += len(some)
        tenths.append(spent / done)
    for row in rows:
        history.append(row)
    mark = history.mark()
    history.close()
    store.save(sample_snapshot(count), reason="step", history=mark)
    return storage, tenths[0], tenths[-1]


def appending(folder: Path, first: float, last: float, pairs: int) -> Figure:
    rows = list(training(SAMPLE))
    numbers = itertools.count()

    def ours() -> float:
        history = HistoryWriter(open_storage(folder / f"appended-{next(numbers)}"), 1)
        start = time.perf_counter()
        for row in rows:
            history.append(row)
        spent = time.perf_counter() - start
        history.close()
        return spent / len(rows) * 1e6

    def peer() -> float:
        with open(folder / f"written-{next(numbers)}", "w", encoding="utf-8") as file:
            start = time.perf_counter()
            for row in rows:
                file.write(json.dumps(row) + "\n")
            return (time.perf_counter() - start) / len(rows) * 1e6

    mine, theirs = in_turn(ours, peer, pairs)
    return compared(
        "append a row",
        "us",
        mine,
        theirs,
        "json.dumps and file.write",
        bar="< 20 us, the same at any length",
        holds=Spread.of(mine).median < 20 and last < 20e-6,
        detail=f"first tenth of the history {first * 1e6:.2f} us, last {last * 1e6:.2f} us",
    )


def tail(job: Path, short: Path, pairs: int, *options: str) -> Figure:
    def ours(of: Path) -> float:
        return seconds(*OUTLAST, "history", str(of), "--tail", "20", *options) * 1e3

    mine, theirs = in_turn(lambda: ours(job), lambda: ours(short), pairs)
    start = Spread.of([seconds(*OUTLAST, "--version") * 1e3 for _ in range(pairs)])
    beyond = Spread.of(mine).median - start.median
    return compared(
        " ".join(["history --tail 20", *options]),
        "ms",
        mine,
        theirs,
        "of 1,000 rows",
        bar="< 50 ms beyond start-up",
        holds=beyond < 50,
        detail=f"beyond `outlast --version` ({start}): {beyond:.3g}",
    )


def plot(job: Path, count: int, pairs: int, *, full: bool) -> Figure:
    history = job / layout.history(1)
    memory = []

    def ours() -> float:
        took = take([*OUTLAST, "history", str(job), "--plot", str(job / "curves.png")])
        memory.append(took.memory)
        return took.seconds

    mine, theirs = in_turn(ours, lambda: _read_by_pandas(history) * count / SAMPLE, pairs)
    whole = Spread.of([seconds("cat", str(history)) for _ in range(pairs)])
    return compared(
        "plot of all rows",
        "s",
        mine,
        theirs,
        f"pandas.read_json of {SAMPLE:,} rows, scaled",
        bar=f"< 10 s for {ALL_ROWS:,} rows",
        holds=Spread.of(mine).median < 10 if full else None,
        detail=f"{count:,} rows, {history.stat().st_size / 1e9:.2f} GB (cat {whole} s), "
        f"at most {max(memory):.0f} MB of memory",
    )


def _read_by_pandas(history: Path) -> float:
    """Return the seconds in a separate process, so that its memory is not counted as ours."""
    done = subprocess.run(
        [sys.executable, "-c", PANDAS, str(history), str(SAMPLE)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def resume(storage: Storage, small: Storage, pairs: int) -> Figure:
    """Measure how long an attempt takes to begin, with a long and with a short history."""
    attempts = itertools.count(2)

    def begin(job: Storage) -> float:
        attempt = next(attempts)
        start = time.perf_counter()
        found, _ = CheckpointStore(job, attempt=attempt).begin()
        HistoryWriter(job, attempt).close()
        spent = time.perf_counter() - start
        assert found is not None
        return spent * 1e3

    mine, theirs = in_turn(lambda: begin(storage), lambda: begin(small), pairs)
    return compared(
        "begin of the next attempt",
        "ms",
        mine,
        theirs,
        "with 1,000 rows",
        bar="the history is not read",
        holds=Spread.of(mine).median < 3 * Spread.of(theirs).median + 5,
    )


def run(*, full: bool = False, pairs: int = PAIRS) -> list[Figure]:
    """Measure everything in a temporary folder (2 GB with `full`)."""
    count = ALL_ROWS if full else ROWS
    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as name:
        folder = Path(name)
        storage, first, last = make_job(folder / "long", count)
        small, *_ = make_job(folder / "short", 1000)
        forget_files()
        return [
            appending(folder, first, last, pairs),
            tail(folder / "long", folder / "short", pairs),
            tail(folder / "long", folder / "short", pairs, "--json"),
            plot(folder / "long", count, pairs, full=full),
            resume(storage, small, pairs),
        ]


if __name__ == "__main__":
    main(__doc__, run, {"--full": FULL})

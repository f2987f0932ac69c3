"""The cost of a key: a save of 300 MB, and reading it again, in a signed and in an unsigned job.

`python tests/benchmarks/signing.py [--json] [--pairs N]`. Both saves are durable and go past the
page cache, as those of a training on CPUs do. The MAC is computed on a second thread while the disk
writes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.command_line import HOW_MANY_PAIRS, main
from tests.benchmarks.figure import PAIRS, Figure, compared, in_turn

SIZE = 300_000_000  # bytes of state
ARRAYS = 12
Measure = Callable[[], float]


class Job:
    """The checkpoints of one job."""

    def __init__(self, folder: Path, key: Path | None) -> None:
        from outlast_checkpoints import CheckpointStore, open_storage
        from outlast_checkpoints.storage import key_file
        from outlast_checkpoints.storage.signed import SignedStorage

        storage = open_storage(folder)
        if key is not None:
            storage = SignedStorage(storage, key_file.load(key))
        storage.create("spec.json", b"{}")
        self.store = CheckpointStore(storage, attempt=1, past_cache=True)
        self.store.begin()
        self.step = 0
        self.cpu: list[float] = []  # seconds of each save, of all threads

    def save(self) -> float:
        """Save another 300 MB; return the seconds."""
        import numpy as np

        from outlast_checkpoints import ArrayFile, Progress, Snapshot

        self.step += 1
        arrays = {
            f"layers/dense_{index}/vars/0": np.full(SIZE // 4 // ARRAYS, self.step, np.float32)
            for index in range(ARRAYS)
        }
        at = Progress(phase=0, step=self.step, epoch=0, batch=self.step)
        snapshot = Snapshot(at, {"model.weights.h5": ArrayFile(arrays)})
        for old in self.store.ids()[:-1]:
            self.store.delete(old)
        start, began = time.perf_counter(), time.process_time()
        self.store.save(snapshot, reason="step")
        self.cpu.append(time.process_time() - began)
        return time.perf_counter() - start

    def load(self) -> float:
        """Read the newest checkpoint, every byte checked; return the seconds."""
        newest = self.store.ids()[-1]
        start = time.perf_counter()
        self.store.load(newest)
        return time.perf_counter() - start


def run(*, pairs: int = PAIRS) -> list[Figure]:
    """Measure both jobs alternately."""
    from outlast_checkpoints.storage import key_file

    with tempfile.TemporaryDirectory(prefix="outlast-bench-", dir=Path.cwd()) as name:
        folder = Path(name)
        key_file.create(folder / "key")
        signed, plain = Job(folder / "signed", folder / "key"), Job(folder / "plain", None)
        for job in (signed, plain):
            job.save()  # warms up
        saves = in_turn(signed.save, plain.save, pairs)
        loads = in_turn(signed.load, plain.load, pairs)
    ratio = statistics.median(a / b for a, b in zip(*saves, strict=True))
    return [
        compared(
            "a save of 300 MB with a key",
            "s",
            *saves,
            "without a key",
            bar="<= 1.05 x",
            holds=ratio <= 1.05,
        ),
        compared(
            "CPU time of such a save",
            "s",
            signed.cpu[1:],
            plain.cpu[1:],
            "without a key",
            detail="the MAC overlaps with the disk where a CPU is free",
        ),
        compared("reading it again", "s", *loads, "without a key"),
    ]


if __name__ == "__main__":
    main(__doc__, run, {"--pairs": HOW_MANY_PAIRS})

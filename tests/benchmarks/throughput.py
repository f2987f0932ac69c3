"""A 300 MB checkpoint: durable hashed writing and verified reading, compared with plain I/O.

`python tests/benchmarks/throughput.py [--json] [--pairs N]`: against a plain write and fsync of the
same bytes, and against Keras' `load_weights` of the same file, which checks nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from outlast_checkpoints.format import layout
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.benchmarks.command_line import HOW_MANY_PAIRS, main
from tests.benchmarks.figure import PAIRS, Figure, Spread, compared
from tests.benchmarks.loop import build
from tests.benchmarks.worker import several

Seconds = dict[str, float]


def writing() -> Callable[[], Seconds]:
    """Write a 300 MB checkpoint and the same bytes plainly, alternating which is first."""
    import numpy as np

    random = np.random.default_rng(1)
    arrays = {f"layers/{i}/vars/0": random.random(3_125_000, np.float32) for i in range(24)}
    folder = tempfile.TemporaryDirectory(prefix="outlast-bench-")
    store = CheckpointStore(open_storage(f"{folder.name}/job"), attempt=1)
    store.begin()
    count = 0

    def ours() -> float:
        snapshot = Snapshot(
            Progress(phase=0, step=count, epoch=0, batch=0), {"model.weights.h5": ArrayFile(arrays)}
        )
        start = time.perf_counter()
        manifest = store.save(snapshot, reason="step")
        seconds = time.perf_counter() - start
        store.delete(manifest.id)
        return seconds

    def plain() -> float:
        path = Path(folder.name, "plain")
        start = time.perf_counter()
        with path.open("xb", buffering=0) as file:
            for array in arrays.values():
                file.write(memoryview(array).cast("B"))
            os.fsync(file.fileno())
        seconds = time.perf_counter() - start
        path.unlink()
        return seconds

    def measure() -> Seconds:
        nonlocal count
        count += 1
        for array in arrays.values():
            array[0] += 1  # trained since, as all of it is; what stands still is not written again
        os.sync()
        first, second = (ours, plain) if count % 2 else (plain, ours)
        found = {first.__name__: first(), second.__name__: second()}
        assert folder.name
        return found

    return measure


def reading() -> Callable[[], Seconds]:
    """Restore a checkpoint into its model, and load the same file with `load_weights`."""
    from outlast.training.state.live_variables import LiveState

    model = build("dense")
    model.optimizer.build(model.trainable_variables)
    live = LiveState(model, [])
    folder = tempfile.TemporaryDirectory(prefix="outlast-bench-")
    storage = open_storage(f"{folder.name}/job")
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    files = {
        layout.WEIGHTS_FILE: live.weights(),
        layout.STATE_FILE: ArrayFile(live.others()),
    }
    made = store.save(Snapshot(Progress(phase=0, step=1, epoch=0, batch=1), files), reason="step")
    path = storage.local_path(layout.checkpoint_file(made.id, layout.WEIGHTS_FILE))
    count = 0

    def ours() -> float:
        start = time.perf_counter()
        loaded = CheckpointStore(storage).load(made.id)
        live.assign(loaded.files[layout.WEIGHTS_FILE], loaded.files[layout.STATE_FILE])
        return time.perf_counter() - start

    def whole() -> float:
        start = time.perf_counter()
        CheckpointStore(storage).latest()
        return time.perf_counter() - start

    def plain() -> float:
        start = time.perf_counter()
        model.load_weights(path)
        return time.perf_counter() - start

    def measure() -> Seconds:
        nonlocal count
        count += 1
        first, second = (ours, plain) if count % 2 else (plain, ours)
        found = {first.__name__: first(), second.__name__: second()}
        assert folder.name
        return {**found, "find": whole()}

    return measure


MEASURES = {"writing": writing, "reading": reading}


def run(*, pairs: int = PAIRS) -> list[Figure]:
    """Measure writing, then reading, with twice the usual pairs: disk times vary."""
    written = several(__file__, ["writing"], 2 * pairs)["writing"]
    read = several(__file__, ["reading"], 2 * pairs)["reading"]
    figures = []
    for name, found, against, bar in (
        ("durable hashed checkpoint of 300 MB", written, "raw write + fsync", 1.15),
        ("restore: read, check, assign", read, "Keras load_weights", 1.2),
    ):
        mine, theirs = [one["ours"] for one in found], [one["plain"] for one in found]
        ratio = Spread.of([a / b for a, b in zip(mine, theirs, strict=True)]).median
        figures.append(
            compared(name, "s", mine, theirs, against, bar=f"<= {bar:g} x", holds=ratio <= bar)
        )
    before = Spread.of([one["find"] for one in read])
    figures.append(Figure("before it: the newest checkpoint, found and verified", "s", before))
    return figures


if __name__ == "__main__":
    main(__doc__, run, {"--pairs": HOW_MANY_PAIRS}, worker=lambda name: MEASURES[name]())

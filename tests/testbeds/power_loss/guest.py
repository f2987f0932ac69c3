"""What runs in the virtual machine: says what the disk has kept, then trains and saves on it.

Each line on the console is a promise that is kept: a checkpoint that has been committed, an event
that has been written. Arguments: "sync" or "no-sync" (fsync does nothing), "train" or "look".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "service"))
sys.path.insert(0, str(Path(__file__).parents[3] / "checkpoints"))

import numpy as np

from outlast.job import process_identity
from outlast.job.events import Ended, Launched, Released, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format.lineage import read_lineage
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.verify import audit

JOB = "/job/training"
FIRST = np.full(2_000, 0.5)
BACKBONE = np.arange(1 << 18, dtype=np.float32)  # 1 MiB that never changes: a part of its own


def say(*words: object) -> None:
    """Write a line to the console; it is out when this returns."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def trained(weights: np.ndarray, step: int) -> np.ndarray:
    """Return what the training comes to by a step; each follows from the last."""
    return np.sin(weights * 1.7 + step).astype(np.float64)


def look() -> None:
    """Say everything that is on the disk and good."""
    storage = open_storage(JOB)
    journal = Journal(storage)
    for entry in journal.read():
        say("HAS", f"event-{entry.seq}")
    store = CheckpointStore(storage)
    line, damaged = read_lineage(storage)
    for error in damaged:
        say("BAD", error)
    (found,) = audit([store], at_once=1)
    if found.problem:
        say("BAD", found.problem)
    newest = line.attempts[0] if line.attempts else 0
    at, weights = 0, FIRST
    for one in found.checkpoints:
        for damage in one.damages:
            say("BAD", damage)
        if one.damages:
            continue
        while at < one.checkpoint.step:
            at += 1
            weights = trained(weights, at)
        # Those of older attempts were compared when they were new; their hashes are, each time.
        if one.checkpoint.attempt == newest:
            arrays = store.load(one.checkpoint).files["model.weights.h5"]
            same = np.array_equal(arrays["layers/dense/vars/0"], weights)
            if not same or not np.array_equal(arrays["layers/base/vars/0"], BACKBONE):
                say("WRONG", one.checkpoint)
                continue
        say("HAS", one.checkpoint)
    steps = [row["step"] for row in HistoryReader(storage).rows("step")]
    last = max((one.checkpoint.step for one in found.checkpoints), default=0)
    rows_good = steps == list(range(1, len(steps) + 1)) and len(steps) >= last
    say("ROWS" if rows_good else "BAD rows", len(steps), "rows, newest checkpoint at", last)


def train() -> None:
    """Go on from the newest checkpoint, and save after every step."""
    storage = open_storage(JOB)
    journal = Journal(storage)
    job = journal.job()
    if job is None:
        journal.append(Submitted(max_retries=1000))
        say("SAVED", f"event-{len(journal)}")
    elif job.in_flight:
        lost = Ended(attempt=job.attempt, outcome=Outcome.LOST, reason="power loss", advanced=True)
        job = journal.append(lost)
    if job is not None and job.state is State.WAITING:
        journal.append(Released(reason="power loss"))
    attempt = journal.claim(process_identity.here())[0].attempt
    journal.append(Launched(attempt=attempt))
    journal.append(Started(attempt=attempt))
    say("SAVED", f"event-{len(journal)}")
    store = CheckpointStore(storage, attempt=attempt, fence=lambda: journal.fence(attempt))
    found, damages = store.begin()
    say("RESUMED", found.checkpoint if found else "nothing", *damages)
    history = HistoryWriter(storage, attempt)
    step = found.progress.step if found else 0
    weights = FIRST
    if found:
        weights = store.load(found.id).files["model.weights.h5"]["layers/dense/vars/0"]
    while True:
        step += 1
        weights = trained(weights, step)
        row = {"kind": "step", "phase": 0, "step": step, "epoch": 0, "batch": step - 1}
        history.append({**row, "logs": {"loss": float(weights.mean())}})
        mark = history.mark()
        history.sync(mark)
        arrays = {"layers/dense/vars/0": weights, "layers/base/vars/0": BACKBONE}
        snapshot = Snapshot(
            Progress(phase=0, step=step, epoch=0, batch=step),
            files={"model.weights.h5": ArrayFile(arrays)},
            documents={"model.json": b"{}"},
        )
        say("SAVED", store.save(snapshot, reason="step", history=mark).checkpoint)


def main() -> None:
    how, what = sys.argv[1:3]
    if how == "no-sync":
        os.fsync = os.fdatasync = lambda file: None
    say("UP")
    try:
        look()
    except OutlastError as error:
        say("BAD", error)
    say("LOOKED")
    if what == "train":
        train()


main()

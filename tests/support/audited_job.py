"""A job that trains without Keras, and audits of it in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlast.audit import audit as audits
from outlast.audit.repetition import Repetition
from outlast.job import audit_target
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore


class Training:
    """An attempt that trains without Keras: the weights are the steps so far, times `factor`."""

    def __init__(self, storage: Storage, attempt: int, factor: float = 1.0) -> None:
        self._store = CheckpointStore(storage, attempt=attempt)
        self._history = HistoryWriter(storage, attempt)
        self._factor = factor
        newest, _ = self._store.begin()
        self._step = 0 if newest is None else newest.progress.step

    def to(self, step: int, stage: Stage = Stage.STEP) -> None:
        for done in range(self._step + 1, step + 1):
            logs = {"loss": self._factor / done}
            self._history.append({"kind": "step", "phase": 0, "step": done, "logs": logs})
        self._step = step
        document = {"logs": {}, "epoch_begun": False, "epoch_trained": stage is Stage.EPOCH}
        text = np.frombuffer(json.dumps(document).encode(), np.uint8)
        weights = np.full(3, step * self._factor)
        files = {
            layout.WEIGHTS_FILE: ArrayFile({"layers/dense/vars/0": weights}),
            layout.STATE_FILE: ArrayFile({"document": text}),
        }
        self._history.sync(self._history.mark())
        self._store.save(
            Snapshot(Progress(phase=0, step=step, epoch=0, batch=0, stage=stage), files),
            reason="step",
            history=self._history.mark(),
        )


def make_job(root: Path) -> tuple[Storage, Training]:
    """Make a job "j" of a script, with no checkpoint yet, and its first attempt."""
    submit(open_storage(root), JobSpec(job="j", script="train.py", env={"MINE": "x"}))
    storage = open_storage(root / "j")
    storage.create(layout.MACHINE, b"any")
    return storage, Training(storage, 1)


def audit_here(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let audits train in this process.

    The returned dict has what was seen. Its "factor" is that of the next audit, and its "changed"
    what that finds changed on the machine.
    """
    told: dict[str, Any] = {"factor": 1.0, "changed": None}

    def repeat(spec: JobSpec, storage: Storage, attempt: int, first: CheckpointId) -> Repetition:
        target = audit_target.load(storage)
        assert target is not None
        told.update(spec=spec, target=target, attempt=attempt, first=str(first))
        told["machine"] = storage.read(layout.MACHINE)
        training = Training(storage, attempt, told["factor"])
        training.to(target.step, Stage(target.stage))
        store = CheckpointStore(storage)
        return Repetition(store.load(store.ids()[-1]), told["changed"])

    monkeypatch.setattr(audits, "repeat", repeat)
    return told

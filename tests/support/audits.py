"""Audits of trainings in this process: the repetition is another run of the same script."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from outlast.attempt import context
from outlast.attempt.context import AttemptContext
from outlast.attempt.signals import StopFlag
from outlast.audit import audit as audits
from outlast.audit.interval import Interval
from outlast.audit.repetition import Repetition
from outlast.audit.scratch import scratch
from outlast.audit.verdict import Verdict
from outlast.job import audit_target
from outlast.job.heartbeat import Status
from outlast.job.logs import silent_logger
from outlast.job.spec import JobSpec
from outlast.job.submission import load_spec
from outlast.training.errors import StateSaved
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.training_harness import begin_process, process


def intervals(folder: Path) -> list[Interval]:
    """Return the intervals between all neighbours among a job's checkpoints."""
    ids = CheckpointStore(open_storage(folder)).ids()
    return [Interval(a, b) for a, b in itertools.pairwise(ids) if a.phase == b.phase]


def audit(run: Callable[[], object], folder: Path, chosen: Interval) -> Verdict:
    """Audit an interval of the job in `folder`. `run` is the script, as in a new process."""

    def repeat(spec: JobSpec, storage: Storage, attempt: int, first: CheckpointId) -> Repetition:
        begin_process()
        context.set_current(
            AttemptContext(
                storage=storage,
                spec=spec,
                attempt=attempt,
                stop=StopFlag(),
                status=Status(),
                log=silent_logger(),
                fence=lambda: None,
                supervised=True,
                local_dir=storage.local_path(""),
                audit=audit_target.load(storage),
            )
        )
        try:
            with pytest.raises(StateSaved), process(folder):
                run()
        finally:
            context.set_current(None)
        store = CheckpointStore(storage)
        return Repetition(store.load(store.ids()[-1]), None)

    storage = open_storage(folder)
    with mock.patch.object(audits, "repeat", repeat), scratch(storage) as made:
        made.begin(storage, load_spec(storage), chosen.first)
        return audits.train_again(storage, load_spec(storage), made, chosen, 0.0)


def told(verdict: Verdict) -> str:
    """Return the differences as text, for a failing test."""
    lines = [str(verdict.interval), *map(str, verdict.differences)]
    return json.dumps(lines, indent=1)

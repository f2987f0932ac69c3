"""`audit`: train an interval of a job again in another process, and compare what it comes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from outlast.audit import interval as intervals
from outlast.audit.comparison import Difference, Times, compare_rows, compare_states
from outlast.audit.interval import At, Interval
from outlast.audit.repetition import Repetition, repeat
from outlast.audit.scratch import Scratch, scratch, target_of
from outlast.audit.state_leaves import State
from outlast.audit.verdict import Verdict
from outlast.errors import AuditImpossible, InvalidTransition
from outlast.job.events import Audited
from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast.job.submission import load_spec
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.manifest import HistoryMark, Manifest
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded


def audit(
    storage: Storage,
    *,
    at: At = At(),  # noqa: B008 - immutable
    ignored: Sequence[str] = (),
    on_begin: Callable[[Interval], None] = lambda _: None,
) -> Verdict:
    """Train an interval of the job again and compare. The job itself is only read.

    Args:
        storage: Storage of the job; it may be training.
        at: Which interval to train again; default: the newest.
        ignored: Paths of values to leave out, each with everything below it.
        on_begin: Called with the interval before it is trained.

    Raises:
        AuditImpossible: the job has no such interval, or no script.
        AuditFailed: the interval could not be trained again.
        CheckpointDamaged: a checkpoint of the interval is damaged.
        StorageError: the storage cannot be read.
    """
    began = time.time()
    spec = load_spec(storage)
    require_script(spec)
    chosen = intervals.choose(CheckpointStore(storage).ids(), spec.job, at)
    with scratch(storage) as folder:
        folder.begin(storage, spec, chosen.first)
        on_begin(chosen)
        return train_again(storage, spec, folder, chosen, began, ignored)


def train_again(
    storage: Storage,
    spec: JobSpec,
    folder: Scratch,
    chosen: Interval,
    began: float,
    ignored: Sequence[str] = (),
) -> Verdict:
    """Train an interval whose first checkpoint is in `folder`, compare, and record the outcome.

    Args:
        storage: Storage of the job.
        spec: Spec of the job.
        folder: Folder of the audit.
        chosen: The interval.
        began: When the audit began, in unix seconds.
        ignored: Paths of values to leave out.
    """
    last = folder.keep(storage, chosen.last)
    before = State(last.files, str(chosen.last))
    flags = (("epoch_begun", "begun"), ("epoch_trained", "trained"))
    begun, trained = (before.flag(*names) for names in flags)
    late = {Stage.STEP: trained, Stage.EPOCH: begun}.get(chosen.last.stage, False)
    rollbacks = Journal(storage).existing_job().rollbacks
    here = folder.describe(spec, target_of(chosen, late, rollbacks))
    again = repeat(here, folder.job, chosen.last.attempt + 1, chosen.first)
    differences, compared = _compare(storage, spec, folder, chosen, last, again, began, ignored)
    verdict = Verdict(
        job=spec.job,
        interval=chosen,
        differences=differences,
        compared=compared,
        seconds=round(time.time() - began, 3),
        machine_changed=again.machine_changed,
        written=again.written,
    )
    record(storage, verdict)
    return verdict


def _compare(
    storage: Storage,
    spec: JobSpec,
    folder: Scratch,
    chosen: Interval,
    last: Loaded,
    again: Repetition,
    began: float,
    ignored: Sequence[str],
) -> tuple[list[Difference], int]:
    mine, theirs = last.manifest, again.loaded.manifest
    times = Times(
        (spec.created - 1.0, max(mine.created, spec.created) + 1.0), (began, time.time() + 1.0)
    )
    before, after = State(last.files, mine.checkpoint), State(again.loaded.files, theirs.checkpoint)
    found = compare_states(before, after, times, ignored)
    if mine.id.place != theirs.id.place:
        how = f"{_where(mine)}, again {_where(theirs)}"
        found.insert(0, Difference(part="progress", path="end of the interval", how=how))
    first = CheckpointStore(folder.job).manifest(chosen.first)
    if first.history is not None and mine.history is not None:
        rows = HistoryReader(storage).between(first.history, mine.history)
        begin = HistoryMark(theirs.id.attempt, 0)
        marks = (begin, theirs.history or begin)
        row = compare_rows(rows, HistoryReader(folder.job).between(*marks), ignored)
        found += [] if row is None else [row]
    return found, sum(1 for _ in before.leaves(before.units()))


def record(storage: Storage, verdict: Verdict) -> None:
    """Add the outcome to the job's journal, if its storage accepts it."""
    first = next(iter(verdict.differences), None)
    event = Audited(
        first=str(verdict.interval.first),
        last=str(verdict.interval.last),
        exact=verdict.exact,
        difference="" if first is None else str(first),
        count=len(verdict.differences),
        seconds=verdict.seconds,
    )
    with suppress(StorageError, InvalidTransition):
        Journal(storage).append(event)


def require_script(spec: JobSpec) -> None:
    """Raise `AuditImpossible` if the job has no script that can be run again."""
    if spec.script is None and spec.module is None:
        raise AuditImpossible(
            job=spec.job,
            problem="it was started by hand and has no script",
            hint="Audit a job of a script (`outlast run`, or `python train.py`).",
        )


def _where(manifest: Manifest) -> str:
    progress = manifest.progress
    return f"step {progress.step}, epoch {progress.epoch}, {Stage(progress.stage).name.lower()}"

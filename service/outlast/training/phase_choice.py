"""Which phase of the job a call of `fit` or `Loop` is: a stored one, or a new one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from outlast.attempt import context, kept_files
from outlast.job.log_events import LogEvent
from outlast.training.call_site import CallSite
from outlast.training.errors import StateMismatch
from outlast.training.job import TrainingJob
from outlast.training.loaded_checkpoint import LoadedCheckpoint
from outlast.training.phase_order import Call
from outlast.training.state import document, random_state
from outlast.training.turn_watch import TurnWatch
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format.layout import STATE_FILE
from outlast_checkpoints.store.checkpoint_store import CheckpointStore

_watch: TurnWatch | None = None


def choose_phase(
    job: TrainingJob,
    call: Call,
    by: str,
    *,
    fingerprint: Mapping[str, Any],
    contents: Callable[[], Mapping[str, Any]],
    epochs: int,
    seed: int | None,
) -> tuple[int, LoadedCheckpoint | None]:
    """Enter the phase that this call is. Return its index and its checkpoint, `None` if it is new.

    `by` is the caller, "fit" or "Loop". `fingerprint` describes its training, and `contents`
    returns digests of its tf.data pipelines.

    A finished phase without a name that is a different training is passed over: the next one that
    matches is taken. If none matches, the phase is new, provided that the script is the one that
    finished them, so that the script itself passes over what it has finished. Otherwise the script
    was changed, and `PhaseMismatch` names the first difference.
    """
    if _watch is not None:
        _watch.end()
    job.record_left()
    kept_files.begin_phase()
    refused: StateMismatch | None = None
    changed = False
    for index in job.order.candidates(call):
        try:
            stored = LoadedCheckpoint.of(job, index, by)
        except StateMismatch as other:  # the other one wrote it
            if call.name is not None or index not in job.finished:
                raise
            refused, changed = refused or other, True
            continue
        if stored is not None:
            stored.note_seed(seed)
            if stored.is_over(job, epochs):
                mismatch = stored.mismatch(fingerprint, call.site, contents, epochs=epochs)
                if mismatch is not None:
                    if call.name is not None:
                        raise mismatch
                    refused = refused or mismatch
                    changed = changed or not _same_script(call.site, stored)
                    continue
                if refused is not None and call.key == (None, None):
                    _name_ambiguity(job, index)
            elif index == job.order.left and stored.is_other(fingerprint):
                continue  # the script is done with it
            stored.strict = refused is not None
        job.order.enter(index, call)
        return index, stored
    if refused is not None and changed:
        raise refused
    index = job.order.begin(call)
    passed = job.order.passed_over()
    if passed and _watch is not None and _watch.seen:
        job.reporter.log.info(
            LogEvent.RANDOM_STATE_PUT_BACK,
            phases=passed,
            phase=index,
            why="the script skips these phases, and a new turn of its loop began",
        )
    elif passed:
        why = (
            "the script skips phases that it finished before, so its random numbers are not those "
            "of a run without restarts"
        )
        instead = (
            "call fit for every phase, because a finished one costs no time; or seed each one in "
            "the script, before its model is made"
        )
        job.reporter.log.warning(
            LogEvent.PHASES_PASSED_OVER, phases=passed, phase=index, why=why, instead=instead
        )
        if not job.ctx.supervised:  # nobody shows its log
            sys.stderr.write(f"outlast: phase {index}: {why}: {instead}\n")
    return index, None


def _name_ambiguity(job: TrainingJob, index: int) -> None:
    """Log that another phase with the same training would get the result of this one."""
    job.reporter.log.warning(
        LogEvent.PHASE_AMBIGUOUS,
        phase=index,
        why="the script skips phases that it finished before, and this call is recognized by its "
        "training alone, so it gets the result of that phase",
        instead="give each fit or Loop a name, if the script trains the same more than once",
    )


def watch_turns() -> None:
    """Watch the script of a restarted job for phases that it passes over; see `TurnWatch`.

    Only a supervised job is known before its first phase.
    """
    global _watch
    ctx = context.current()
    if ctx is None or not ctx.supervised or ctx.attempt < 2 or ctx.rank.of > 1:
        return
    store = CheckpointStore(ctx.storage)
    try:
        newest, _ = store.latest(verify=False)
        if newest is None or not newest.progress.finished or newest.progress.place is None:
            return
        ends = [store.manifest(end).progress for end in store.finished_phases().values()]
    except OutlastError:  # the first phase reports it
        return

    def put_back() -> None:
        job = TrainingJob.current(None)
        found = job.newest
        if found is not None and found.checkpoint == newest.checkpoint:
            loaded = job.load(found.id)
            plain, _ = document.unpack(loaded.files[STATE_FILE], STATE_FILE)
            random_state.restore_all(plain["generators"])

    _watch = TurnWatch([end.place for end in ends if end.place is not None], put_back)
    _watch.begin()


def _same_script(site: CallSite, stored: LoadedCheckpoint) -> bool:
    return site.script is not None and stored.plain["called"]["script"] == site.script

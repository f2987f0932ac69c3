"""The status of a job from its journal and heartbeat, as `outlast status --json` prints it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from outlast.cli.display import units
from outlast.cli.job_address import Place

if TYPE_CHECKING:
    from outlast.job.heartbeat import Beat
    from outlast.job.journal import Entry
    from outlast.job.lifecycle import Job
    from outlast.job.spec import JobSpec
    from outlast_checkpoints.storage.base import Storage


def _queued(job: Job) -> dict[str, Any] | None:
    """Return the job's place in a cluster's queue, and its state there."""
    from outlast.engines import queue_state
    from outlast.errors import EngineFailed

    if job.queued is None:
        return None
    try:
        there = None if job.state.final else queue_state(job)
        stands = "gone" if there is None else str(there)
    except EngineFailed as error:
        stands = f"unknown: {error.fields['reason']}"
    return {"engine": job.queued.engine, "id": job.queued.handle.get("id"), "stands": stands}


def newest_beat(storage: Storage, spec: JobSpec, attempt: int) -> Beat | None:
    """Return the newest heartbeat of an attempt.

    An attempt of this machine that cannot reach the storage writes its heartbeat to the spool.
    """
    from outlast.job import heartbeat
    from outlast.job.spool_settings import existing_spool

    beat = heartbeat.read(storage, attempt) if attempt else None
    spool = existing_spool(storage, spec) if attempt else None
    spooled = None if spool is None else heartbeat.read(spool.storage, attempt)
    if spooled is None or (beat is not None and beat.process != spooled.process):
        return beat
    return spooled if beat is None or spooled.count > beat.count else beat


def job_status(place: Place) -> dict[str, Any]:
    """Return the fields that `outlast status --json` prints."""
    import msgspec

    from outlast.job import lifecycle, takeover
    from outlast.job.journal import Journal
    from outlast.job.submission import load_spec
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore

    storage = place.storage
    spec = load_spec(storage)
    journal = Journal(storage)
    job = journal.existing_job()
    beat = newest_beat(storage, spec, job.attempt)
    gone, described = takeover.is_gone(job.owner, beat), lifecycle.describe(job)
    store = CheckpointStore(storage)
    ids = store.ids()
    return {
        "job": place.name,
        "url": place.url,
        "runs": spec.runs,
        "state": job.state.value,
        "description": f"no process has it now; it was {described}" if gone else described,
        "queued": _queued(job),
        "outcome": job.outcome.value if job.outcome else None,
        "reason": job.reason,
        "protected": None if beat is None else beat.phase is not None,
        "exit_code": job.exit_code,
        "attempt": job.attempt,
        "failures": job.failures,
        "max_retries": job.max_retries,
        "owner": msgspec.to_builtins(job.owner) if job.owner else None,
        "process_gone": gone,
        "created": units.moment(spec.created),
        "forked_from": _forked_from(journal.read()),
        "away_since": units.moment(beat.away_since) if beat and beat.away_since else None,
        "progress": _progress(job, beat),
        "checkpoints": len(ids),
        "last_checkpoint": _checkpoint(store.manifest(ids[-1])) if ids else None,
        "attempts": attempts(journal.read()),
        "goodput": _goodput(storage, journal.read()),
        "audit": newest_audit(journal.read()),
        "rollbacks": [msgspec.to_builtins(one) for one in job.rollbacks],
        "spec": msgspec.to_builtins(spec),
    }


def _forked_from(entries: Iterable[Entry]) -> dict[str, str] | None:
    """Return the parent and the checkpoint that the job began at; None if it is no fork."""
    from outlast.job.events import Forked

    for entry in entries:
        if isinstance(entry.event, Forked):
            return {"parent": entry.event.parent, "checkpoint": entry.event.checkpoint}
    return None


def _progress(job: Job, beat: Beat | None) -> dict[str, Any] | None:
    """Return the last heartbeat; without the number of a process that has ended."""
    import msgspec

    if beat is None:
        return None
    lives = job.in_flight and beat.ended is None
    return {**msgspec.to_builtins(beat), "pid": beat.pid if lives else None}


def _goodput(storage: Storage, entries: Iterable[Entry]) -> dict[str, Any]:
    """Return how the job spent its time, in seconds, and its `goodput` from 0 to 1."""
    import msgspec

    from outlast.job import goodput, heartbeat
    from outlast.job.events import Claimed, Ended
    from outlast.job.outcome import Outcome

    began: dict[int, float] = {}
    ended: dict[int, tuple[float, Outcome]] = {}
    for entry in entries:
        if isinstance(entry.event, Claimed):
            began[entry.event.attempt] = entry.at
        elif isinstance(entry.event, Ended):
            ended[entry.event.attempt] = entry.at, entry.event.outcome
    lives = []
    for attempt, at in began.items():
        end, outcome = ended.get(attempt, (None, None))
        on_purpose = outcome in (Outcome.COMPLETED, Outcome.STOPPED)
        beat = heartbeat.read(storage, attempt)
        lives.append(goodput.Life(began=at, ended=end, on_purpose=on_purpose, beat=beat))
    found = goodput.measure(lives, time.time())
    values = msgspec.to_builtins(found)
    rounded = {name: round(value, 3) for name, value in values.items()}
    return {"goodput": round(found.share, 4), **rounded}


def newest_audit(entries: Iterable[Entry]) -> dict[str, Any] | None:
    """Return the JSON fields of the newest audit in the journal; None if there was none."""
    import msgspec

    from outlast.job.events import Audited

    found = None
    for entry in entries:
        if isinstance(entry.event, Audited):
            found = {**msgspec.to_builtins(entry.event), "at": units.moment(entry.at)}
    return found


def audit_line(found: dict[str, Any] | None) -> str:
    """Return the outcome of an audit in one line; "" if there was none."""
    if found is None:
        return ""
    where = f"{found['first']} to {found['last']}"
    if found["exact"]:
        return f"exact: {where}, {units.local(found['at'])}"
    return f"NOT EXACT: {where}, first in {found['difference']}"


def unprotected(found: dict[str, Any]) -> str:
    """Return a warning if the job succeeded without `fit` or `Loop`, or ""."""
    if found["state"] != "succeeded" or found["protected"] is not False:
        return ""
    problem = "nothing was protected: the script did not call outlast's fit or Loop"
    if found["spec"]["adopt"] == "no":
        return f"{problem}. Use `outlast run --adopt`, or `from outlast import fit`"
    return f"{problem}, or keras.Model.fit where it can be adopted. `outlast logs` says why"


def goodput_line(found: dict[str, Any]) -> str:
    """Return for example "0.93: training 4:10 of 4:29; getting ready 0:12"; "" before any step."""
    if not found["steps"]:
        return ""
    parts = [
        f"{name.replace('_', ' ')} {units.duration(found[name])}"
        for name in ("getting_ready", "down", "validating", "saving", "repeated")
        if found[name] >= 0.5
    ]
    if found["repeated_steps"]:
        parts.append(f"{units.number(found['repeated_steps'])} steps repeated")
    spent = f"training {units.duration(found['training'])} of {units.duration(found['total'])}"
    return f"{found['goodput']:.2f}: {'; '.join([spent, ', '.join(parts)] if parts else [spent])}"


def _checkpoint(manifest: Any) -> dict[str, Any]:
    return {
        "checkpoint": manifest.checkpoint,
        "phase": manifest.progress.phase,
        "step": manifest.progress.step,
        "epoch": manifest.progress.epoch,
        "reason": manifest.reason,
        "size": manifest.size,
        "created": units.moment(manifest.created),
    }


def attempts(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return the JSON fields of each attempt in the journal, oldest first."""
    from outlast.job.events import Claimed, Ended

    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, Claimed):
            found[event.attempt] = {
                "attempt": event.attempt,
                "started": units.moment(entry.at),
                "host": event.owner.host,
                "ended": None,
                "seconds": None,
                "outcome": None,
                "reason": "",
                "exit_code": None,
                "signal": None,
                "checkpoint": None,
                "_at": entry.at,
            }
        elif isinstance(event, Ended):
            known = found[event.attempt]
            known.update(
                ended=units.moment(entry.at),
                seconds=round(entry.at - known["_at"], 3),
                outcome=event.outcome.value,
                reason=event.reason,
                exit_code=event.exit_code,
                signal=event.signal,
                checkpoint=event.checkpoint,
            )
    for known in found.values():
        del known["_at"]
    return list(found.values())

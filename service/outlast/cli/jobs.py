"""`outlast list` and `outlast status`: how jobs stand, from journal and heartbeat."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from outlast_checkpoints import layout

from outlast.cli import view, words
from outlast.cli.group import Verb
from outlast.cli.options import job_argument, json_option, root_option
from outlast.cli.tables import print_fields, print_json, print_table
from outlast.cli.where import Place, absolute, find_job

if TYPE_CHECKING:
    from outlast_checkpoints.storage import Storage

    from outlast.heartbeat import Beat
    from outlast.journal import Entry
    from outlast.lifecycle import Job
    from outlast.roster import Listed


@click.command("list", cls=Verb)
@root_option()
@json_option("Print a JSON array.")
def list_jobs(root: str, as_json: bool) -> None:
    """List the jobs below the root, the last touched first."""
    from outlast_checkpoints.storage import open_storage

    from outlast import roster

    storage = open_storage(absolute(root))
    summaries = [_summary(found) for found in roster.listed(storage)]
    summaries.sort(key=lambda summary: summary["updated"], reverse=True)
    if as_json:
        print_json([{**summary, **_moments(summary)} for summary in summaries])
        return
    if not summaries:
        click.echo(f"No jobs in {storage.root}. Start one: outlast run train.py")
        return
    print_table(
        ["JOB", "STATE", "ATTEMPT", "STEP", "OF", "LOSS", "UPDATED", "NOTE"],
        [_line(summary) for summary in summaries],
    )


def _summary(found: Listed) -> dict[str, Any]:
    """Return what the list tells of a job."""
    entry, beat, reached = found.entry, found.beat, found.reached
    if entry is None:
        return {"job": found.name, "state": "unreadable", "updated": 0.0, "note": found.problem}
    return {
        "job": found.name,
        "state": entry.state.value,
        "attempt": entry.attempt,
        "phase": reached.phase if reached else None,
        "step": reached.step if reached else None,
        "total_steps": reached.total_steps if reached else None,
        "epoch": reached.epoch if reached else None,
        "epochs": reached.epochs if reached else None,
        "logs": dict(reached.logs) if reached else {},
        "last_checkpoint": reached.last_checkpoint if reached else None,
        "updated": max(entry.at, beat.at if beat else 0.0),
        "note": "its process is gone" if is_gone(entry.state.value, beat) else "",
    }


def _queued(job: Job) -> dict[str, Any] | None:
    """Return where a cluster has the job, and how it stands there now."""
    from outlast.cli.handing_over import standing
    from outlast.errors import BackendFailed

    if job.queued is None:
        return None
    try:
        there = None if job.state.final else standing(job)
        stands = "gone" if there is None else str(there)
    except BackendFailed as error:
        stands = f"not known now: {error.fields['reason']}"
    return {"engine": job.queued.engine, "id": job.queued.handle.get("id"), "stands": stands}


def is_gone(state: str, beat: Beat | None) -> bool:
    """Return whether a job that should be at work has certainly lost its process."""
    from outlast.identity import Identity

    if state not in ("running", "stopping") or beat is None or beat.ended is not None:
        return False
    process = Identity(host=beat.host, pid=beat.pid, boot_id=beat.boot_id, start=beat.process_start)
    return process.gone()


def _moments(summary: dict[str, Any]) -> dict[str, str]:
    return {"updated": words.moment(summary["updated"])}


def _line(summary: dict[str, Any]) -> list[str]:
    def shown(name: str) -> str:
        value = summary.get(name)
        return "-" if value is None else words.number(value)

    loss = summary.get("logs", {}).get("loss")
    return [
        summary["job"],
        summary["state"],
        shown("attempt"),
        shown("step"),
        shown("total_steps"),
        "-" if loss is None else words.metric(loss),
        words.when(summary["updated"]) if summary["updated"] else "-",
        summary["note"],
    ]


@click.command("status", cls=Verb)
@job_argument
@json_option()
def status(root: str, job: str, as_json: bool) -> None:
    """Show how JOB stands: state, progress, last checkpoint, and each of its attempts."""
    from outlast_checkpoints.errors import StorageError
    from outlast_checkpoints.patience import BRIEF, patience

    from outlast.cli import away

    try:
        with patience(BRIEF):
            found = job_status(find_job(root, job))
    except StorageError as error:
        unreachable = away.status(root, job, error)
        if unreachable is None:
            raise
        if as_json:
            print_json(unreachable)
        else:
            print_fields(away.fields(unreachable))
        return
    if as_json:
        print_json(found)
    else:
        _print_status(found)


def job_status(place: Place) -> dict[str, Any]:
    """Return all that `outlast status --json` prints."""
    import msgspec
    from outlast_checkpoints.store import CheckpointStore

    from outlast import heartbeat, lifecycle
    from outlast import spec as specs
    from outlast.journal import Journal

    storage = place.storage
    spec = specs.decode(storage.read(layout.SPEC))
    journal = Journal(storage)
    job = journal.existing_job()
    beat = heartbeat.read(storage, job.attempt) if job.attempt else None
    store = CheckpointStore(storage)
    ids = store.ids()
    return {
        "job": place.name,
        "url": place.url,
        "runs": spec.runs,
        "state": job.state.value,
        "description": lifecycle.describe(job),
        "queued": _queued(job),
        "outcome": job.outcome.value if job.outcome else None,
        "reason": job.reason,
        "exit_code": job.exit_code,
        "attempt": job.attempt,
        "failures": job.failures,
        "max_retries": job.max_retries,
        "owner": msgspec.to_builtins(job.owner) if job.owner else None,
        "process_gone": is_gone(job.state.value, beat),
        "created": words.moment(spec.created),
        "progress": msgspec.to_builtins(beat) if beat else None,
        "checkpoints": len(ids),
        "last_checkpoint": _checkpoint(store.manifest(ids[-1])) if ids else None,
        "attempts": attempts(journal.read()),
        "goodput": _goodput(storage, journal.read()),
        "spec": msgspec.to_builtins(spec),
    }


def _goodput(storage: Storage, entries: Iterable[Entry]) -> dict[str, Any]:
    """Return what became of the job's time, seconds each, and `goodput` from 0 to 1."""
    import msgspec

    from outlast import goodput, heartbeat
    from outlast.lifecycle import Claimed, Ended, Outcome

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


def goodput_line(found: dict[str, Any]) -> str:
    """Return "0.93: training 4:10 of 4:29; getting ready 0:12, …", "" before any step."""
    if not found["steps"]:
        return ""
    parts = [
        f"{name.replace('_', ' ')} {words.duration(found[name])}"
        for name in ("getting_ready", "down", "validating", "saving", "repeated")
        if found[name] >= 0.5
    ]
    if found["repeated_steps"]:
        parts.append(f"{words.number(found['repeated_steps'])} steps done again")
    spent = f"training {words.duration(found['training'])} of {words.duration(found['total'])}"
    return f"{found['goodput']:.2f}: {'; '.join([spent, ', '.join(parts)] if parts else [spent])}"


def _checkpoint(manifest: Any) -> dict[str, Any]:
    return {
        "checkpoint": manifest.checkpoint,
        "phase": manifest.progress.phase,
        "step": manifest.progress.step,
        "epoch": manifest.progress.epoch,
        "reason": manifest.reason,
        "size": manifest.size,
        "created": words.moment(manifest.created),
    }


def attempts(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return each attempt's life as the journal tells it, oldest first."""
    from outlast.lifecycle import Claimed, Ended

    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, Claimed):
            found[event.attempt] = {
                "attempt": event.attempt,
                "started": words.moment(entry.at),
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
                ended=words.moment(entry.at),
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


def _print_status(found: dict[str, Any]) -> None:
    from outlast.heartbeat import Beat

    beat = Beat(**found["progress"]) if found["progress"] else None
    last = found["last_checkpoint"]
    fields = {
        "job": found["job"],
        "in": found["url"],
        "runs": found["runs"],
        "state": found["description"],
        "": "its process is gone: `outlast resume` goes on" if found["process_gone"] else "",
    }
    if (there := found["queued"]) is not None and there["stands"] != "gone":
        fields["queue"] = f"{there['engine']} {there['id']}: {there['stands']}"
    if beat is not None:
        fields |= {
            "at": " · ".join(filter(None, [view.epochs(beat), view.steps(beat)])),
            "metrics": view.metrics(beat),
        }
        if beat.ended is None:
            speeds = filter(None, [view.speed(beat), view.remaining(beat)])
            fields |= {
                "speed": " · ".join(speeds),
                "doing": f"{beat.activity}, process {beat.pid} on {beat.host}, "
                f"sign of life {_ago(beat.at)}",
            }
    if last is not None:
        fields["saved"] = (
            f"{last['checkpoint']}: step {words.number(last['step'])}, {words.size(last['size'])}"
            f" ({found['checkpoints']} kept)"
        )
    if beat is not None and beat.spooled:
        waiting = words.count(beat.spooled, "checkpoint")
        size = words.size(beat.spooled_bytes)
        fields["to send"] = f"{waiting} ({size}) on {beat.host} in {beat.spool}"
    fields["goodput"] = goodput_line(found["goodput"])
    print_fields(fields)
    if found["attempts"]:
        click.echo()
        print_table(
            ["ATTEMPT", "STARTED", "TOOK", "OUTCOME", "REASON"],
            [_attempt_line(attempt) for attempt in found["attempts"]],
        )


def _attempt_line(attempt: dict[str, Any]) -> list[str]:
    seconds = attempt["seconds"]
    return [
        str(attempt["attempt"]),
        words.local(attempt["started"]),
        "-" if seconds is None else words.duration(seconds),
        attempt["outcome"] or "-",
        attempt["reason"],
    ]


def _ago(unix: float) -> str:
    """Return how long ago by this machine's clock; another machine's may differ."""
    return f"{words.duration(max(0.0, time.time() - unix))} ago"

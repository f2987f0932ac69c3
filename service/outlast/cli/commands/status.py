"""`outlast status`: state, progress, last checkpoint and attempts of a job."""

from __future__ import annotations

import time
from typing import Any

import click

from outlast.cli.display import heartbeat_text, units
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_fields, print_json, print_table
from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.job_status import audit_line, goodput_line, job_status, unprotected
from outlast.cli.options import job_argument, json_option


@click.command("status", cls=Verb)
@job_argument
@json_option()
def status(root: str, job: str, as_json: bool) -> None:
    """Show the state, progress, last checkpoint and attempts of JOB."""
    from outlast.cli import offline_status
    from outlast_checkpoints.errors import StorageError
    from outlast_checkpoints.storage.retry_budget import BRIEF, patience

    try:
        with patience(BRIEF):
            found = job_status(find_job(root, job))
    except StorageError as error:
        unreachable = offline_status.status(root, job, error)
        if unreachable is None:
            raise
        if as_json:
            print_json(unreachable)
        else:
            print_fields(offline_status.fields(unreachable))
        return
    if as_json:
        print_json(found)
    else:
        _print_status(found)


def _print_status(found: dict[str, Any]) -> None:
    from outlast.job.heartbeat import Beat

    beat = Beat(**found["progress"]) if found["progress"] else None
    last = found["last_checkpoint"]
    fields = {
        "job": found["job"],
        "in": found["url"],
        "runs": found["runs"],
        "forked": _forked(found["forked_from"]),
        "tags": ", ".join(f"{name}={value}" for name, value in found["spec"]["tags"].items()),
        "state": found["description"],
        "": "its process is gone; resume it with `outlast resume`" if found["process_gone"] else "",
    }
    if (there := found["queued"]) is not None and there["stands"] != "gone":
        fields["queue"] = f"{there['engine']} {there['id']}: {there['stands']}"
    if beat is not None:
        fields |= {
            "at": " · ".join(
                filter(None, [heartbeat_text.epochs(beat), heartbeat_text.steps(beat)])
            ),
            "metrics": heartbeat_text.metrics(beat),
        }
        if beat.ended is None:
            speeds = filter(None, [heartbeat_text.speed(beat), heartbeat_text.remaining(beat)])
            fields |= {
                "speed": " · ".join(speeds),
                "doing": f"{beat.activity}, process {beat.pid} on {beat.host}, "
                f"heartbeat {_ago(beat.at)}",
            }
        if found["away_since"]:
            since = units.local(found["away_since"])
            fields["away"] = f"since {since}: the attempt cannot reach its storage"
        fields["machine"] = f"changed: {beat.machine_changed}" if beat.machine_changed else ""
    if last is not None:
        fields["saved"] = (
            f"{last['checkpoint']}: step {units.number(last['step'])}, {units.size(last['size'])}"
            f" ({found['checkpoints']} kept)"
        )
    if beat is not None and beat.spooled:
        waiting = units.count(beat.spooled, "checkpoint")
        size = units.size(beat.spooled_bytes)
        fields["to send"] = f"{waiting} ({size}) on {beat.host} in {beat.spool}"
    fields["left out"] = _left_out(found["rollbacks"])
    fields["audit"] = audit_line(found["audit"])
    fields["warning"] = unprotected(found)
    fields["goodput"] = goodput_line(found["goodput"])
    print_fields(fields)
    if found["attempts"]:
        say("")
        print_table(
            ["ATTEMPT", "STARTED", "TOOK", "OUTCOME", "REASON"],
            [_attempt_line(attempt) for attempt in found["attempts"]],
        )


def _forked(found: dict[str, str] | None) -> str:
    return "" if found is None else f"from {found['checkpoint']} of {found['parent']}"


def _left_out(rollbacks: list[dict[str, Any]]) -> str:
    """Return what rollbacks have left out, in one line."""
    steps = [
        f"{one['first']}" if one["first"] == one["last"] else f"{one['first']} to {one['last']}"
        for one in rollbacks
    ]
    return f"steps {', '.join(steps)}, after losses that were not finite" if steps else ""


def _attempt_line(attempt: dict[str, Any]) -> list[str]:
    seconds = attempt["seconds"]
    return [
        str(attempt["attempt"]),
        units.local(attempt["started"]),
        "-" if seconds is None else units.duration(seconds),
        attempt["outcome"] or "-",
        attempt["reason"],
    ]


def _ago(unix: float) -> str:
    """Return the age of a moment by this machine's clock; other machines' may differ."""
    return f"{units.duration(max(0.0, time.time() - unix))} ago"

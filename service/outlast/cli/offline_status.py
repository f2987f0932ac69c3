"""The status of a job whose storage cannot be reached, from this machine's spool."""

from __future__ import annotations

import time
from typing import Any

from outlast.cli.display import heartbeat_text, units
from outlast.cli.job_address import absolute
from outlast_checkpoints.errors import StorageError


def status(root: str, job: str, error: StorageError) -> dict[str, Any] | None:
    """Return the fields that `outlast status --json` prints; None if this machine knows nothing.

    Args:
        root: Root of the jobs.
        job: Name, folder or URL of the job.
        error: Why the storage cannot be reached.
    """
    import msgspec

    from outlast.job import heartbeat
    from outlast_checkpoints.storage import open_storage
    from outlast_checkpoints.store.spool import Spool

    url = _url(root, job)
    spool = Spool.found(open_storage(url))
    attempts = [] if spool is None else spool.attempts()
    if spool is None or not attempts:
        return None
    beat = heartbeat.read(spool.storage, attempts[-1])
    waiting = spool.waiting()
    return {
        "job": url.rpartition("/")[2],
        "url": url,
        "state": None,
        "reason": str(error),
        "attempt": attempts[-1],
        "away_since": units.moment(beat.away_since) if beat and beat.away_since else None,
        "progress": msgspec.to_builtins(beat) if beat else None,
        "spool": spool.path,
        "spooled": [str(one) for one in waiting],
        "spooled_bytes": spool.size(waiting),
    }


def ask_to_stop(root: str, job: str, *, by: str, now: bool) -> dict[str, Any] | None:
    """Ask the supervisor on this machine to stop a job whose storage cannot be reached.

    Args:
        root: Root of the jobs.
        job: Name, folder or URL of the job.
        by: Who wants it.
        now: Kill the attempt instead of letting it save.

    Returns:
        The fields "job", "url", "attempt" and "pid"; None if no attempt runs on this machine.
    """
    from outlast.job import heartbeat, stop_note
    from outlast_checkpoints.storage import open_storage
    from outlast_checkpoints.store.spool import Spool

    url = _url(root, job)
    spool = Spool.found(open_storage(url))
    attempts = [] if spool is None else spool.attempts()
    beat = heartbeat.read(spool.storage, attempts[-1]) if spool is not None and attempts else None
    if spool is None or beat is None or not beat.process.local or beat.process.gone():
        return None
    stop_note.leave(spool.storage, attempts[-1], stop_note.StopNote(by=by, now=now))
    return {"job": url.rpartition("/")[2], "url": url, "attempt": attempts[-1], "pid": beat.pid}


def _url(root: str, job: str) -> str:
    return absolute(job) if "://" in job else f"{absolute(root).rstrip('/')}/{job}"


def fields(found: dict[str, Any]) -> dict[str, str]:
    """Return the status as names and texts, for people."""
    from outlast.job.heartbeat import Beat

    since = found["away_since"]
    away = f"since {units.local(since)}: " if since else ""
    waiting = units.count(len(found["spooled"]), "checkpoint")
    lines = {
        "job": found["job"],
        "in": found["url"],
        "state": "unknown, because its storage cannot be reached",
        "away": f"{away}{found['reason']}",
        "waiting": f"{waiting} ({units.size(found['spooled_bytes'])}) in {found['spool']}",
    }
    if found["progress"]:
        beat = Beat(**found["progress"])
        ago = units.duration(max(0.0, time.time() - beat.at))
        lines |= {
            "at": " · ".join(
                filter(None, [heartbeat_text.epochs(beat), heartbeat_text.steps(beat)])
            ),
            "metrics": heartbeat_text.metrics(beat),
            "doing": f"{beat.activity}, process {beat.pid} on {beat.host}, heartbeat {ago} ago",
        }
    return lines

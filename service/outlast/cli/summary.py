"""Supervises a job from this terminal and prints a summary at the end."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from outlast.cli import offline_status
from outlast.cli.display import units
from outlast.cli.display.say import say
from outlast.cli.group import CliState
from outlast.cli.job_address import Place, job_reference
from outlast.cli.job_status import audit_line, goodput_line, job_status, unprotected
from outlast_checkpoints.arrays.unchanged import part_name
from outlast_checkpoints.errors import OutlastError, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.retry_budget import BRIEF, patience

if TYPE_CHECKING:
    from outlast.cli.display.terminal_observer import TerminalObserver


def terminal_observer() -> TerminalObserver:
    """Return a live line on a terminal that can move its cursor; else plain lines."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            from outlast.cli.display.live_line import LiveLine

            return LiveLine(console)
    from outlast.cli.display.plain_lines import Plain

    return Plain()


def supervise(place: Place, root: str) -> int:
    """Supervise the job until it ends or this process has to leave; return the exit code."""
    from outlast.job.lifecycle import exit_code
    from outlast.supervisor.stop_requests import StopRequests
    from outlast.supervisor.supervisor import Supervisor

    requests, cli = StopRequests(), click.get_current_context().find_object(CliState)
    with requests.signals(for_good=cli is not None and cli.alone):
        watching = terminal_observer()
        try:
            watching.say(f"job {place.name} in {place.url}")
            job = Supervisor(place.storage, observer=watching, requests=requests).run()
        finally:
            watching.close()
        say(summary(place, root), err=True)
        return exit_code(job)


def summary(place: Place, root: str) -> str:
    """Return a summary of the job, for people."""
    try:
        with patience(BRIEF):
            found = job_status(place)
    except StorageError as error:
        unreachable = offline_status.status(root, place.url, error)
        if unreachable is None:
            return f"\n{place.name}: {error}"
        return _columns(
            {
                **offline_status.fields(unreachable),
                "resume": f"outlast resume {job_reference(place, root)}",
            }
        )
    except OutlastError as error:
        return f"\n{place.name}: {error}"
    lines = {
        "job": f"{found['job']}: {found['description']}",
        "warning": unprotected(found),
        "steps": _steps(found),
        "attempts": _attempts(found),
        "goodput": goodput_line(found["goodput"]),
        "audit": audit_line(found["audit"]),
        **_checkpoint(place, found),
    }
    word = job_reference(place, root)
    if found["state"] == "failed":
        lines["why"] = f"outlast logs {word}; outlast logs --output {word}"
    if found["state"] != "succeeded":
        lines["resume"] = f"outlast resume {word}"
    if found["last_checkpoint"] and (found["state"] == "succeeded" or "load" not in lines):
        lines["export"] = f"outlast export {word} model.keras"
    return _columns(lines)


def _columns(lines: dict[str, str]) -> str:
    shown = {name: text for name, text in lines.items() if text}
    width = max(map(len, shown))
    return "\n" + "\n".join(f"{name.ljust(width)}  {text}" for name, text in shown.items())


def _steps(found: dict[str, Any]) -> str:
    progress = found["progress"]
    if not progress or progress["phase"] is None:
        return ""
    phase = f" of phase {progress['phase']}" if progress["phase"] else ""
    logs = ", ".join(
        f"{name} {units.metric(value)}"
        for name, value in sorted(progress["logs"].items(), key=lambda item: item[0] != "loss")
        if value is not None
    )
    return f"{units.number(progress['step'])}{phase}" + (f": {logs}" if logs else "")


def _attempts(found: dict[str, Any]) -> str:
    attempts = found["attempts"]
    if not attempts:
        return ""
    ended = Counter(one["outcome"] for one in attempts if one["outcome"])
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in ended.items())
    restarts = len(attempts) - 1
    again = "no restart" if not restarts else f"{restarts} restart{'s' if restarts > 1 else ''}"
    return f"{len(attempts)}, {again} ({outcomes})"


def _checkpoint(place: Place, found: dict[str, Any]) -> dict[str, str]:
    last = found["last_checkpoint"]
    if not last:
        return {}
    folder = f"{place.url}/{layout.CHECKPOINTS}/{last['checkpoint']}"
    lines = {"checkpoint": f"{folder} (step {units.number(last['step'])})"}
    part = f"{layout.CHECKPOINTS}/{last['checkpoint']}/{part_name(layout.WEIGHTS_FILE)}"
    # Keras can load the file directly, unless it is stored in parts.
    if "://" not in place.url and not place.storage.exists(part):
        lines["load"] = f'model.load_weights("{folder}/{layout.WEIGHTS_FILE}")'
    return lines

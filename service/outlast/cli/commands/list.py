"""`outlast list`: the jobs below a root."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outlast.cli.display import units
from outlast.cli.display.tables import print_json, print_table
from outlast.cli.group import Verb
from outlast.cli.job_address import absolute
from outlast.cli.job_status import is_gone
from outlast.cli.options import json_option, root_option

if TYPE_CHECKING:
    from outlast.job.listing import Listed

BUCKETS = ("s3", "gs", "gcs", "az", "abfs", "abfss")


@click.command("list", cls=Verb)
@root_option()
@json_option("Print a JSON array.")
def list_jobs(root: str, as_json: bool) -> None:
    """List the jobs below the root, most recently updated first.

    A root that does not exist is an error (exit code 4).
    """
    from outlast.job import listing
    from outlast_checkpoints.storage import open_storage

    storage = open_storage(absolute(root))
    summaries = [_summary(found) for found in listing.listed(storage)]
    summaries.sort(key=lambda summary: summary["updated"], reverse=True)
    if not summaries:
        _require_root(storage.root)
    if as_json:
        print_json([{**summary, **_moments(summary)} for summary in summaries])
        return
    if not summaries:
        click.echo(f"No jobs in {storage.root}. Start one with: outlast run train.py")
        return
    print_table(
        ["JOB", "STATE", "ATTEMPT", "STEP", "OF", "LOSS", "UPDATED", "NOTE"],
        [_line(summary) for summary in summaries],
    )


def _require_root(root: str) -> None:
    """Raise `RootUnknown` if the folder, or the bucket of the URL, does not exist."""
    from outlast.errors import RootUnknown
    from outlast_checkpoints.storage import open_storage

    scheme, mark, rest = root.partition("://")
    # A bucket has no empty folders, so only the existence of the bucket counts.
    if not mark:
        found = Path(root).is_dir()
    elif scheme in BUCKETS:
        found = open_storage(f"{scheme}://{rest.partition('/')[0]}").exists("")
    else:
        found = open_storage(root).exists("")
    if not found:
        raise RootUnknown(root=root)


def _summary(found: Listed) -> dict[str, Any]:
    """Return the fields that the list has for a job."""
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


def _moments(summary: dict[str, Any]) -> dict[str, str]:
    return {"updated": units.moment(summary["updated"])}


def _line(summary: dict[str, Any]) -> list[str]:
    def shown(name: str) -> str:
        value = summary.get(name)
        return "-" if value is None else units.number(value)

    loss = summary.get("logs", {}).get("loss")
    return [
        summary["job"],
        summary["state"],
        shown("attempt"),
        shown("step"),
        shown("total_steps"),
        "-" if loss is None else units.metric(loss),
        units.when(summary["updated"]) if summary["updated"] else "-",
        summary["note"],
    ]

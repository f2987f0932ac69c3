"""`outlast list`: the jobs below a root."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outlast.cli.display import units
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json, print_table
from outlast.cli.group import Verb
from outlast.cli.job_address import absolute, naming
from outlast.cli.options import json_option, root_option
from outlast.cli.values import states

if TYPE_CHECKING:
    from outlast.job.listing import Listed
    from outlast_checkpoints.storage.base import Storage

_GONE = "its process is gone"
_NOTES = {"removed": "deleted in part; repeat `outlast rm`"}
# what to sort by -> its key, and whether the largest comes first
ORDERS: dict[str, tuple[Callable[[dict[str, Any]], Any], bool]] = {
    "updated": (lambda one: one["updated"], True),
    "job": (lambda one: one["job"], False),
    "state": (lambda one: (_state(one), one["job"]), False),
    "attempt": (lambda one: one.get("attempt", 0), True),
    "step": (lambda one: _number(one.get("step")), True),
    "loss": (lambda one: _lowest(one.get("logs", {}).get("loss")), False),
}
BUCKETS = ("s3", "gs", "gcs", "az", "abfs", "abfss")


@click.command("list", cls=Verb)
@root_option()
@click.option(
    "--state",
    "states",
    type=states,
    default="",
    metavar="STATE[,STATE]...",
    help="List only jobs in one of these states; `gone` is a job whose process is gone.",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="List only jobs with this tag, and show their tags; repeatable.",
)
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(ORDERS)),
    default="updated",
    show_default=True,
    help="Sort by this: the newest, the furthest or the lowest loss first.",
)
@json_option("Print a JSON array.")
def list_jobs(
    root: str, states: frozenset[str], tags: tuple[str, ...], order: str, as_json: bool
) -> None:
    """List the jobs below the root, most recently updated first.

    A root that does not exist is an error (exit code 4).
    """
    from outlast.job import listing
    from outlast_checkpoints.storage import open_storage

    with naming("--root"):
        storage = open_storage(absolute(root))
    summaries = [_summary(found) for found in listing.listed(storage)]
    if not summaries:
        _require_root(storage.root)
    summaries = _chosen(storage, summaries, states, tags)
    key, largest_first = ORDERS[order]
    summaries.sort(key=key, reverse=largest_first)
    if as_json:
        print_json([{**summary, **_moments(summary)} for summary in summaries])
        return
    if not summaries and (states or tags):
        say(f"No such jobs in {storage.root}.")
        return
    if not summaries:
        say(f"No jobs in {storage.root}. Start one with: outlast run train.py")
        return
    print_table(
        [
            "JOB",
            "STATE",
            "ATTEMPT",
            "STEP",
            "OF",
            "LOSS",
            "UPDATED",
            *["TAGS"] * bool(tags),
            "NOTE",
        ],
        [_line(summary) for summary in summaries],
    )


def _chosen(
    root: Storage, summaries: list[dict[str, Any]], states: frozenset[str], tags: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the jobs in one of the states and with all of the tags. Only tags need the specs."""
    from outlast.job.submission import load_spec
    from outlast_checkpoints.errors import OutlastError

    if states:
        summaries = [one for one in summaries if _state(one) in states]
    if not tags:
        return summaries
    wanted = [tag.partition("=") for tag in tags]
    chosen = []
    for summary in summaries:
        try:
            found = load_spec(root.sub(summary["job"])).tags
        except OutlastError:
            continue
        if all(
            name in found and (not mark or found[name] == value) for name, mark, value in wanted
        ):
            chosen.append({**summary, "tags": dict(found)})
    return chosen


def _number(value: float | None) -> float:
    return -1.0 if value is None else value


def _lowest(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


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
    from outlast.job import takeover

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
        "note": _GONE if takeover.is_gone(found.owner, beat) else _NOTES.get(entry.state, ""),
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
        _state(summary),
        shown("attempt"),
        shown("step"),
        shown("total_steps"),
        "-" if loss is None else units.metric(loss),
        units.when(summary["updated"]) if summary["updated"] else "-",
        *[", ".join(f"{name}={value}" for name, value in tags.items()) for tags in _tags(summary)],
        summary["note"],
    ]


def _tags(summary: dict[str, Any]) -> list[dict[str, str]]:
    return [summary["tags"]] if "tags" in summary else []


def _state(summary: dict[str, Any]) -> str:
    return "gone" if summary["note"] == _GONE else str(summary["state"])

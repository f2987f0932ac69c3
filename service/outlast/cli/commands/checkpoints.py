"""`outlast checkpoints`: the checkpoints of a job and their sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from outlast.cli.display import units
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json, print_table
from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.options import job_argument, json_option
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format import layout

if TYPE_CHECKING:
    from outlast_checkpoints.format.layout import CheckpointId
    from outlast_checkpoints.storage.base import Storage
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore

MOST_METRICS = 3


@click.command("checkpoints", cls=Verb)
@job_argument
@json_option("Print a JSON array.")
def checkpoints(root: str, job: str, as_json: bool) -> None:
    """List the checkpoints of JOB, oldest first."""
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore

    store = CheckpointStore(find_job(root, job).storage)
    shared = Shared(store.storage)
    found = [{**describe(store, one), **shared.of(store, one)} for one in store.ids()]
    if as_json:
        print_json(found)
        return
    if not found:
        say("No checkpoints yet.")
        return
    print_table(
        ["CHECKPOINT", "STEP", "EPOCH", "SAVED FOR", "SIZE", "NEW", "SAVED AT", "METRICS"],
        [_line(one) for one in found],
    )


class Shared:
    """Finds the files that a checkpoint shares with older ones by hard links."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._seen: set[tuple[int, int]] = set()

    def of(self, store: CheckpointStore, checkpoint: CheckpointId) -> dict[str, int]:
        """Return how many bytes a checkpoint wrote, and how many it shares with older ones.

        Call it for one checkpoint after the other, oldest first.
        """
        try:
            manifest = store.manifest(checkpoint)
        except OutlastError:
            return {}
        shared = sum(entry.size for entry in manifest.files if self._known(checkpoint, entry.name))
        return {"written": manifest.size - shared, "shared": shared}

    def _known(self, checkpoint: CheckpointId, name: str) -> bool:
        local = self._storage.local_path(layout.checkpoint_file(checkpoint, name))
        if local is None:
            return False
        try:
            found = local.stat()
        except OSError:
            return False
        inode = (found.st_dev, found.st_ino)
        known = inode in self._seen
        self._seen.add(inode)
        return known


def describe(store: CheckpointStore, checkpoint: CheckpointId) -> dict[str, Any]:
    """Return the JSON fields of a checkpoint; "damage" describes a damaged manifest."""
    known: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "phase": checkpoint.phase,
        "step": checkpoint.step,
        "stage": checkpoint.stage.name.lower(),
        "attempt": checkpoint.attempt,
    }
    try:
        manifest = store.manifest(checkpoint)
    except OutlastError as error:
        return {**known, "damage": str(error)}
    progress = manifest.progress
    return {
        **known,
        "phase_name": progress.phase_name,
        "epoch": progress.epoch,
        "batch": progress.batch,
        "reason": manifest.reason,
        "parent": manifest.parent,
        "size": manifest.size,
        "files": [
            {"name": entry.name, "size": entry.size, "hash": entry.hash} for entry in manifest.files
        ],
        "metrics": dict(manifest.metrics),
        "created": units.moment(manifest.created),
        "held_ms": manifest.held_ms,
        "writer": dict(manifest.writer),
        "damage": None,
    }


def _line(one: dict[str, Any]) -> list[str]:
    if one["damage"]:
        return [one["checkpoint"], units.number(one["step"]), *"-----", one["damage"]]
    metrics = sorted(one["metrics"].items(), key=lambda item: item[0] != "loss")[:MOST_METRICS]
    return [
        one["checkpoint"],
        units.number(one["step"]),
        str(one["epoch"]),
        one["reason"],
        units.size(one["size"]),
        units.size(one["written"]),
        units.local(one["created"]),
        "  ".join(f"{name} {units.metric(value)}" for name, value in metrics),
    ]

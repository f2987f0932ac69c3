"""Selects a checkpoint by id, "latest", "best:METRIC" or "phase:N"."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from outlast_checkpoints.errors import CheckpointDamaged, NoCheckpoint, UsageError
from outlast_checkpoints.format.layout import CheckpointId

if TYPE_CHECKING:
    from outlast_checkpoints.format.manifest import Manifest
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore

HELP = (
    "ID, 'latest', 'best:METRIC[:min|:max]', 'phase:N' (the newest of that phase), or 'step:N' or "
    "'epoch:N' (the newest of the last phase at or before the end of that step or epoch)."
)


def select(
    store: CheckpointStore,
    wanted: str,
    warn: Callable[[str], None],
    field: str = "--checkpoint",
) -> Manifest:
    """Return the manifest of the checkpoint that `wanted` selects.

    Args:
        store: Checkpoints of the job.
        wanted: Value of the option.
        warn: Called with a text for each damaged checkpoint that "latest" skips.
        field: The option.

    Raises:
        NoCheckpoint: no checkpoint matches.
        CheckpointDamaged: the selected checkpoint is damaged.
        UsageError: `wanted` is not a valid selection.
    """
    kind, _, value = wanted.partition(":")
    if wanted == "latest":
        found, damages = store.latest()
        for damage in damages:
            warn(f"skipped: {damage}")
        if found is None:
            raise NoCheckpoint(wanted="good" if damages else "single", root=store.storage.root)
        return found
    if kind == "best" and value:
        return _best(store, value, field)
    if kind == "phase" and value.isdigit():
        of_phase = [one for one in store.ids() if one.phase == int(value)]
        if not of_phase:
            raise NoCheckpoint(wanted=wanted, root=store.storage.root)
        return store.manifest(of_phase[-1])
    if kind in ("step", "epoch") and value.isdigit():
        return _at(store, kind, int(value))
    checkpoint = CheckpointId.parse(wanted)
    if checkpoint is None:
        raise UsageError(field=field, problem=f"invalid selection {wanted!r}", hint=f"Use {HELP}")
    return store.manifest(checkpoint)


def _at(store: CheckpointStore, kind: str, limit: int) -> Manifest:
    """Return the newest checkpoint of the last phase that is not beyond a step or epoch."""
    ids = store.ids()
    for checkpoint in reversed(ids):
        if checkpoint.phase != ids[-1].phase:
            break
        if kind == "step" and checkpoint.step > limit:
            continue
        try:
            made = store.manifest(checkpoint)
        except CheckpointDamaged:
            continue
        if kind == "step" or (made.progress.epoch, made.progress.batch) <= (limit, 0):
            return made
    raise NoCheckpoint(wanted=f"{kind}:{limit}", root=store.storage.root)


def _best(store: CheckpointStore, value: str, field: str) -> Manifest:
    from outlast_checkpoints.format.retention import Keep

    best = Keep.parse(f"best:{value}").best
    assert best is not None  # parse accepted it
    sign = -1.0 if best.bigger else 1.0
    scored: list[tuple[float, CheckpointId]] = []
    names: set[str] = set()
    for checkpoint in store.ids():
        try:
            metrics = store.manifest(checkpoint).metrics
        except CheckpointDamaged:
            continue
        names |= metrics.keys()
        if not math.isnan(metrics.get(best.metric, math.nan)):
            scored.append((sign * metrics[best.metric], checkpoint))
    if not scored:
        raise UsageError(
            field=field,
            problem=f"no checkpoint has a metric {best.metric!r}",
            hint=f"Known metrics: {', '.join(sorted(names)) or 'none'}.",
        )
    # Of equally good checkpoints, the oldest.
    return store.manifest(min(scored)[1])

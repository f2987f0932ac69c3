"""Digests of the result of a training: hashes over every byte of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from outlast_checkpoints.errors import NoCheckpoint
from outlast_checkpoints.format import layout
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.store.checkpoint_store import CheckpointStore

if TYPE_CHECKING:
    from outlast_checkpoints.storage.base import Storage


@dataclass(frozen=True)
class Digest:
    """The digest of one part of a training's result."""

    part: str
    """Name of the part."""
    amount: str
    """Size of the part, for people."""
    hash: str
    """128-bit XXH3 hash."""


def digests(storage: Storage) -> list[Digest]:
    """Return the digests of a job's newest checkpoint and of its history, without times.

    Arrays are hashed with their names, types and shapes.

    Raises:
        NoCheckpoint: the job has no good checkpoint.
    """
    store = CheckpointStore(storage)
    newest, _ = store.latest()
    if newest is None:
        raise NoCheckpoint(wanted="good", root=storage.root)
    loaded = store.load(newest.id)
    model = loaded.files[layout.WEIGHTS_FILE]
    weights = {name: array for name, array in model.items() if not _of_optimizer(name)}
    optimizer = {name: array for name, array in model.items() if _of_optimizer(name)}
    return [
        _of_arrays("weights", weights),
        _of_arrays("optimizer", optimizer),
        _of_arrays("other state", loaded.files[layout.STATE_FILE]),
        _of_history(HistoryReader(storage).rows()),
    ]


def _of_optimizer(name: str) -> bool:
    return name.startswith("optimizer/")


def _of_arrays(part: str, arrays: Mapping[str, Any]) -> Digest:
    hasher = xxhash.xxh3_128()
    for name in sorted(arrays):
        array = arrays[name]
        hasher.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        hasher.update(array.tobytes())
    size = sum(array.nbytes for array in arrays.values())
    return Digest(part, f"{len(arrays)} arrays, {size:,} bytes", hasher.hexdigest())


def _of_history(rows: Iterable[Mapping[str, Any]]) -> Digest:
    hasher = xxhash.xxh3_128()
    counts = {"step": 0, "epoch": 0, "phase": 0}
    for row in rows:
        counts[row["kind"]] += 1
        kept = {name: value for name, value in row.items() if name != "time"}
        hasher.update(json.dumps(kept, sort_keys=True).encode() + b"\n")
    return Digest(
        "history", f"{counts['step']} steps, {counts['epoch']} epochs", hasher.hexdigest()
    )

"""Verification of many checkpoints, several files at a time. Shared files are read once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from outlast_checkpoints.arrays.hashing import Digests, Meter, Unread
from outlast_checkpoints.errors import CheckpointDamaged, NotAuthentic, OutlastError, named
from outlast_checkpoints.format.layout import MANIFEST_FILE, CheckpointId
from outlast_checkpoints.format.manifest import FileEntry, Manifest
from outlast_checkpoints.store import files
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.files import Damage

_AT_ONCE = 8  # two saturate a disk; in a bucket each one waits for its answers


@dataclass(slots=True)
class Audited:
    """A checkpoint and its damage. manifest: None if the manifest itself is damaged."""

    checkpoint: CheckpointId
    manifest: Manifest | None
    damages: list[Damage] = field(default_factory=list)


@dataclass(slots=True)
class Audit:
    """The result for one store, oldest first. problem: why verification ended early, if it did."""

    checkpoints: list[Audited] = field(default_factory=list)
    problem: OutlastError | None = None


def audit(
    stores: Sequence[CheckpointStore],
    *,
    deep: bool = True,
    at_once: int = _AT_ONCE,
    meter: Meter | None = None,
) -> list[Audit]:
    """Check every file of every checkpoint in the stores; return one result per store.

    deep: read and hash every byte; if False, compare only sizes. at_once: files read in parallel,
    each with a few megabytes of memory. meter: receives the progress in bytes.
    """
    meter = meter or Unread()
    digests = Digests(meter) if deep else None
    pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="audit")
    try:
        audits = list(pool.map(_manifests, stores))
        if deep:
            sizes = (one.manifest.size for a in audits for one in a.checkpoints if one.manifest)
            meter.expect(sum(sizes))
        checks = [
            (found, one, pool.submit(_check, store, one.manifest, entry, digests))
            for store, found in zip(stores, audits, strict=True)
            for one in found.checkpoints
            if one.manifest is not None
            for entry in one.manifest.files
        ]
        for found, one, check in checks:
            _take(found, one, check)
        return audits
    finally:
        pool.shutdown(cancel_futures=True)


def _check(
    store: CheckpointStore, manifest: Manifest, entry: FileEntry, digests: Digests | None
) -> Damage | None:
    if digests is None:
        return files.check_size(store.storage, manifest, entry)
    return files.check_file(store.storage, manifest, entry, digests)


def _take(found: Audit, one: Audited, check: Future[Damage | None]) -> None:
    try:
        damage = check.result()
    except Exception as error:  # noqa: BLE001  (the problem of one job does not stop the others)
        found.problem = found.problem or named(error)
        return
    if damage is not None:
        one.damages.append(damage)


def _manifests(store: CheckpointStore) -> Audit:
    found = Audit()
    try:
        for checkpoint in store.ids():
            found.checkpoints.append(_manifest(store, checkpoint))
    except Exception as error:  # noqa: BLE001  (as above)
        found.problem = named(error)
    return found


def _manifest(store: CheckpointStore, checkpoint: CheckpointId) -> Audited:
    try:
        return Audited(checkpoint, store.manifest(checkpoint))
    except (CheckpointDamaged, NotAuthentic) as error:
        reason = error.fields["reason"]
        if isinstance(error, NotAuthentic):
            reason = f"no holder of the key wrote it: {reason}"
        damage = Damage(str(checkpoint), MANIFEST_FILE, reason)
        return Audited(checkpoint, None, [damage])

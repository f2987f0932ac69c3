"""Every byte of many checkpoints, several files at a time; what they share is read once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from checkpoints import content
from checkpoints.content import Damage
from checkpoints.digest import Digests, Meter, Unread
from checkpoints.errors import CheckpointDamaged
from checkpoints.layout import MANIFEST_FILE, CheckpointId
from checkpoints.manifest import Manifest
from checkpoints.store import CheckpointStore

_AT_ONCE = 8  # a disk has enough with two; in a bucket each of them waits for its answers


@dataclass(frozen=True, slots=True)
class Audited:
    """A checkpoint and all that is wrong with it; manifest: None when that is what is damaged."""

    checkpoint: CheckpointId
    manifest: Manifest | None
    damages: list[Damage] = field(default_factory=list)


def audit(
    stores: Sequence[CheckpointStore], *, at_once: int = _AT_ONCE, meter: Meter | None = None
) -> list[list[Audited]]:
    """Read and hash every file of every checkpoint of the stores; return what was found in each.

    at_once: files read at a time, a few megabytes of memory each. meter: told how many bytes
    there are, and how many are done. Raises `StorageError` when a store cannot be asked.
    """
    meter = meter or Unread()
    digests = Digests(meter)
    pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="audit")
    try:
        found = list(pool.map(_manifests, stores))
        meter.expect(sum(one.manifest.size for some in found for one in some if one.manifest))
        checks: list[tuple[Audited, Future[Damage | None]]] = []
        for store, some in zip(stores, found, strict=True):
            for one in some:
                if one.manifest is None:
                    continue
                for entry in one.manifest.files:
                    check = pool.submit(
                        content.check_file, store.storage, one.manifest, entry, digests
                    )
                    checks.append((one, check))
        for one, check in checks:
            damage = check.result()
            if damage is not None:
                one.damages.append(damage)
        return found
    finally:
        pool.shutdown(cancel_futures=True)


def _manifests(store: CheckpointStore) -> list[Audited]:
    return [_manifest(store, checkpoint) for checkpoint in store.ids()]


def _manifest(store: CheckpointStore, checkpoint: CheckpointId) -> Audited:
    try:
        return Audited(checkpoint, store.manifest(checkpoint))
    except CheckpointDamaged as error:
        damage = Damage(str(checkpoint), MANIFEST_FILE, error.fields["reason"])
        return Audited(checkpoint, None, [damage])

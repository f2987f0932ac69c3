"""The lineage: which checkpoints and history rows belong to the training.

Before its first step an attempt writes to `origin.json` what it resumed from. Walking back from
the newest attempt gives one line. An older attempt counts only up to the place where the next one
took over, so a late commit of a superseded attempt does not count.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from outlast_checkpoints.errors import FormatError, FormatTooNew, NotAuthentic, NotFound
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import HistoryMark, Manifest
from outlast_checkpoints.format.manifest import decode as decode_manifest
from outlast_checkpoints.format.sealed_json import seal, unseal
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document

FORMAT = 1
REWIND = 2  # the format of the origin of an attempt that only rewinds the job


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an attempt resumed from. `checkpoint` is None if it started from the beginning."""

    format: int = FORMAT
    attempt: int
    checkpoint: str | None = None
    history: HistoryMark | None = None

    @property
    def rewind(self) -> bool:
        """Whether a user chose the checkpoint, and the attempt trains nothing."""
        return self.format == REWIND


def encode(origin: Origin) -> bytes:
    """Return the content of an `origin.json`."""
    return seal(origin)


def decode(data: bytes, path: str) -> Origin:
    """Decode the origin read from `path`. Raises `FormatError`, `FormatTooNew`."""
    origin = unseal(data, path, Origin, REWIND)
    if origin.checkpoint is not None:
        found = CheckpointId.parse(origin.checkpoint)
        if found is None or found.attempt >= origin.attempt:
            raise FormatError(
                path=path, reason=f"{origin.checkpoint!r} is not an earlier checkpoint"
            )
    return origin


class Lineage:
    """The attempts that count, newest first.

    missing: the attempt at which the line breaks off because its origin is unknown, or None.
    """

    def __init__(self, line: list[Origin], missing: int | None = None) -> None:
        self._bounds: dict[int, tuple[int, int, int] | None] = {}
        self._marks: dict[int, int | None] = {}
        self.line = line
        self.missing = missing
        bound: tuple[int, int, int] | None = None
        mark: int | None = None
        for origin in line:
            self._bounds[origin.attempt] = bound
            self._marks[origin.attempt] = mark
            if origin.checkpoint is not None:
                source = CheckpointId.parse(origin.checkpoint)
                assert source is not None  # `decode` has checked it
                bound = source.place
                mark = origin.history.mark if origin.history else 0
        if missing is not None:
            self._bounds[missing] = bound
            self._marks[missing] = mark

    @classmethod
    def of(cls, origins: Iterable[Origin], unknown: Iterable[int] = ()) -> Lineage:
        """Walk back from the newest attempt.

        unknown: attempts that trained, but whose origin can no longer be read.
        """
        by_attempt = {origin.attempt: origin for origin in origins}
        line: list[Origin] = []
        at = max([*by_attempt, *unknown], default=None)
        while at is not None:
            origin = by_attempt.get(at)
            if origin is None:
                return cls(line, missing=at)
            line.append(origin)
            source = CheckpointId.parse(origin.checkpoint) if origin.checkpoint else None
            at = source.attempt if source else None
        return cls(line)

    @property
    def attempts(self) -> list[int]:
        """The attempts on the line, newest first."""
        return list(self._bounds)

    @property
    def newest(self) -> Origin | None:
        """The origin of the newest attempt, or None before the first."""
        return self.line[0] if self.line else None

    def accepts(self, checkpoint: CheckpointId) -> bool:
        """Return whether a checkpoint counts."""
        if checkpoint.attempt not in self._bounds:
            return False
        bound = self._bounds[checkpoint.attempt]
        return bound is None or checkpoint.place <= bound

    def history_parts(self) -> list[tuple[int, int | None]]:
        """Return (attempt, mark in bytes), oldest first. A mark of None means all rows."""
        return [(attempt, self._marks[attempt]) for attempt in reversed(self._marks)]


def is_set_aside(checkpoint: CheckpointId, origins: Iterable[Origin]) -> bool:
    """Return whether a checkpoint that does not count did so until a rewind.

    Args:
        checkpoint: A checkpoint outside of the lineage.
        origins: All origins of the job.
    """
    known = list(origins)
    return any(
        Lineage.of(one for one in known if one.attempt < rewind.attempt).accepts(checkpoint)
        for rewind in known
        if rewind.rewind
    )


def read_lineage(
    storage: Storage, known: dict[int, Origin] | None = None
) -> tuple[Lineage, list[FormatError]]:
    """Read the lineage of a job, and find the origins that are damaged or missing.

    An unreadable origin is rebuilt from the manifests of its attempt. An attempt without manifests
    committed nothing and is skipped.
    known: origins that were read before, by attempt. They never change, so each is read once.
    """
    known = {} if known is None else known
    rebuilt: list[Origin] = []
    unknown: list[int] = []
    damaged: list[FormatError] = []
    names = map(CheckpointId.parse, storage.list(layout.CHECKPOINTS))
    found = sorted(checkpoint for checkpoint in names if checkpoint is not None)
    numbers = {layout.parse_attempt(name) for name in storage.list(layout.ATTEMPTS)}
    attempts = {number for number in numbers if number is not None}
    attempts |= {checkpoint.attempt for checkpoint in found}
    for attempt in sorted(attempts - set(known)):
        path = layout.origin(attempt)
        try:
            known[attempt] = _read_origin(storage, attempt)
        except (FormatTooNew, NotAuthentic):
            raise
        except (NotFound, FormatError) as error:
            own = (_manifest(storage, at) for at in found if at.attempt == attempt)
            oldest = next(filter(None, own), None)
            if oldest is None:
                continue
            reason = "it is missing" if isinstance(error, NotFound) else error.fields["reason"]
            damaged.append(FormatError(path=path, reason=reason))
            origin = _rebuild(storage, attempt, oldest)
            if origin is not None:
                rebuilt.append(origin)
            else:
                unknown.append(attempt)
    return Lineage.of([*known.values(), *rebuilt], unknown), damaged


def read_history_marks(storage: Storage, line: Lineage) -> list[HistoryMark]:
    """Return what checkpoints say of the history: the furthest mark of each attempt that counts.

    Older attempts count up to where the next one took over, and the newest one up to its newest
    checkpoint.
    """
    found = [origin.history for origin in line.line if origin.history is not None]
    names = map(CheckpointId.parse, storage.list(layout.CHECKPOINTS))
    for at in sorted((at for at in names if at is not None), reverse=True):
        made = _manifest(storage, at) if at.attempt == max(line.attempts, default=0) else None
        if made is not None and made.history is not None:
            found.append(made.history)
            break
    return [mark for mark in found if mark.mark]


def _read_origin(storage: Storage, attempt: int) -> Origin:
    path = layout.origin(attempt)
    origin = decode(read_document(storage, path), path)
    if origin.attempt != attempt:
        raise FormatError(path=path, reason=f"it belongs to attempt {origin.attempt}")
    return origin


def _rebuild(storage: Storage, attempt: int, oldest: Manifest) -> Origin | None:
    if oldest.parent is None:
        return Origin(attempt=attempt)
    parent = CheckpointId.parse(oldest.parent)
    resumed = _manifest(storage, parent) if parent and parent.attempt < attempt else None
    if resumed is None:
        return None
    return Origin(attempt=attempt, checkpoint=resumed.checkpoint, history=resumed.history)


def _manifest(storage: Storage, checkpoint: CheckpointId) -> Manifest | None:
    path = layout.manifest(checkpoint)
    try:
        return decode_manifest(read_document(storage, path), path)
    except (NotFound, FormatError):
        return None

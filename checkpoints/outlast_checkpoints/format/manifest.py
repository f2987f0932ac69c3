"""The manifest of a checkpoint: what belongs to it, how long and with which hash.

It is written last: a checkpoint exists when its manifest does. Nothing that it names changes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from outlast_checkpoints.errors import FormatError, OutlastError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.sealed_json import seal, unseal
from outlast_checkpoints.format.snapshot import Progress

FORMAT = 2  # the newest that is read; what needs no more is written as 1, for older readers
REASONS = ("start", "step", "time", "epoch", "stop", "signal", "end", "request")

_HASH = re.compile(r"xxh3:[0-9a-f]{32}")
_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of a checkpoint. size: bytes. hash: "xxh3:" and 32 hex digits (XXH3, 128 bits).

    part_of: the file whose other arrays it holds, those that did not change; None: it is whole.
    """

    name: str
    size: int
    hash: str
    part_of: str | None = None


class HistoryMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in an attempt's history: `mark` bytes of rows from its beginning."""

    attempt: int
    mark: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A committed checkpoint.

    checkpoint: its name. parent: the checkpoint saved before it or resumed from, if any.
    reason: one of `REASONS`. metrics: the newest logs. history: rows that belong to it.
    created: Unix seconds, for people only. held_ms: how long the training was held for it.
    writer: versions of what wrote it, by package name.
    """

    format: int = 1
    checkpoint: str
    progress: Progress
    reason: str
    parent: str | None = None
    files: tuple[FileEntry, ...] = ()
    history: HistoryMark | None = None
    metrics: dict[str, float] = {}
    created: float = 0.0
    held_ms: float = 0.0
    writer: dict[str, str] = {}

    @property
    def id(self) -> CheckpointId:
        """The name, taken apart."""
        found = CheckpointId.parse(self.checkpoint)
        if found is None:
            raise FormatError(path=self.checkpoint, reason="not the name of a checkpoint")
        return found

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)


def format_of(files: Iterable[FileEntry]) -> int:
    """Return the format that a manifest of these files has to say: 2 when a file has parts."""
    return 2 if any(entry.part_of is not None for entry in files) else 1


class _Stored(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    metrics: dict[str, float | str] = {}  # type: ignore[assignment]


def spell(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and the infinities by name."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def unspell(value: Any) -> Any:
    """Return what `spell` was given; anything else as it is."""
    return _SPELLED.get(value, value) if isinstance(value, str) else value


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest file."""
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    metrics = {name: spell(float(value)) for name, value in manifest.metrics.items()}
    return seal(_Stored(**{**fields, "metrics": metrics}))


def decode(data: bytes, path: str) -> Manifest:
    """Return the manifest found at `path`. Raises `FormatError`, `FormatTooNew`."""
    stored = unseal(data, path, _Stored, FORMAT)
    fields = {name: getattr(stored, name) for name in stored.__struct_fields__}
    manifest = Manifest(**{**fields, "metrics": _metrics(stored.metrics, path)})
    problem = _problem(manifest)
    if problem:
        raise FormatError(path=path, reason=problem)
    return manifest


def _metrics(stored: Mapping[str, float | str], path: str) -> dict[str, float]:
    metrics = {name: unspell(value) for name, value in stored.items()}
    for name, value in metrics.items():
        if isinstance(value, str):
            raise FormatError(path=path, reason=f"metric {name} is {value!r}")
    return metrics


def _problem(manifest: Manifest) -> str | None:
    progress = manifest.progress
    found = CheckpointId.parse(manifest.checkpoint)
    if found is None or found.place != (progress.phase, progress.step, progress.stage):
        return f"checkpoint {manifest.checkpoint!r} does not fit its progress"
    if manifest.parent is not None and CheckpointId.parse(manifest.parent) is None:
        return f"parent {manifest.parent!r} is no checkpoint's name"
    names = [entry.name for entry in manifest.files]
    for entry in manifest.files:
        try:
            layout.check_name("file", entry.name)
        except OutlastError as error:
            return str(error)
        if names.count(entry.name) > 1 or entry.name == layout.MANIFEST_FILE:
            return f"file {entry.name!r} cannot be named here"
        if entry.size < 0 or not _HASH.fullmatch(entry.hash):
            return f"file {entry.name!r} has no good size and hash"
    whole = {entry.name for entry in manifest.files if entry.part_of is None}
    for entry in manifest.files:
        if entry.part_of is not None and (
            entry.part_of not in whole
            or not (entry.name.endswith(".h5") and entry.part_of.endswith(".h5"))
        ):
            return f"file {entry.name!r} cannot be part of {entry.part_of!r}"
    if manifest.format < format_of(manifest.files):
        return f"format {manifest.format} has no parts of files"
    return None

"""The manifest of a checkpoint: its files, their sizes and their hashes.

It is written last: a checkpoint exists if its manifest does. The files it names never change.
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
from outlast_checkpoints.storage import file_mac

FORMAT = 4  # the newest format that is read; the lowest that suffices is written
REASONS = ("start", "step", "time", "epoch", "stop", "signal", "end", "left", "request")

_HASH = re.compile(r"xxh3:[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of a checkpoint, as its manifest lists it.

    Attributes:
        name: Base name in the checkpoint's folder.
        size: Size in bytes.
        hash: "xxh3:" and 32 hex digits (XXH3, 128 bits).
        part_of: For a file that holds the unchanged arrays of another one, the name of the
            other. None for a whole file.
        sha256: SHA-256 in hex, which the manifest's MAC authenticates. Older versions wrote it in
            jobs with a key; None otherwise.
        mac: The MAC of the file, "gmac:" and the key's id, salt and tag. None in a job without a
            key.
    """

    name: str
    size: int
    hash: str
    part_of: str | None = None
    sha256: str | None = None
    mac: str | None = None

    @property
    def authentic(self) -> str | None:
        """What proves the file's content to a holder of the key: its MAC or SHA-256, if any."""
        return self.mac or self.sha256


class HistoryMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A place in an attempt's history.

    Attributes:
        attempt: The attempt, from 1.
        mark: Bytes of rows before the place, counted from the attempt's first row.
        sha256: SHA-256 of these bytes in hex. None in a job without a key.
    """

    attempt: int
    mark: int
    sha256: str | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The manifest of a committed checkpoint.

    Attributes:
        format: Format number: 4 if a file has a MAC, 3 if one has a SHA-256, 2 if one is part of
            another, else 1.
        checkpoint: The checkpoint's name.
        progress: Its place in the training.
        reason: Why it was saved: "start", "step", "time", "epoch", "stop", "signal", "end" or
            "request".
        parent: Name of the checkpoint that the attempt saved before it or resumed from. None for
            the first.
        files: All its files.
        history: The history rows that belong to it. None if no history was written.
        metrics: The newest logs by name, as floats. Retention rules read them.
        created: When it was committed, in Unix seconds. For people; nothing depends on it.
        held_ms: How long the training was held to take the snapshot, in milliseconds.
        writer: Versions of the packages that wrote it, by package name.
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
        """The parsed name. Raises `FormatError` if it is not the name of a checkpoint."""
        found = CheckpointId.parse(self.checkpoint)
        if found is None:
            raise FormatError(path=self.checkpoint, reason="it is not the name of a checkpoint")
        return found

    @property
    def size(self) -> int:
        """The size of all files together, in bytes."""
        return sum(entry.size for entry in self.files)


def format_of(files: Iterable[FileEntry]) -> int:
    """Return the lowest format number that suffices for a manifest of these files."""
    files = list(files)
    if any(entry.mac is not None for entry in files):
        return 4
    if any(entry.sha256 is not None for entry in files):
        return 3
    return 2 if any(entry.part_of is not None for entry in files) else 1


class _Stored(Manifest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    metrics: dict[str, float | str] = {}  # type: ignore[assignment]


def number_to_json(value: float) -> float | str:
    """Return a number as JSON can hold it: NaN and infinities become strings."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def number_from_json(value: Any) -> Any:
    """Undo `number_to_json`. Any other value is returned unchanged."""
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def encode(manifest: Manifest) -> bytes:
    """Return the content of a manifest file."""
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    metrics = {name: number_to_json(float(value)) for name, value in manifest.metrics.items()}
    return seal(_Stored(**{**fields, "metrics": metrics}))


def decode(data: bytes, path: str) -> Manifest:
    """Decode the manifest read from `path`. Raises `FormatError`, `FormatTooNew`."""
    stored = unseal(data, path, _Stored, FORMAT)
    fields = {name: getattr(stored, name) for name in stored.__struct_fields__}
    manifest = Manifest(**{**fields, "metrics": _metrics(stored.metrics, path)})
    problem = _problem(manifest)
    if problem:
        raise FormatError(path=path, reason=problem)
    return manifest


def _metrics(stored: Mapping[str, float | str], path: str) -> dict[str, float]:
    metrics = {name: number_from_json(value) for name, value in stored.items()}
    for name, value in metrics.items():
        if isinstance(value, str):
            raise FormatError(path=path, reason=f"metric {name} is {value!r}, not a number")
    return metrics


def _problem(manifest: Manifest) -> str | None:
    progress = manifest.progress
    found = CheckpointId.parse(manifest.checkpoint)
    if found is None or found.place != (progress.phase, progress.step, progress.stage):
        return f"checkpoint {manifest.checkpoint!r} does not match its progress"
    if manifest.parent is not None and CheckpointId.parse(manifest.parent) is None:
        return f"parent {manifest.parent!r} is not the name of a checkpoint"
    seen: set[str] = set()
    for entry in manifest.files:
        try:
            layout.check_name("file", entry.name)
        except OutlastError as error:
            return str(error)
        if entry.name in seen or entry.name == layout.MANIFEST_FILE:
            return f"file {entry.name!r} is named twice or not allowed"
        seen.add(entry.name)
        if entry.size < 0 or not _HASH.fullmatch(entry.hash):
            return f"file {entry.name!r} has no valid size and hash"
        if entry.sha256 is not None and not _SHA256.fullmatch(entry.sha256):
            return f"file {entry.name!r} has no valid SHA-256"
        if entry.mac is not None and file_mac.parts(entry.mac) is None:
            return f"file {entry.name!r} has no valid MAC"
    whole = {entry.name for entry in manifest.files if entry.part_of is None}
    for entry in manifest.files:
        if entry.part_of is not None and (
            entry.part_of not in whole
            or not (entry.name.endswith(".h5") and entry.part_of.endswith(".h5"))
        ):
            return f"file {entry.name!r} cannot be part of {entry.part_of!r}"
    if manifest.format < format_of(manifest.files):
        return f"format {manifest.format} does not allow parts, SHA-256 or MACs of files"
    return None

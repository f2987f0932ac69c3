"""The commit protocol: files, then the fence, then the manifest; and the way back from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from checkpoints import layout, lineage, manifest
from checkpoints.errors import (
    AlreadyExists,
    CheckpointDamaged,
    CommitUnknown,
    FormatError,
    FormatTooNew,
    NoCheckpoint,
    NotFound,
    StorageError,
    Superseded,
    UsageError,
)
from checkpoints.layout import CheckpointId, Stage
from checkpoints.manifest import FileEntry, HistoryMark, Manifest
from checkpoints.retention import Item, Keep, plan
from checkpoints.snapshot import Snapshot
from checkpoints.storage import Storage

if TYPE_CHECKING:
    import numpy as np

_ARRAYS = ".h5"
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a file of a checkpoint (file: "manifest.json" or one it names)."""

    checkpoint: str
    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.checkpoint}: {self.file}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a checkpoint, every byte of it checked.

    files: arrays by file and path in it. attributes: text by file, group and name.
    documents: the other files.
    """

    manifest: Manifest
    files: dict[str, dict[str, np.ndarray[Any, Any]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one job.

    attempt: whose checkpoints `save` writes; None: only reading and pruning.
    fence: raises `Superseded` when a newer attempt has claimed the job; asked before each commit.
    writer: versions to note in manifests, by package name.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        attempt: int | None = None,
        fence: Callable[[], None] | None = None,
        writer: Mapping[str, str] | None = None,
    ) -> None:
        self.storage = storage
        self.attempt = attempt
        self._fence = fence
        self._writer = dict(writer or {})
        self._begun = False
        self._parent: str | None = None
        self._saved: dict[CheckpointId, Manifest] = {}
        self._unknown: dict[CheckpointId, tuple[Manifest, bytes]] = {}
        self._read: dict[CheckpointId, Manifest] = {}

    def begin(self, *, verify: bool = True) -> tuple[Manifest | None, list[Damage]]:
        """Find what to resume from and say so, once, before the attempt's first step.

        Returns the checkpoint (None: start from the beginning) and what was found damaged on the
        way. Raises `Superseded` when this attempt has begun elsewhere or a newer one has, and
        `CheckpointDamaged` when there are checkpoints but no good one: starting over would throw
        the training away.
        """
        attempt = self._own_attempt()
        found, damages = self.latest(verify=verify)
        if self._begun:
            return found, damages
        if found is None and damages:
            first = damages[0]
            raise CheckpointDamaged(
                checkpoint=first.checkpoint, file=first.file, reason=first.reason
            )
        origin = lineage.Origin(
            attempt=attempt,
            checkpoint=found.checkpoint if found else None,
            history=found.history if found else None,
        )
        path, data = layout.origin(attempt), lineage.encode(origin)
        newest = lineage.read_lineage(self.storage)[0].attempts
        if newest and newest[0] > attempt:
            raise Superseded(attempt=attempt, by=newest[0])
        try:
            self.storage.create(path, data)
        except AlreadyExists:
            raise Superseded(attempt=attempt, by=f"{attempt}, begun elsewhere") from None
        except StorageError:
            if not self._is_there(path, data):
                raise
        self._begun = True
        self._parent = origin.checkpoint
        return found, damages

    def save(
        self,
        snapshot: Snapshot,
        *,
        reason: str,
        history: HistoryMark | None = None,
        held_ms: float = 0.0,
    ) -> Manifest:
        """Commit a snapshot and return its manifest. Saving the same place again is no work.

        history: rows that are durable already and belong to it. Raises `StorageFull`,
        `StorageError`, `Superseded`: nothing is committed then; `CommitUnknown`: it may be, and
        saving the same place again finds out.
        """
        progress = snapshot.progress
        checkpoint = CheckpointId(
            progress.phase, progress.step, Stage(progress.stage), self._own_attempt()
        )
        if not self._begun:
            raise UsageError(field="store", problem="save() before begin()", hint="Begin first.")
        if reason not in manifest.REASONS:
            raise UsageError(field="reason", problem=f"{reason!r} is none", hint="See REASONS.")
        if checkpoint in self._saved:
            return self._saved[checkpoint]
        if checkpoint in self._unknown:
            return self._commit(checkpoint, *self._unknown[checkpoint])
        try:
            # What an earlier save of this place left when it failed; it has no manifest.
            self.storage.delete_tree(layout.checkpoint_dir(checkpoint))
            entries = self._write_files(checkpoint, snapshot)
            made = Manifest(
                checkpoint=str(checkpoint),
                progress=progress,
                reason=reason,
                parent=self._parent,
                files=tuple(entries),
                history=history,
                metrics={name: float(value) for name, value in snapshot.metrics.items()},
                created=time.time(),
                held_ms=held_ms,
                writer=self._writer,
            )
            data = manifest.encode(made)
            if self._fence is not None:
                self._fence()
        except BaseException:
            with suppress(StorageError):
                self.storage.delete_tree(layout.checkpoint_dir(checkpoint))
            raise
        return self._commit(checkpoint, made, data)

    def latest(self, *, verify: bool = True) -> tuple[Manifest | None, list[Damage]]:
        """Return the newest good checkpoint of the lineage, and what newer ones are damaged by.

        verify: read and hash every file; else a readable manifest is enough.
        """
        damages: list[Damage] = []
        for checkpoint in reversed(self.ids()):
            found = self.verify(checkpoint) if verify else self._verify_manifest(checkpoint)
            if not found:
                return self.manifest(checkpoint), damages
            damages += found
        return None, damages

    def ids(self) -> list[CheckpointId]:
        """Return what is committed and in the lineage, oldest first."""
        line, _ = lineage.read_lineage(self.storage)
        return [found for found in self._folders() if line.accepts(found) and self._has(found)]

    def manifest(self, checkpoint: CheckpointId) -> Manifest:
        """Return a checkpoint's manifest. Raises `NoCheckpoint`, `CheckpointDamaged`."""
        if checkpoint in self._read:
            return self._read[checkpoint]
        path = layout.manifest(checkpoint)
        try:
            found = manifest.decode(self.storage.read(path), path)
            if found.checkpoint != str(checkpoint):
                raise FormatError(path=path, reason=f"it is that of {found.checkpoint}")
        except NotFound:
            raise NoCheckpoint(wanted=str(checkpoint), root=self.storage.root) from None
        except FormatTooNew:
            raise
        except FormatError as error:
            raise CheckpointDamaged(
                checkpoint=str(checkpoint), file=layout.MANIFEST_FILE, reason=error.fields["reason"]
            ) from error
        self._read[checkpoint] = found
        return found

    def load(self, checkpoint: CheckpointId) -> Loaded:
        """Return a checkpoint's content. Raises `NoCheckpoint`, `CheckpointDamaged`."""
        from checkpoints.hdf5 import read_arrays, read_attributes

        loaded = Loaded(self.manifest(checkpoint))
        for entry in loaded.manifest.files:
            path = layout.checkpoint_file(checkpoint, entry.name)
            try:
                with self.storage.fetch(path) as local:
                    reason = _difference(local, entry)
                    if reason is not None:
                        raise _damaged(checkpoint, entry, reason)
                    if entry.name.endswith(_ARRAYS):
                        loaded.files[entry.name] = read_arrays(local)
                        loaded.attributes[entry.name] = read_attributes(local)
                    else:
                        loaded.documents[entry.name] = local.read_bytes()
            except NotFound:
                raise _damaged(checkpoint, entry, "it is missing") from None
            except FormatError as error:
                raise _damaged(checkpoint, entry, error.fields["reason"]) from error
        return loaded

    def verify(self, checkpoint: CheckpointId) -> list[Damage]:
        """Read and hash every file of a checkpoint; return what is wrong. Raises `NoCheckpoint`."""
        damages = self._verify_manifest(checkpoint)
        if damages:
            return damages
        for entry in self.manifest(checkpoint).files:
            try:
                with self.storage.fetch(layout.checkpoint_file(checkpoint, entry.name)) as local:
                    reason = _difference(local, entry)
            except NotFound:
                reason = "it is missing"
            if reason is not None:
                damages.append(Damage(str(checkpoint), entry.name, reason))
        return damages

    def orphans(self) -> list[str]:
        """Return the folders that are no checkpoints: never committed, or out of the lineage."""
        committed = set(self.ids())
        return [str(found) for found in self._folders() if found not in committed]

    def finished_phases(self) -> dict[int, CheckpointId]:
        """Return the checkpoint of each finished phase's end."""
        return {found.phase: found for found in self.ids() if found.stage == Stage.END}

    def delete(self, checkpoint: CheckpointId) -> None:
        """Delete a checkpoint, manifest first, so that it is never seen in part."""
        self._read.pop(checkpoint, None)
        self.storage.delete(layout.manifest(checkpoint))
        self.storage.delete_tree(layout.checkpoint_dir(checkpoint))

    def prune(self, keep: Keep, *, dry_run: bool = False) -> list[str]:
        """Delete what `keep` does not want, and orphans of older attempts; return the names.

        Never deleted: the newest good one, the end of each phase, what this attempt resumed from.
        """
        ids = self.ids()
        line, _ = lineage.read_lineage(self.storage)
        kept = plan([Item(found, self._metrics(found)) for found in ids], keep)
        kept |= set(self.finished_phases().values()) | self._needed(ids, line)
        doomed = [found for found in ids if found not in kept]
        newest = line.attempts[0] if line.attempts else 0
        committed = set(ids)
        for found in self._folders():
            if found not in committed and found.attempt < newest:
                doomed.append(found)
        if not dry_run:
            for found in doomed:
                self.delete(found)
        return [str(found) for found in doomed]

    def _write_files(self, checkpoint: CheckpointId, snapshot: Snapshot) -> list[FileEntry]:
        from checkpoints.hdf5 import write_arrays

        entries = []
        for name, arrays in snapshot.files.items():
            with self.storage.stage(_file_path(checkpoint, name, arrays=True)) as path:
                size, digest = write_arrays(path, arrays)
            entries.append(FileEntry(name, size, digest))
        for name, document in snapshot.documents.items():
            with self.storage.stage(_file_path(checkpoint, name, arrays=False)) as path:
                path.write_bytes(document)
            digest = f"xxh3:{xxhash.xxh3_128_hexdigest(document)}"
            entries.append(FileEntry(name, len(document), digest))
        return entries

    def _commit(self, checkpoint: CheckpointId, made: Manifest, data: bytes) -> Manifest:
        path = layout.manifest(checkpoint)
        self._unknown[checkpoint] = (made, data)
        try:
            self.storage.create(path, data)
        except StorageError as error:
            self._look_again(path, data, error)
        del self._unknown[checkpoint]
        self._saved[checkpoint] = self._read[checkpoint] = made
        self._parent = made.checkpoint
        return made

    def _look_again(self, path: str, data: bytes, error: StorageError) -> None:
        """Return when the manifest is there after all, else say what is known about it.

        Creating it a second time is how to learn that it is not only visible but durable.
        """
        if not isinstance(error, AlreadyExists):
            try:
                self.storage.create(path, data)
            except AlreadyExists:
                pass
            except StorageError as again:
                raise self._uncommitted(path, again) from error
            else:
                return
        try:
            found = self.storage.read(path)
        except StorageError as unread:
            raise CommitUnknown(path=path, reason=unread) from error
        if found != data:
            raise error

    def _uncommitted(self, path: str, error: StorageError) -> StorageError:
        try:
            there = self.storage.exists(path)
        except StorageError:
            there = True
        if there:
            return CommitUnknown(path=path, reason=error)
        return error

    def _is_there(self, path: str, data: bytes) -> bool:
        try:
            return self.storage.read(path) == data
        except StorageError:
            return False

    def _own_attempt(self) -> int:
        if self.attempt is None:
            raise UsageError(field="store", problem="it is read only", hint="Give an attempt.")
        return self.attempt

    def _folders(self) -> list[CheckpointId]:
        names = map(CheckpointId.parse, self.storage.list(layout.CHECKPOINTS))
        return sorted(found for found in names if found is not None)

    def _has(self, checkpoint: CheckpointId) -> bool:
        return self.storage.exists(layout.manifest(checkpoint))

    def _verify_manifest(self, checkpoint: CheckpointId) -> list[Damage]:
        self._read.pop(checkpoint, None)
        try:
            self.manifest(checkpoint)
        except CheckpointDamaged as error:
            reason = error.fields["reason"]
            return [Damage(str(checkpoint), layout.MANIFEST_FILE, reason)]
        return []

    def _metrics(self, checkpoint: CheckpointId) -> Mapping[str, float]:
        try:
            return self.manifest(checkpoint).metrics
        except (CheckpointDamaged, NoCheckpoint):
            return {}

    def _needed(self, ids: list[CheckpointId], line: lineage.Lineage) -> set[CheckpointId]:
        """What a resume may need, whatever the rules say."""
        needed = set(ids[-1:])
        if line.newest is not None and line.newest.checkpoint is not None:
            needed |= {found for found in ids if str(found) == line.newest.checkpoint}
        if ids and ids[-1] not in self._saved:
            good, _ = self.latest()  # the newest was written by somebody else: is it good?
            needed |= {good.id} if good else set(ids)
        return needed


def _file_path(checkpoint: CheckpointId, name: str, *, arrays: bool) -> str:
    layout.check_name("file", name)
    if name == layout.MANIFEST_FILE or name.endswith(_ARRAYS) is not arrays:
        problem = f"{name!r} is no name for {'arrays' if arrays else 'a document'}"
        raise UsageError(field="snapshot", problem=problem, hint="Arrays end in .h5, others not.")
    return layout.checkpoint_file(checkpoint, name)


def _damaged(checkpoint: CheckpointId, entry: FileEntry, reason: str) -> CheckpointDamaged:
    return CheckpointDamaged(checkpoint=str(checkpoint), file=entry.name, reason=reason)


def _difference(local: Path, entry: FileEntry) -> str | None:
    """Return in which way a file is not the one that the manifest names, or None."""
    hasher = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_PIECE))
    try:
        size = local.stat().st_size
        if size != entry.size:
            return f"it has {size} bytes instead of {entry.size}"
        with open(local, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    if f"xxh3:{hasher.hexdigest()}" != entry.hash:
        return "its content has changed (the hash differs)"
    return None

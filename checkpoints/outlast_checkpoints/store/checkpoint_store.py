"""The commit protocol: files, then the fence, then the manifest; and the way back from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from outlast_checkpoints.arrays import page_cache
from outlast_checkpoints.arrays.unchanged import Seen
from outlast_checkpoints.errors import (
    AlreadyExists,
    CheckpointDamaged,
    CommitUnknown,
    StorageError,
    Superseded,
    UsageError,
)
from outlast_checkpoints.format import layout, lineage, manifest
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.lineage import Origin
from outlast_checkpoints.format.manifest import HistoryMark, Manifest
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.snapshot import Snapshot
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store import files, outcome, pruning
from outlast_checkpoints.store.checkpoint_reader import CheckpointReader
from outlast_checkpoints.store.files import Damage, Loaded
from outlast_checkpoints.store.pruning import Writing
from outlast_checkpoints.store.transfer import send_unless_there

__all__ = ["CheckpointStore", "Damage", "Loaded"]


class CheckpointStore(CheckpointReader):
    """The checkpoints of one job.

    attempt: whose checkpoints `save` writes; None: only reading and pruning.
    fence: raises `Superseded` when a newer attempt has claimed the job; asked before each commit.
    writer: versions to note in manifests, by package name.
    past_cache: large files are written past the system's page cache, which takes next to no
    processor time, and are read from the disk; else the newest checkpoint stays in memory.
    ahead: returns what `read_ahead` found, when that was begun earlier.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        attempt: int | None = None,
        fence: Callable[[], None] | None = None,
        writer: Mapping[str, str] | None = None,
        past_cache: bool = False,
        ahead: Callable[[], Loaded | None] = lambda: None,
    ) -> None:
        super().__init__(storage)
        self.attempt = attempt
        self._fence = fence
        self._writer = dict(writer or {})
        self._past_cache = past_cache
        self._ahead = ahead
        self._begun = False
        self._parent: str | None = None
        self._saved: dict[CheckpointId, Manifest] = {}
        self._unknown: dict[CheckpointId, tuple[Manifest, bytes, dict[str, Seen]]] = {}
        self._seen: dict[str, Seen] = {}  # by the last commit, of its files
        self._adopting: set[CheckpointId] = set()  # begun, and to be gone on with
        self._tried: set[CheckpointId] = set()  # places that have files of ours, perhaps
        self._read: Loaded | None = None  # what `begin` found, until it is asked for

    def begin(self, *, verify: bool = True) -> tuple[Manifest | None, list[Damage]]:
        """Find what to resume from and say so, once, before the attempt's first step.

        Returns the checkpoint (None: start from the beginning) and what was found damaged on the
        way. Called again it only looks. Raises `Superseded` when this attempt has begun elsewhere
        or a newer one has, and `CheckpointDamaged` when there are checkpoints but no good one:
        starting over would throw the training away.
        """
        attempt = self._own_attempt()
        line = self.lineage()
        if line.attempts and line.attempts[0] > attempt:
            raise Superseded(attempt=attempt, by=line.attempts[0])
        if attempt in self._origins and not self._begun:
            raise Superseded(attempt=attempt, by=f"{attempt}, begun elsewhere")
        found, damages = self._newest(self._checked if verify else self._verify_manifest)
        if self._begun:
            return found, damages
        if found is not None and found.id.attempt >= attempt:  # begun while this one looked
            raise Superseded(attempt=attempt, by=found.id.attempt)
        if found is None and damages:
            raise damages[0].error()
        origin = Origin(
            attempt=attempt,
            checkpoint=found.checkpoint if found else None,
            history=found.history if found else None,
        )
        path, data = layout.origin(attempt), lineage.encode(origin)
        try:
            self.storage.create(path, data)
        except AlreadyExists:
            raise Superseded(attempt=attempt, by=f"{attempt}, begun elsewhere") from None
        except StorageError as error:
            outcome.confirm_created(self.storage, path, data, error)
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
        self._read = None
        progress = snapshot.progress
        checkpoint = CheckpointId(
            progress.phase, progress.step, Stage(progress.stage), self._own_attempt()
        )
        if not self._begun:
            raise UsageError(field="store", problem="save() before begin()", hint="Begin first.")
        if reason not in manifest.REASONS:
            hint = f"One of {', '.join(manifest.REASONS)}."
            raise UsageError(field="reason", problem=f"{reason!r} is none", hint=hint)
        if checkpoint in self._saved and self.is_committed(checkpoint):
            return self._saved[checkpoint]
        if checkpoint not in self._unknown:
            if self.is_committed(checkpoint):
                return self.manifest(checkpoint)
            made, seen = self._prepare(checkpoint, snapshot, reason, history, held_ms)
            try:
                self._ask_fence()
            except BaseException:
                self._discard(checkpoint)
                raise
            return self._commit(checkpoint, made, manifest.encode(made), seen)
        self._ask_fence()  # what may be committed is not cleared away, whatever it says
        return self._commit(checkpoint, *self._unknown[checkpoint])

    def beside(self, storage: Storage) -> CheckpointStore:
        """Return the store that saves this attempt's checkpoints elsewhere first, for `adopt`."""
        store = CheckpointStore(
            storage,
            attempt=self._own_attempt(),
            writer=self._writer,
            past_cache=self._past_cache,
        )
        store._begun, store._parent = self._begun, self._parent
        return store

    def adopt(self, made: Manifest, source: Storage) -> None:
        """Commit a checkpoint that is whole on another storage: file by file, then the same
        manifest, byte for byte. Nothing happens when it is committed here.

        Of this attempt, or of one before it that is on the lineage. Raises as `save`; after a
        `StorageError` what was copied stays, and the next call goes on from there.
        """
        checkpoint = made.id
        unknown = checkpoint in self._unknown
        if self.is_committed(checkpoint):
            self._unknown.pop(checkpoint, None)
            self._adopting.discard(checkpoint)
            self._saved[checkpoint] = self._manifests[checkpoint] = made
            return
        data = source.read(layout.manifest(checkpoint))
        self._adopting.add(checkpoint)
        # Also when its manifest may be on its way: it may have been there, and pruned since.
        for entry in made.files:
            path = layout.checkpoint_file(checkpoint, entry.name)
            send_unless_there(source, self.storage, path, entry.size)
        try:
            self._ask_fence()
        except Superseded:
            if not unknown:
                self._discard(checkpoint)
            raise
        self._commit(checkpoint, made, data, {}, keep=True)
        self._adopting.discard(checkpoint)

    def load(self, checkpoint: CheckpointId) -> Loaded:
        """Read a checkpoint's content; what `begin` has already read is not read again."""
        read, self._read = self._read, None
        if read is not None and read.manifest.checkpoint == str(checkpoint):
            return read
        return super().load(checkpoint)

    def _checked(self, checkpoint: CheckpointId) -> list[Damage]:
        """As `verify`, and what was read is kept for `load`: so it is read once, and what was
        checked is what is used."""
        if found := self._verify_manifest(checkpoint):
            return found
        made, ahead = self.manifest(checkpoint), self._ahead()
        if ahead is not None and ahead.manifest == made:
            self._read = ahead
            return []
        with suppress(CheckpointDamaged):
            self._read = files.load(self.storage, made)
            return []
        return self.verify(checkpoint)

    def read_ahead(self) -> Loaded | None:
        """Return the newest good checkpoint, read and checked, None where there is none.

        It changes nothing: `begin` looks again. Raises `StorageError`, `FormatTooNew`.
        """
        self._newest(self._checked)
        read, self._read = self._read, None
        return read

    def delete(self, checkpoint: CheckpointId) -> None:
        """Delete a checkpoint, manifest first, so that it is never seen in part."""
        self._manifests.pop(checkpoint, None)
        self._saved.pop(checkpoint, None)
        self._unknown.pop(checkpoint, None)
        self.storage.delete(layout.manifest(checkpoint))
        self.storage.delete_tree(layout.checkpoint_dir(checkpoint))

    def prune(self, keep: Keep, *, dry_run: bool = False) -> list[str]:
        """Delete what `keep` does not want, and orphans of older attempts; return the names.

        Never deleted: the newest good one, the end of each phase, what this attempt resumed from,
        what a commit with an unknown outcome may name. Not to be called while this attempt saves.
        Raises `Superseded`.
        """
        # Before the look at what there is: whoever claims the job after it finds the newest one,
        # which is kept, and not an older one, which may go.
        self._ask_fence()
        unwanted = self.unwanted(keep)
        if not dry_run:
            for found in unwanted:
                self.delete(found)
        return [str(found) for found in unwanted]

    def unwanted(self, keep: Keep) -> dict[CheckpointId, str]:
        """Return what `prune` deletes, oldest first, and why."""
        writing = Writing(
            self.attempt, self._begun, self._saved.keys(), self._unknown.keys(), self._adopting
        )
        return pruning.unwanted(self, keep, writing)

    def _prepare(
        self,
        checkpoint: CheckpointId,
        snapshot: Snapshot,
        reason: str,
        history: HistoryMark | None,
        held_ms: float,
    ) -> tuple[Manifest, dict[str, Seen]]:
        """Write the files; return the manifest that would commit them, and what was seen."""
        try:
            # What an earlier save of this place left when it failed; it has no manifest.
            again = checkpoint in self._tried
            self._tried.add(checkpoint)
            if again and outcome.is_settled(self.storage):
                self.storage.delete_tree(layout.checkpoint_dir(checkpoint))
            written = files.write(
                self.storage,
                checkpoint,
                snapshot,
                self._seen,
                over=again,
                past_cache=self._past_cache,
            )
            made = Manifest(
                format=manifest.format_of(written.entries),
                checkpoint=str(checkpoint),
                progress=snapshot.progress,
                reason=reason,
                parent=self._parent,
                files=tuple(written.entries),
                history=history,
                metrics={name: float(value) for name, value in snapshot.metrics.items()},
                created=time.time(),
                held_ms=held_ms,
                writer=self._writer,
            )
        except BaseException:
            self._discard(checkpoint)
            raise
        return made, written.seen

    def _ask_fence(self) -> None:
        if self._fence is not None:
            self._fence()

    def _commit(
        self,
        checkpoint: CheckpointId,
        made: Manifest,
        data: bytes,
        seen: dict[str, Seen],
        *,
        keep: bool = False,
    ) -> Manifest:
        """Create the manifest. keep: its files stay even when it certainly was not created."""
        path = layout.manifest(checkpoint)
        self._unknown[checkpoint] = made, data, seen
        try:
            self.storage.create(path, data)
        except StorageError as error:
            try:
                outcome.confirm_created(self.storage, path, data, error)
            except CommitUnknown:
                raise
            except StorageError:
                if keep:
                    del self._unknown[checkpoint]
                else:
                    self._discard(checkpoint)
                raise
        del self._unknown[checkpoint]
        self._saved[checkpoint] = self._manifests[checkpoint] = made
        self._put_away(self._parent)
        self._parent, self._seen = made.checkpoint, seen
        return made

    def _put_away(self, before: str | None) -> None:
        """Keep no memory for the checkpoint before: the newest is what a restart reads."""
        found = CheckpointId.parse(before or "")
        if found is None or found not in self._manifests:
            return
        for entry in self._manifests[found].files:
            path = self.storage.local_path(layout.checkpoint_file(found, entry.name))
            if path is not None:
                page_cache.let_go(path)

    def _discard(self, checkpoint: CheckpointId) -> None:
        """Clear away what is certainly not committed: the next save may need the space."""
        self._unknown.pop(checkpoint, None)
        if not outcome.is_settled(self.storage):
            return
        with suppress(StorageError):
            if not self.is_committed(checkpoint):
                self.storage.delete_tree(layout.checkpoint_dir(checkpoint))

    def _own_attempt(self) -> int:
        if self.attempt is None:
            raise UsageError(field="store", problem="it is read only", hint="Give an attempt.")
        return self.attempt

"""The commit protocol: write the files, ask the fence, create the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from outlast_checkpoints.arrays import page_cache
from outlast_checkpoints.arrays.unchanged import Seen
from outlast_checkpoints.errors import CommitUnknown, StorageError, Superseded, UsageError
from outlast_checkpoints.format import layout, manifest
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.lineage import Origin
from outlast_checkpoints.format.manifest import HistoryMark, Manifest
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.snapshot import Snapshot
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document
from outlast_checkpoints.store import files, outcome, pruning, rewinding
from outlast_checkpoints.store.checkpoint_reader import CheckpointReader
from outlast_checkpoints.store.early_uploads import EarlyUploads
from outlast_checkpoints.store.files import Damage, Follow, Loaded
from outlast_checkpoints.store.known_commits import KnownCommit, require_shown
from outlast_checkpoints.store.pruning import Writing
from outlast_checkpoints.store.transfer import send, send_unless_there

__all__ = ["CheckpointStore", "Damage", "Loaded"]


class CheckpointStore(CheckpointReader):
    """The checkpoints of one job: find, load, verify, save and prune them.

    Example:

        store = CheckpointStore(open_storage("outlast-jobs/digits"), attempt=1)
        manifest, damages = store.begin()
        store.save(snapshot, reason="step")

    Args:
        storage: The job's folder.
        attempt: The attempt, from 1, whose checkpoints `save` writes. None (default): the store
            only reads and prunes.
        fence: Called before each commit. It raises `Superseded` if a newer attempt has claimed
            the job. None (default): no check.
        writer: Versions to record in manifests, by package name. Default: none.
        past_cache: Write large files with direct I/O, which costs almost no CPU time; they are then
            read from the disk. Default False: the newest checkpoint stays in the page cache.
        ahead: Returns the result of an earlier `read_ahead`, or None. Default: always None.

    Attributes:
        early: Uploads of files that another store, made by `beside`, is still writing.
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
        super().__init__(storage, ahead=ahead)
        self.attempt = attempt
        self._fence = fence
        self._writer = dict(writer or {})
        self._past_cache = past_cache
        self._begun = False
        self._parent: str | None = None
        self._saved: dict[CheckpointId, Manifest] = {}
        self._unknown: dict[CheckpointId, tuple[Manifest, bytes, dict[str, Seen]]] = {}
        self._seen: dict[str, Seen] = {}  # by file, what the last commit saw
        self._adopting: set[CheckpointId] = set()  # copies that were begun and will be completed
        self._tried: set[CheckpointId] = set()  # may have files of a failed save
        self._follow: Follow | None = None
        self.early = EarlyUploads(storage)

    def begin(
        self,
        *,
        verify: bool = True,
        known: Sequence[KnownCommit] = (),
        limit: tuple[int, int] | None = None,
    ) -> tuple[Manifest | None, list[Damage]]:
        """Find the checkpoint to resume from and record it. Call it before the first step.

        The choice is recorded durably in the attempt's `origin.json`. A second call records
        nothing.

        Args:
            verify: Read and hash every file of the checkpoint. If False, a readable manifest is
                enough.
            known: Checkpoints that earlier attempts have reported, up to `limit`. Default: none.
            limit: Phase and step; what was saved beyond them leaves the lineage. Default: none.

        Returns:
            The manifest of the checkpoint to resume from, or None to start from the beginning, and
            the damage found in newer checkpoints.

        Raises:
            Superseded: This attempt has begun elsewhere, or a newer one has begun.
            CheckpointDamaged: There are checkpoints but no good one. Starting over would discard
                the training.
            CheckpointsMissing: Listings hide a known checkpoint, or all known ones are gone.
            StorageError: The storage cannot be read or written.
        """
        attempt = self._own_attempt()
        line = self.lineage()
        if line.attempts and line.attempts[0] > attempt:
            raise Superseded(attempt=attempt, by=line.attempts[0])
        if attempt in self._origins and not self._begun:
            raise Superseded(attempt=attempt, by=f"{attempt}, begun elsewhere")
        found, damages = self._newest(self._checked if verify else self._verify_manifest, limit)
        if self._begun:
            return found, damages
        if found is not None and found.id.attempt >= attempt:  # it began while this one looked
            raise Superseded(attempt=attempt, by=found.id.attempt)
        if found is None and damages:
            raise damages[0].error()
        at = None if found is None else found.id
        require_shown(self.storage, attempt, known, at, self.folders(), self._origins)
        origin = Origin(
            attempt=attempt,
            checkpoint=found.checkpoint if found else None,
            history=found.history if found else None,
        )
        rewinding.record(self.storage, origin)
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
        """Commit a snapshot. Saving the same place again writes nothing.

        Args:
            snapshot: The state to save.
            reason: Why, for people: "start", "step", "time", "epoch", "stop", "signal", "end" or
                "request".
            history: The history rows that belong to it. They must be durable already. Default:
                none.
            held_ms: How long the training was held for the snapshot, in milliseconds. It is only
                recorded. Default 0.

        Returns:
            The manifest of the committed checkpoint.

        Raises:
            Superseded: A newer attempt has claimed the job. Nothing is committed.
            StorageFull: No space is left. Nothing is committed.
            StorageError: Writing failed. Nothing is committed.
            CommitUnknown: The answer was lost. Save the same place again to find out.
            UsageError: `begin` was not called, or an argument is invalid.
        """
        self._read = None
        progress = snapshot.progress
        checkpoint = CheckpointId(
            progress.phase, progress.step, Stage(progress.stage), self._own_attempt()
        )
        if not self._begun:
            raise UsageError(
                field="store",
                problem="save() was called before begin()",
                hint="Call begin() first.",
            )
        if reason not in manifest.REASONS:
            hint = f"Use one of {', '.join(manifest.REASONS)}."
            raise UsageError(field="reason", problem=f"unknown reason {reason!r}", hint=hint)
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
        self._ask_fence()  # it may be committed, so nothing is deleted even if superseded
        return self._commit(checkpoint, *self._unknown[checkpoint])

    def beside(self, storage: Storage) -> CheckpointStore:
        """Return a store that saves this attempt's checkpoints on another storage first.

        Args:
            storage: The other storage, such as a spool on this machine. `adopt` commits its
                checkpoints here. Where `early` allows it, their large files are uploaded to this
                one while they are written to the other.
        """
        store = CheckpointStore(
            storage,
            attempt=self._own_attempt(),
            writer=self._writer,
            past_cache=self._past_cache,
        )
        store._begun, store._parent = self._begun, self._parent
        store._follow = self.early.follow
        return store

    def adopt(self, made: Manifest, source: Storage) -> None:
        """Copy a committed checkpoint from another storage and commit it here.

        The files are copied first, then the same manifest, byte for byte. Nothing happens if it is
        committed here already.

        Args:
            made: Its manifest. It belongs to this attempt or to an earlier one of the lineage.
            source: The storage that holds it.

        Raises:
            Superseded: A newer attempt has claimed the job.
            StorageError: Copying failed. Copied files stay, and the next call continues.
            CommitUnknown: The answer was lost. Call it again to find out.
        """
        checkpoint = made.id
        unknown = checkpoint in self._unknown
        if self.is_committed(checkpoint):
            self._unknown.pop(checkpoint, None)
            self._adopting.discard(checkpoint)
            self._saved[checkpoint] = self._manifests[checkpoint] = made
            return
        data = read_document(source, layout.manifest(checkpoint))
        self._adopting.add(checkpoint)
        # Even if the manifest may be committed: the checkpoint may have been pruned since.
        paths = {layout.checkpoint_file(checkpoint, entry.name): entry for entry in made.files}
        for path in sorted(paths, key=self.early.__contains__):  # what is on its way last
            sent = self.early.finish(path)
            if sent is None:
                send_unless_there(source, self.storage, path, paths[path].size)
            elif not sent:
                send(source, self.storage, path)
        try:
            self._ask_fence()
        except Superseded:
            if not unknown:
                self._discard(checkpoint)
            raise
        self._commit(checkpoint, made, data, {}, keep=True)
        self._adopting.discard(checkpoint)

    def delete(self, checkpoint: CheckpointId) -> None:
        """Delete a checkpoint, manifest first, so that no reader sees it incomplete.

        Raises:
            StorageError: Deleting failed; the manifest may be gone already.
        """
        self._manifests.pop(checkpoint, None)
        self._saved.pop(checkpoint, None)
        self._unknown.pop(checkpoint, None)
        self.storage.delete(layout.manifest(checkpoint))
        self.storage.delete_tree(layout.checkpoint_dir(checkpoint))

    def prune(self, keep: Keep, *, dry_run: bool = False) -> list[str]:
        """Delete the checkpoints that no rule keeps, and orphans of older attempts.

        Never deleted are the newest good checkpoint, the end of each phase, the checkpoint that
        this attempt resumed from, and checkpoints that may be committed. Do not call it while this
        attempt saves.

        Args:
            keep: The retention rules.
            dry_run: Delete nothing. Default False.

        Returns:
            The names of the deleted folders, oldest first.

        Raises:
            Superseded: A newer attempt has claimed the job.
            StorageError: Listing or deleting failed.
        """
        # Ask before looking: an attempt that claims the job afterwards finds the newest
        # checkpoint, which is kept, and never an older one, which may be deleted.
        self._ask_fence()
        unwanted = self.unwanted(keep)
        if not dry_run:
            for found in unwanted:
                self.delete(found)
        return [str(found) for found in unwanted]

    def unwanted(self, keep: Keep) -> dict[CheckpointId, str]:
        """Return what `prune` would delete, oldest first, each with the reason."""
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
        """Write the files; return the manifest to commit, and what was seen of each file."""
        try:
            # A failed save of this place may have left files without a manifest.
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
                follow=self._follow,
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
        """Create the manifest. keep: leave the files even if it certainly was not created."""
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
        if self._follow is not None:  # the older ones go from here when they are sent
            self._saved, self._manifests = {checkpoint: made}, {checkpoint: made}
            self._tried = {checkpoint}
        self._parent, self._seen = made.checkpoint, seen
        return made

    def _put_away(self, before: str | None) -> None:
        """Release the page cache of the previous checkpoint: a restart reads the newest."""
        found = CheckpointId.parse(before or "")
        if found is None or found not in self._manifests:
            return
        for entry in self._manifests[found].files:
            path = self.storage.local_path(layout.checkpoint_file(found, entry.name))
            if path is not None:
                page_cache.release(path)

    def _discard(self, checkpoint: CheckpointId) -> None:
        """Delete files that are certainly not committed: the next save may need the space."""
        self._unknown.pop(checkpoint, None)
        if not outcome.is_settled(self.storage):
            return
        with suppress(StorageError):
            if not self.is_committed(checkpoint):
                self.storage.delete_tree(layout.checkpoint_dir(checkpoint))

    def _own_attempt(self) -> int:
        if self.attempt is None:
            raise UsageError(field="store", problem="it is read-only", hint="Pass attempt=.")
        return self.attempt

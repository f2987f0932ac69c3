"""Reading the committed checkpoints of a job: list, verify and load them. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from outlast_checkpoints.errors import (
    CheckpointDamaged,
    FormatError,
    FormatTooNew,
    NoCheckpoint,
    NotAuthentic,
    NotFound,
    StorageError,
)
from outlast_checkpoints.format import layout, lineage, manifest
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.lineage import Lineage, Origin
from outlast_checkpoints.format.manifest import Manifest
from outlast_checkpoints.storage.base import Storage, is_damage
from outlast_checkpoints.storage.documents import is_signed, read_document
from outlast_checkpoints.store import files
from outlast_checkpoints.store.files import Damage, Loaded


class CheckpointReader:
    """The committed checkpoints of one job, read only.

    A checkpoint counts if its manifest exists and the job's lineage accepts it.

    Args:
        storage: The job's folder.
        ahead: Returns the result of an earlier `read_ahead`, or None. Default: always None.
    """

    def __init__(
        self, storage: Storage, *, ahead: Callable[[], Loaded | None] = lambda: None
    ) -> None:
        self.storage = storage
        self._ahead = ahead
        self._read: Loaded | None = None  # what `_checked` read, until `load` returns it
        self._origins: dict[int, Origin] = {}
        self._manifests: dict[CheckpointId, Manifest] = {}

    def ids(self) -> list[CheckpointId]:
        """List the committed checkpoints of the lineage.

        Returns:
            Their names, oldest first. Only manifests are looked at; no file is read.

        Raises:
            StorageError: The storage cannot be read.
        """
        line = self.lineage()
        return [
            found for found in self.folders() if line.accepts(found) and self.is_committed(found)
        ]

    def latest(self, *, verify: bool = True) -> tuple[Manifest | None, list[Damage]]:
        """Find the newest good checkpoint of the lineage.

        Args:
            verify: Read and hash every file. If False, a readable manifest is enough.

        Returns:
            The manifest of the newest good checkpoint, or None if there is none, and the damage
            found in newer checkpoints.

        Raises:
            StorageError: The storage cannot be read.
            FormatTooNew: A newer Outlast wrote the newest checkpoint.
        """
        return self._newest(self.verify if verify else self._verify_manifest)

    def _newest(
        self,
        look: Callable[[CheckpointId], list[Damage]],
        limit: tuple[int, int] | None = None,
    ) -> tuple[Manifest | None, list[Damage]]:
        """Return the newest checkpoint in which `look` finds no damage, and all damage found.

        None is newer than the phase and step `limit`.
        """
        damages = [
            Damage(folder, file, error.fields["reason"])
            for error in lineage.read_lineage(self.storage, self._origins)[1]
            for folder, _, file in [error.fields["path"].rpartition("/")]
        ]
        for checkpoint in reversed(self.ids()):
            if limit is not None and checkpoint.place[:2] > limit:
                continue
            found = look(checkpoint)
            if not found:
                return self.manifest(checkpoint), damages
            damages += found
        return None, damages

    def manifest(self, checkpoint: CheckpointId) -> Manifest:
        """Read a checkpoint's manifest. It is read once and then remembered.

        Args:
            checkpoint: The checkpoint's name, as `ids` returns it.

        Raises:
            NoCheckpoint: No such checkpoint is committed.
            CheckpointDamaged: The manifest cannot be read or its checksum is wrong.
            FormatTooNew: A newer Outlast wrote it.
            NotAuthentic: A key is set, and no holder of it wrote the manifest.
        """
        if checkpoint in self._manifests:
            return self._manifests[checkpoint]
        path = layout.manifest(checkpoint)
        try:
            found = manifest.decode(read_document(self.storage, path), path)
            if found.checkpoint != str(checkpoint):
                raise FormatError(path=path, reason=f"it belongs to {found.checkpoint}")
            if is_signed(self.storage) and any(entry.authentic is None for entry in found.files):
                raise NotAuthentic(path=path, reason="it has no MAC of a file")
        except NotFound:
            raise NoCheckpoint(wanted=str(checkpoint), root=self.storage.root) from None
        except (FormatTooNew, NotAuthentic):
            raise
        except FormatError as error:
            reason = error.fields["reason"]
            raise Damage(str(checkpoint), layout.MANIFEST_FILE, reason).error() from error
        except StorageError as error:
            if not is_damage(error, local=self.storage.capabilities.local):
                raise
            reason = f"it cannot be read: {error.fields['reason']}"
            raise Damage(str(checkpoint), layout.MANIFEST_FILE, reason).error() from error
        self._manifests[checkpoint] = found
        return found

    def load(self, checkpoint: CheckpointId) -> Loaded:
        """Read a checkpoint's content, checking every byte.

        What `CheckpointStore.begin` has read for verification is returned without a second read.

        Args:
            checkpoint: The checkpoint's name, as `ids` returns it.

        Returns:
            Its arrays (numpy, with the saved shapes and dtypes), attributes and documents.

        Raises:
            NoCheckpoint: No such checkpoint is committed.
            CheckpointDamaged: A file is missing or differs from what the manifest says.
            StorageError: The storage cannot be read.
        """
        read, self._read = self._read, None
        if read is not None and read.manifest.checkpoint == str(checkpoint):
            return read
        return files.load(self.storage, self.manifest(checkpoint))

    def read_ahead(self) -> Loaded | None:
        """Read the newest good checkpoint early, before `begin`. Nothing is changed.

        Returns:
            Its content, every byte checked, or None if there is no good checkpoint.

        Raises:
            StorageError: The storage cannot be read.
            FormatTooNew: A newer Outlast wrote the newest checkpoint.
        """
        self._newest(self._checked)
        read, self._read = self._read, None
        return read

    def verify(self, checkpoint: CheckpointId) -> list[Damage]:
        """Read and hash every file of a checkpoint.

        Returns:
            What is wrong, one entry per damaged file; an empty list if the checkpoint is good.

        Raises:
            NoCheckpoint: No such checkpoint is committed.
            StorageError: The storage cannot be read, which does not count as damage.
        """
        damages = self._verify_manifest(checkpoint)
        return damages or files.check(self.storage, self.manifest(checkpoint))

    def _checked(self, checkpoint: CheckpointId) -> list[Damage]:
        """Verify a checkpoint and keep its content for `load`.

        The checkpoint is read only once, and `load` returns exactly what was checked.
        """
        if found := self._verify_manifest(checkpoint):
            return found
        made, ahead = self.manifest(checkpoint), self._ahead()
        if ahead is not None and ahead.manifest == made:
            self._read = ahead
            return []
        try:
            self._read = files.load(self.storage, made)
        except CheckpointDamaged as error:
            return self.verify(checkpoint) or [Damage(**error.fields)]
        return []

    def orphans(self) -> list[str]:
        """List the checkpoint folders that do not count.

        Returns:
            The names of folders that were never committed or are not in the lineage.
        """
        committed = set(self.ids())
        return [str(found) for found in self.folders() if found not in committed]

    def finished_phases(self) -> dict[int, CheckpointId]:
        """Return the final checkpoint of each finished phase, by phase index."""
        return phase_ends(self.ids())

    def lineage(self) -> Lineage:
        """Return the attempts whose checkpoints count."""
        return lineage.read_lineage(self.storage, self._origins)[0]

    def set_aside(self, checkpoint: CheckpointId) -> bool:
        """Return whether a checkpoint counted until a rewind of the job took it out."""
        return lineage.is_set_aside(checkpoint, self._origins.values())

    def folders(self) -> list[CheckpointId]:
        """Return the names of all checkpoint folders, committed or not, oldest first."""
        names = map(CheckpointId.parse, self.storage.list(layout.CHECKPOINTS))
        return sorted(found for found in names if found is not None)

    def is_committed(self, checkpoint: CheckpointId) -> bool:
        """Return whether the manifest exists."""
        return self.storage.exists(layout.manifest(checkpoint))

    def metrics(self, checkpoint: CheckpointId) -> Mapping[str, float]:
        """Return the metrics in a checkpoint's manifest; none if it cannot be read."""
        try:
            return self.manifest(checkpoint).metrics
        except (CheckpointDamaged, NoCheckpoint):
            return {}

    def _verify_manifest(self, checkpoint: CheckpointId) -> list[Damage]:
        self._manifests.pop(checkpoint, None)
        try:
            self.manifest(checkpoint)
        except CheckpointDamaged as error:
            return [Damage(str(checkpoint), layout.MANIFEST_FILE, error.fields["reason"])]
        return []


def phase_ends(ids: list[CheckpointId]) -> dict[int, CheckpointId]:
    """Return those of `ids` that end their phase, by phase index."""
    return {found.phase: found for found in ids if found.stage == Stage.END}

"""The spool: where the checkpoints of a job whose storage is elsewhere wait on this machine.

It is a folder for each job, laid out as the job's own: what is committed in it is as durable as
this machine's disk, and waits to be sent. See `sender`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import xxhash

from outlast_checkpoints.errors import FormatError, NotFound, StorageError, UsageError
from outlast_checkpoints.format import layout, manifest
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.manifest import Manifest
from outlast_checkpoints.format.retention import Item, Keep, plan
from outlast_checkpoints.storage.base import Capabilities, Storage
from outlast_checkpoints.storage.local import LocalStorage
from outlast_checkpoints.store import files
from outlast_checkpoints.store.files import Damage

FOLDER: Final = "OUTLAST_SPOOL"
LIMIT: Final = "OUTLAST_SPOOL_LIMIT"
_MOST: Final = 20 << 30  # bytes that wait, when nobody says how many
_AGE: Final = 7 * 86400.0  # seconds after which what nobody can use any more is deleted
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class _Folder(LocalStorage):
    """A folder whose checkpoints do not share files: each is sent, and goes, by itself."""

    capabilities = Capabilities(
        exclusive_create=True, append=True, local=True, in_process=False, links=False
    )


class Spool:
    """The spool of one job. limit: bytes of checkpoints that may wait beside the newest one."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.storage: Storage = _Folder(folder)
        self.limit = limit

    @classmethod
    def of(cls, job: Storage, life: str) -> Spool | None:
        """Return the spool of the job in a storage; None when that is on this machine already.

        life: tells the job from another one that was in the same place before it.
        It is below $OUTLAST_SPOOL (default: outlast/spool in the user's cache folder) and takes
        $OUTLAST_SPOOL_LIMIT bytes ("5GB"; default: half of what is free there, at most 20 GiB).
        Raises `UsageError` for a limit that is no size.
        """
        # Not by its capabilities: to find them out the storage may have to be there.
        if job.local_path("") is not None or job.root.startswith("memory:"):
            return None
        home = _home()
        return cls(home / _name(job.root) / _digest(life), _limit(home))

    @classmethod
    def found(cls, job: Storage) -> Spool | None:
        """Return the spool that was used last of the job in a storage, if there is any.

        For when the storage is away and cannot be asked which life of the job it is.
        """
        if job.local_path("") is not None:
            return None
        try:
            there = list((_home() / _name(job.root)).iterdir())
            newest = max(there, key=lambda folder: folder.stat().st_mtime)
        except (OSError, ValueError):
            return None
        return cls(newest, 0)

    @property
    def path(self) -> str:
        """The folder."""
        return self.storage.root

    def make(self) -> None:
        """Make the folder, for its owner alone."""
        folder = Path(self.path)
        try:
            folder.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.parent.mkdir(exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                action="make the spool", path=self.path, reason=str(error), errno=error.errno
            ) from error

    def waiting(self, attempt: int | None = None) -> list[CheckpointId]:
        """Return what is committed here (by an attempt), oldest first."""
        names = map(CheckpointId.parse, self.storage.list(layout.CHECKPOINTS))
        found = sorted(one for one in names if one and attempt in (None, one.attempt))
        return [one for one in found if self.storage.exists(layout.manifest(one))]

    def attempts(self) -> list[int]:
        """Return the attempts that have left anything here, oldest first."""
        numbers = map(layout.parse_attempt, self.storage.list(layout.ATTEMPTS))
        found = {number for number in numbers if number is not None}
        names = map(CheckpointId.parse, self.storage.list(layout.CHECKPOINTS))
        return sorted(found | {name.attempt for name in names if name is not None})

    def manifest(self, checkpoint: CheckpointId) -> Manifest:
        """Return the manifest of what waits here. Raises `NotFound`, `FormatError`."""
        path = layout.manifest(checkpoint)
        return manifest.decode(self.storage.read(path), path)

    def damage(self, checkpoint: CheckpointId) -> list[Damage]:
        """Read and hash every file of what waits here; return what is wrong."""
        try:
            return files.check(self.storage, self.manifest(checkpoint))
        except (NotFound, FormatError) as error:
            return [Damage(str(checkpoint), layout.MANIFEST_FILE, str(error))]

    def size(self, checkpoints: Iterable[CheckpointId]) -> int:
        """Return how many bytes these take."""
        total = 0
        for checkpoint in checkpoints:
            with suppress(NotFound, FormatError):
                total += self.manifest(checkpoint).size
        return total

    def drop(self, checkpoint: CheckpointId) -> None:
        """Delete what was sent or is not wanted, manifest first."""
        self.storage.delete(layout.manifest(checkpoint))
        self.storage.delete_tree(layout.checkpoint_dir(checkpoint))

    def trim(
        self,
        attempt: int,
        keep: Keep | None,
        in_use: CheckpointId | None = None,
        *,
        limit: int | None = None,
    ) -> list[CheckpointId]:
        """Delete what of an attempt need not be sent any more; return it, oldest first.

        That is what retention would delete, and then the oldest until `limit` bytes (default: the
        spool's own) suffice. Never the newest, nor the end of a phase, nor what is `in_use`.
        """
        found = self.waiting(attempt)
        items = [Item(one, self._metrics(one)) for one in found]
        wanted = set(found) if keep is None else plan(items, keep)
        spared = {one for one in found if one.stage == Stage.END or one == in_use}
        spared |= set(found[-1:])
        doomed = [one for one in found if one not in wanted | spared]
        sizes = {one: self.size([one]) for one in found if one not in doomed}
        room = self.limit if limit is None else limit
        for one in sorted(sizes):
            if sum(sizes.values()) > room and one not in spared:
                doomed.append(one)
                del sizes[one]
        for one in doomed:
            self.drop(one)
        return sorted(doomed)

    def forget(self, attempt: int) -> None:
        """Delete all that an attempt has left here."""
        for name in self.storage.list(layout.CHECKPOINTS):
            checkpoint = CheckpointId.parse(name)
            if checkpoint is not None and checkpoint.attempt == attempt:
                self.drop(checkpoint)
        self.storage.delete_tree(layout.attempt_dir(attempt))
        here = Path(self.path)
        for folder in (here / layout.CHECKPOINTS, here / layout.ATTEMPTS, here, here.parent):
            with suppress(OSError):  # somebody else's are there
                folder.rmdir()

    def tidy(self, attempt: int) -> None:
        """Forget an attempt that has ended and has nothing to send."""
        if not self.waiting(attempt):
            self.forget(attempt)

    def is_old(self, attempt: int) -> bool:
        """Whether an attempt has left nothing here in the last seven days."""
        here = Path(self.path)
        folders = [here / layout.attempt_dir(attempt)]
        folders += here.glob(f"{layout.CHECKPOINTS}/*-{attempt:04d}")
        times = [folder.stat().st_mtime for folder in folders if folder.exists()]
        return time.time() - max(times, default=0.0) > _AGE

    def _metrics(self, checkpoint: CheckpointId) -> dict[str, float]:
        try:
            return self.manifest(checkpoint).metrics
        except (NotFound, FormatError):
            return {}


def _home() -> Path:
    given = os.environ.get(FOLDER)
    if given:
        return Path(given).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(there, os.W_OK):  # as in a container without a home
        return Path(tempfile.gettempdir()) / f"outlast-spool-{os.getuid()}"
    return cache / "outlast" / "spool"


def _name(url: str) -> str:
    """Return a folder's name that tells jobs of the same name in different places apart."""
    tail = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rstrip("/").rpartition("/")[2])[:60].strip("-._")
    return f"{tail or 'job'}-{_digest(url.rstrip('/'))}"


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())[:16]


def _limit(home: Path) -> int:
    given = os.environ.get(LIMIT)
    if given:
        match = _SIZE.fullmatch(given.strip())
        if match is None:
            raise UsageError(
                field=LIMIT, problem=f"{given!r} is no size", hint="For example 500MB or 20GB."
            )
        return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    return min(_MOST, shutil.disk_usage(there).free // 2)

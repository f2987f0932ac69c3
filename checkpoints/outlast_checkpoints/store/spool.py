"""The spool: local folders where checkpoints of remote jobs wait to be sent.

Each job has a spool folder with the layout of a job's folder. What is committed in it is as durable
as this machine's disk. `spool_sender` sends it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
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
from outlast_checkpoints.storage.documents import belonging, read_document
from outlast_checkpoints.storage.local import LocalStorage
from outlast_checkpoints.store import files
from outlast_checkpoints.store.files import Damage

FOLDER: Final = "OUTLAST_SPOOL"
LIMIT: Final = "OUTLAST_SPOOL_LIMIT"
_MOST: Final = 20 << 30  # bytes; the default limit
_AGE: Final = 7 * 86400.0  # seconds; older remains that nobody can use are deleted
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class _Folder(LocalStorage):
    """A folder whose checkpoints share no files: each is sent and deleted independently."""

    capabilities = Capabilities(
        exclusive_create=True, append=True, local=True, in_process=False, links=False
    )


class Spool:
    """The spool of one job.

    limit: bytes of waiting checkpoints, not counting the newest. job: the job's storage; if it is
    signed, its keys sign what waits here.
    """

    def __init__(self, folder: Path, limit: int, job: Storage | None = None) -> None:
        self.storage: Storage = _Folder(folder)
        if job is not None:  # its path names the job's URL and creation, as a spec does elsewhere
            identity = f"spool {folder.parent.name}/{folder.name}"
            self.storage = belonging(self.storage, job, identity)
        self.limit = limit

    @classmethod
    def of(cls, job: Storage, creation: str) -> Spool | None:
        """Return the spool of a job, or None if the job is on this machine.

        creation: distinguishes the job from an earlier one at the same URL.
        The spool is below $OUTLAST_SPOOL (default: outlast/spool in the user's cache folder). Its
        limit is $OUTLAST_SPOOL_LIMIT, such as "5GB" (default: half of the free space, at most
        20 GiB). Raises `UsageError` for an invalid limit.
        """
        # Not by its capabilities: finding them out may take a request.
        if job.local_path("") is not None or job.root.startswith("memory:"):
            return None
        home = _home()
        return cls(home / _name(job.root) / _digest(creation), _limit(home), job)

    @classmethod
    def found(cls, job: Storage) -> Spool | None:
        """Return the most recently used spool of a job, if there is one.

        Use it if the storage is unreachable, so that the job's creation is unknown.
        """
        if job.local_path("") is not None:
            return None
        try:
            there = list((_home() / _name(job.root)).iterdir())
            newest = max(there, key=lambda folder: folder.stat().st_mtime)
        except (OSError, ValueError):
            return None
        return cls(newest, 0, job)

    @property
    def path(self) -> str:
        """The spool's folder."""
        return self.storage.root

    def make(self) -> None:
        """Create the folder, private to its owner.

        What waits here is sent in the user's name, so a folder that another user has made, or can
        write, is refused.

        Raises:
            StorageError: it cannot be created, or is not private.
        """
        folder = Path(self.path)
        try:
            folder.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.parent.mkdir(exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                action="create the spool", path=self.path, reason=str(error), errno=error.errno
            ) from error
        for level in (folder.parent.parent, folder.parent, folder):
            if problem := _not_private(level, top=level == folder.parent.parent):
                raise StorageError(
                    action="use the spool",
                    path=str(level),
                    reason=f"{problem}. Set {FOLDER} to a folder of your own",
                )

    def waiting(self, attempt: int | None = None) -> list[CheckpointId]:
        """Return the checkpoints that wait here, or those of one attempt, oldest first."""
        names = map(CheckpointId.parse, self.storage.list(layout.CHECKPOINTS))
        found = sorted(one for one in names if one and attempt in (None, one.attempt))
        return [one for one in found if self.storage.exists(layout.manifest(one))]

    def attempts(self) -> list[int]:
        """Return the attempts that have files here, oldest first."""
        numbers = map(layout.parse_attempt, self.storage.list(layout.ATTEMPTS))
        found = {number for number in numbers if number is not None}
        names = map(CheckpointId.parse, self.storage.list(layout.CHECKPOINTS))
        return sorted(found | {name.attempt for name in names if name is not None})

    def manifest(self, checkpoint: CheckpointId) -> Manifest:
        """Return the manifest of a waiting checkpoint. Raises `NotFound`, `FormatError`."""
        path = layout.manifest(checkpoint)
        return manifest.decode(read_document(self.storage, path), path)

    def damage(self, checkpoint: CheckpointId) -> list[Damage]:
        """Read and hash every file of a waiting checkpoint; return what is wrong."""
        try:
            return files.check(self.storage, self.manifest(checkpoint))
        except (NotFound, FormatError) as error:
            return [Damage(str(checkpoint), layout.MANIFEST_FILE, str(error))]

    def size(self, checkpoints: Iterable[CheckpointId]) -> int:
        """Return the size of these checkpoints in bytes."""
        total = 0
        for checkpoint in checkpoints:
            with suppress(NotFound, FormatError):
                total += self.manifest(checkpoint).size
        return total

    def drop(self, checkpoint: CheckpointId) -> None:
        """Delete a checkpoint that was sent or is not wanted, manifest first."""
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
        """Delete waiting checkpoints that need not be sent; return them, oldest first.

        First those that retention would delete, then the oldest until the rest fits into `limit`
        bytes (default: the spool's limit). The newest, the end of a phase and `in_use` stay.
        """
        found = self.waiting(attempt)
        items = [Item(one, self._metrics(one)) for one in found]
        wanted = set(found) if keep is None else plan(items, keep)
        protected = {one for one in found if one.stage == Stage.END or one == in_use}
        protected |= set(found[-1:])
        dropped = [one for one in found if one not in wanted | protected]
        sizes = {one: self.size([one]) for one in found if one not in dropped}
        room = self.limit if limit is None else limit
        for one in sorted(sizes):
            if sum(sizes.values()) > room and one not in protected:
                dropped.append(one)
                del sizes[one]
        for one in dropped:
            self.drop(one)
        return sorted(dropped)

    def forget(self, attempt: int) -> None:
        """Delete everything of an attempt."""
        for name in self.storage.list(layout.CHECKPOINTS):
            checkpoint = CheckpointId.parse(name)
            if checkpoint is not None and checkpoint.attempt == attempt:
                self.drop(checkpoint)
        self.storage.delete_tree(layout.attempt_dir(attempt))
        here = Path(self.path)
        for folder in (here / layout.CHECKPOINTS, here / layout.ATTEMPTS, here, here.parent):
            with suppress(OSError):  # other attempts have files there
                folder.rmdir()

    def tidy(self, attempt: int) -> None:
        """Delete everything of an ended attempt that has nothing left to send."""
        if not self.waiting(attempt):
            self.forget(attempt)

    def is_old(self, attempt: int) -> bool:
        """Return whether an attempt has written nothing here for seven days."""
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


def _not_private(folder: Path, *, top: bool) -> str:
    """Return why others could put files into a folder; "" if they cannot.

    top: whether it may be a link, or a folder for all users, such as /tmp.
    """
    found = folder.stat() if top else folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a folder"
    if top and found.st_uid == 0 and os.geteuid() != 0:
        return ""
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}, not to user {os.geteuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (top and found.st_mode & stat.S_ISVTX):
        return "other users can write it"
    return ""


def _home() -> Path:
    given = os.environ.get(FOLDER)
    if given:
        return Path(given).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(there, os.W_OK):  # a container without a home, say
        return Path(tempfile.gettempdir()) / f"outlast-spool-{os.getuid()}"
    return cache / "outlast" / "spool"


def _name(url: str) -> str:
    """Return a folder name that is unique for the job's URL."""
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
                field=LIMIT,
                problem=f"invalid size {given!r}",
                hint="For example 500MB or 20GB.",
            )
        return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    return min(_MOST, shutil.disk_usage(there).free // 2)

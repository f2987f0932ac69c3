"""Every storage that is not a folder of this machine, through fsspec.

An upload comes from a finished local file or buffer, never from an open one. What may pass by
itself (a reset connection, a busy server) is tried again; what will not is raised at once.
"""

from __future__ import annotations

import errno
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import tenacity

from checkpoints.errors import AlreadyExists, NotFound, StorageError, UsageError
from checkpoints.storage import Appender, Capabilities, Unfinished, check_path, join, storage_error

T = TypeVar("T")

_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_TRIES = 4
_SPEC = fsspec.AbstractFileSystem

# memory:// looks, then writes; within the one process that can see it a lock makes that one step.
_memory_lock = threading.Lock()


class FsspecStorage:
    """A folder of any file system that fsspec knows."""

    def __init__(self, filesystem: Any, base: str, url: str) -> None:
        self._fs = filesystem
        self._base = base.rstrip("/")
        self.root = url.rstrip("/") if not url.endswith("://") else url
        protocols = filesystem.protocol
        self._protocol = protocols if isinstance(protocols, str) else protocols[0]

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any]) -> FsspecStorage:
        """Open a URL. Raises `UsageError` when no file system of fsspec fits it."""
        try:
            filesystem, base = fsspec.core.url_to_fs(url, **options)
        except (ValueError, ImportError, TypeError) as error:
            hint = "Use a folder, memory://… or a URL whose fsspec package is installed."
            raise UsageError(field="storage", problem=f"{url}: {error}", hint=hint) from error
        return cls(filesystem, base, url)

    def __repr__(self) -> str:
        return f"FsspecStorage({self.root!r})"

    @cached_property
    def capabilities(self) -> Capabilities:
        memory = self._protocol == "memory"
        return Capabilities(
            exclusive_create=memory or self._probe_exclusive_create(),
            append=False,
            local=False,
            in_process=memory,
        )

    def read(self, path: str) -> bytes:
        return bytes(self._try("read", path, lambda at: self._fs.cat_file(at)))

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        # Past the end some stores answer with an error instead of nothing.
        size = self.size(path)
        stop = size if end is None else min(end, size)
        if start >= stop:
            return b""
        return bytes(
            self._try("read", path, lambda at: self._fs.cat_file(at, start=start, end=stop))
        )

    def size(self, path: str) -> int:
        self._forget(path)
        return int(self._try("look at", path, lambda at: self._fs.info(at)["size"]))

    def exists(self, path: str) -> bool:
        self._forget(path)
        return bool(self._try("look at", path, lambda at: self._fs.exists(at)))

    def modified(self, path: str) -> float:
        self._forget(path)

        def once(at: str) -> float:
            try:
                return float(self._fs.modified(at).timestamp())
            except NotImplementedError as error:
                raise OSError(errno.ENOTSUP, "it does not tell when a file was written") from error

        return self._try("look at", path, once)

    def create(self, path: str, data: bytes) -> None:
        lost = False

        def once(at: str) -> None:
            nonlocal lost
            try:
                with _memory_lock:
                    self._fs.pipe_file(at, data, mode="create")
            except OSError as error:
                if not isinstance(error, FileExistsError) and error.errno != errno.EINVAL:
                    lost = True
                    raise
                # A failed precondition; or our own earlier try, whose answer was lost.
                if lost and self.read(path) == data:
                    return
                if isinstance(error, FileExistsError) or self.exists(path):
                    raise AlreadyExists(path=path, root=self.root) from error
                raise

        self._try("create", path, once)

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self._try("write", path, lambda at: self._fs.pipe_file(at, data, mode="overwrite"))

    def list(self, folder: str) -> list[str]:
        self._forget(folder)
        try:
            names = self._try("list", folder, lambda at: self._fs.ls(at, detail=False))
        except NotFound:
            return []
        base = self._at(folder).strip("/")
        found = {str(name).strip("/") for name in names}
        return sorted(name.rpartition("/")[2] for name in found if name != base)

    def delete(self, path: str) -> None:
        with suppress(NotFound):
            self._try("delete", path, lambda at: self._fs.rm_file(at))
        self._forget(path)

    def delete_tree(self, folder: str) -> None:
        self._forget(folder)

        def once(at: str) -> None:
            # Not fs.rm(recursive=True): it reads "[", "*" and "?" in names as patterns.
            found = self._fs.find(at, withdirs=True, detail=True)
            folders = [name for name, info in found.items() if info["type"] == "directory"]
            for name in found:
                if name not in folders:
                    with suppress(FileNotFoundError):
                        self._fs.rm_file(name)
            for name in [*sorted(folders, key=len, reverse=True), at]:
                with suppress(OSError):  # most stores know no folders
                    self._fs.rmdir(name)

        with suppress(NotFound):
            self._try("delete", folder, once)
        self._forget(folder)

    @contextmanager
    def stage(self, path: str) -> Iterator[Path]:
        if self.exists(path):
            raise AlreadyExists(path=path, root=self.root)
        with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
            local = Path(folder) / path.rpartition("/")[2]
            try:
                yield local
                size = local.stat().st_size
            except OSError as error:
                raise storage_error(error, "write", path, self.root) from error
            try:
                self._try("upload", path, lambda at: self._fs.put_file(str(local), at))
                if self.size(path) != size:
                    raise StorageError(
                        action="upload", path=join(self.root, path), reason="it arrived cut short"
                    )
            except BaseException:
                with suppress(StorageError):
                    self.delete(path)
                raise

    @contextmanager
    def fetch(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
            local = Path(folder) / path.rpartition("/")[2]
            if not self.exists(path):
                raise NotFound(path=path, root=self.root)
            self._try("download", path, lambda at: self._fs.get_file(at, str(local)))
            yield local

    def link(self, source: str, path: str) -> bool:
        return False

    def appender(self, path: str) -> Appender:
        raise StorageError(
            action="append to", path=join(self.root, path), reason="this storage cannot append"
        )

    def local_path(self, path: str) -> Path | None:
        return None

    def unfinished(self) -> Sequence[Unfinished]:
        if self._protocol != "s3":
            return []  # the others let go of parts that were never joined by themselves
        from checkpoints import uploads

        return self._try("list", "", lambda at: uploads.unfinished(self._fs, at))

    def discard(self, left: Unfinished) -> None:
        from checkpoints import uploads

        with suppress(NotFound):
            self._try("delete", left.path, lambda at: uploads.abort(self._fs, at, left.token))

    def sub(self, folder: str) -> FsspecStorage:
        return FsspecStorage(self._fs, self._at(folder), join(self.root, folder))

    def _at(self, path: str) -> str:
        return f"{self._base}/{check_path(path)}" if path else self._base

    def _forget(self, path: str) -> None:
        """Drop cached listings: another machine may have written since."""
        at = self._at(path)
        self._fs.invalidate_cache(at)
        self._fs.invalidate_cache(at.rpartition("/")[0])

    def _try(self, action: str, path: str, call: Callable[[str], T]) -> T:
        at = self._at(path)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_TRIES),
            wait=tenacity.wait_exponential(multiplier=0.1, max=5.0) + tenacity.wait_random(0, 0.1),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return retrying(call, at)
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error, action, path, self.root) from error

    def _probe_exclusive_create(self) -> bool:
        """Ask the store itself: some servers accept the condition and ignore it."""
        inmost = self._fs
        while isinstance(getattr(inmost, "fs", None), _SPEC):
            inmost = inmost.fs
        if not inmost.async_impl and type(inmost).pipe_file is _SPEC.pipe_file:
            return False  # fsspec's default looks first, then writes
        path = f".probe-{secrets.token_hex(8)}"
        try:
            self.create(path, b"1")
            try:
                self.create(path, b"2")
            except AlreadyExists:
                return True
            return False
        finally:
            self.delete(path)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, (StorageError, *_FINAL)):
        return False
    return isinstance(error, OSError | TimeoutError) and getattr(error, "errno", None) not in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EINVAL,
    )

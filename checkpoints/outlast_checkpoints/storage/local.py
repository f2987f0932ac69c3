"""Folders of this machine as a storage. Finished files survive a power loss.

A file is synced under a temporary name and then hard-linked to its final name, which fails if
another process was first, on NFS and Lustre too. Then the folder is synced. A file system without
hard links gets a rename instead. Temporary names start
with ".tmp-" and are invisible to readers; a crash leaves at most one.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from outlast_checkpoints.errors import AlreadyExists, NotFound, StorageError
from outlast_checkpoints.storage import confined, durable_files
from outlast_checkpoints.storage.address import normal
from outlast_checkpoints.storage.base import (
    Appender,
    Capabilities,
    Unfinished,
    check_path,
    read_file_into,
    storage_error,
)
from outlast_checkpoints.storage.local_appender import LocalAppender

_CANNOT_LINK_THIS = durable_files.NO_LINKS | {errno.EXDEV, errno.ENOENT}


class LocalStorage:
    """A folder of this machine. It is created when the first file is written."""

    def __init__(self, root: Path) -> None:
        self._settle(normal(str(root)))

    def _settle(self, root: str) -> None:
        self.root = root
        self._base = root.rstrip("/")
        self._durable: set[Path] = set()
        self._lock = threading.Lock()

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            exclusive_create=self._can_fence, append=True, local=True, in_process=False, links=True
        )

    def _can_fence(self) -> bool:
        """Try what `create` does. Where nothing can be written, nothing needs to be fenced."""
        try:
            return durable_files.publishes_exclusively(self._root)
        except OSError:
            return True

    @functools.cached_property
    def _root(self) -> Path:
        return Path(self.root)

    def __repr__(self) -> str:
        return f"LocalStorage({self.root!r})"

    def read(self, path: str) -> bytes:
        # Plain system calls, as in `list`: lists and tails are thousands of small reads.
        try:
            return durable_files.read(self._top, check_path(path))
        except OSError as error:
            raise storage_error(error, "read", path, self.root) from error

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        try:
            return durable_files.read(self._top, check_path(path), start, end)
        except OSError as error:
            raise storage_error(error, "read", path, self.root) from error

    def size(self, path: str) -> int:
        return self._stat(path).st_size

    def exists(self, path: str) -> bool:
        try:
            self._stat(path)
        except NotFound:
            return False
        except StorageError as error:
            if error.fields.get("errno") == errno.ELOOP:
                return False  # behind a link is nothing of this job
            raise
        return True

    def modified(self, path: str) -> float:
        return self._stat(path).st_mtime

    def _stat(self, path: str) -> os.stat_result:
        try:
            return confined.stat_of(self._top, check_path(path))
        except OSError as error:
            raise storage_error(error, "look at", path, self.root) from error

    def create(self, path: str, data: bytes) -> None:
        target = self._at(path)
        with self._errors("create", path):
            self._check(path)
            self._make_folder(target.parent)
            if os.path.lexists(target):
                # A caller that repeats a create whose answer was lost needs the file durable.
                durable_files.sync_folder(target.parent)
                raise AlreadyExists(path=path, root=self.root)
            temporary = durable_files.write_temporary(target, data, durable=True)
            try:
                durable_files.publish(temporary, target)
            finally:
                with suppress(OSError):
                    temporary.unlink()
            durable_files.sync_folder(target.parent)

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        target = self._at(path)
        with self._errors("write", path):
            self._check(path)
            if durable:
                self._make_folder(target.parent)
            else:
                durable_files.make_folder(target.parent)
            temporary = durable_files.write_temporary(target, data, durable=durable)
            try:
                temporary.replace(target)
            except OSError:
                with suppress(OSError):
                    temporary.unlink()
                raise
            if durable:
                durable_files.sync_folder(target.parent)

    def list(self, folder: str) -> list[str]:
        try:
            if folder:
                confined.stat_of(self._top, check_path(folder))  # not a link
            names = os.listdir(self._name(folder) if folder else self.root)  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, "list", folder, self.root) from error
        return sorted(name for name in names if not name.startswith(durable_files.TEMPORARY))

    def delete(self, path: str) -> None:
        target = self._at(path)
        with suppress(NotFound), self._errors("delete", path):
            if target.parent.is_symlink() and target.parent != self._root:
                return  # the target belongs to others; `delete_tree` removes the link
            self._check(path)
            target.unlink()
            # Synced, so that "manifest first" holds across a power loss too.
            durable_files.sync_folder(target.parent)

    def delete_tree(self, folder: str) -> None:
        target = self._at(folder)
        with suppress(NotFound), self._errors("delete", folder):
            self._check(folder)
            if target.is_symlink():
                target.unlink()
            else:
                shutil.rmtree(target)
        with self._lock:
            below = f"{target}/"
            self._durable = {p for p in self._durable if not f"{p}/".startswith(below)}

    @contextmanager
    def stage(self, path: str, *, over: bool = False) -> Iterator[Path]:
        target = self._at(path)
        with self._errors("write", path):
            self._check(path)
            self._make_folder(target.parent)
            if over:
                target.unlink(missing_ok=True)
            elif os.path.lexists(target):
                raise AlreadyExists(path=path, root=self.root)
            try:
                yield target
                durable_files.sync_file(target)
                durable_files.sync_folder(target.parent)
            except BaseException:
                with suppress(OSError):
                    target.unlink()
                raise

    def follow(self, path: str, local: Path, size: int) -> None:
        return None

    @contextmanager
    def fetch(self, path: str) -> Iterator[Path]:
        with self._errors("read", path):  # errors of the body are its own
            os.close(confined.open_file(self._top, check_path(path)))
        yield self._at(path)

    def read_into(self, path: str, buffer: memoryview) -> int:
        with self.fetch(path) as local, self._errors("read", path):
            return read_file_into(local, buffer)

    def link(self, source: str, path: str) -> bool:
        there, target = self._at(source), self._at(path)
        with self._errors("link", path):
            with suppress(FileNotFoundError):  # `os.link` finds that out, too
                confined.stat_of(self._top, check_path(source))
            self._check(path)
            self._make_folder(target.parent)
            try:
                os.link(there, target)
            except OSError as error:
                if error.errno in _CANNOT_LINK_THIS:
                    return False
                # Over NFS the answer to a successful link may be lost: look whose file it is.
                if not (
                    isinstance(error, FileExistsError) and durable_files.is_same(there, target)
                ):
                    raise
            durable_files.sync_folder(target.parent)
            return True

    def appender(self, path: str) -> Appender:
        with self._errors("open", path):
            target = self._at(path)
            self._check(path)
            self._make_folder(target.parent)
            return LocalAppender(target, path, self.root)

    def local_path(self, path: str) -> Path | None:
        if not path:
            return self._root
        with self._errors("use", path):
            self._check(path)
        return self._at(path)

    def unfinished(self) -> Sequence[Unfinished]:
        left = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                if name.startswith(durable_files.TEMPORARY):
                    path = Path(folder) / name
                    with suppress(FileNotFoundError), self._errors("look at", name):
                        found = path.stat()
                        within = path.relative_to(self._root).as_posix()
                        what = "a temporary file"
                        left.append(Unfinished(within, found.st_mtime, found.st_size, what))
        return left

    def discard(self, left: Unfinished) -> None:
        self.delete(left.path)

    def sub(self, folder: str) -> LocalStorage:
        found = LocalStorage.__new__(LocalStorage)
        found._settle(self._name(folder))
        return found

    @property
    def _top(self) -> str:
        return self._base or "/"

    def _check(self, path: str) -> None:
        """Refuse a path whose folders are links."""
        confined.check_folders(self._top, check_path(path))

    def _name(self, path: str) -> str:
        return f"{self._base}/{check_path(path)}"

    def _at(self, path: str) -> Path:
        return self._root / check_path(path)

    @contextmanager
    def _errors(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, action, path, self.root) from error

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and make it durable, with every folder up to the root's parent.

        An existing folder may have been created by a process that died before it synced the
        parent. So the first use of each folder in this process syncs, too.
        """
        with self._lock:
            if folder in self._durable and folder.is_dir():
                return
            self._durable.discard(folder)
        chain = [folder]
        for above in folder.parents:
            if above in self._durable:
                break  # so are all folders above it
            if above != self._root and self._root not in above.parents and above.exists():
                break
            chain.append(above)
        durable_files.make_folder(folder)
        for made in reversed(chain):
            durable_files.sync_folder(made.parent)
            with self._lock:
                self._durable.add(made)

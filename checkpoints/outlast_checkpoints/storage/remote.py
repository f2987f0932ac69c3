"""Storages behind a URL, through fsspec.

An upload comes from a finished local file or buffer, or from the finished part of a file that
grows (`follow`). Failures that may pass
(a reset connection, a busy server) are retried for a while; all others are raised at once.
"""

from __future__ import annotations

import errno
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec

from outlast_checkpoints.errors import AlreadyExists, NotFound, ReadOnly, StorageError
from outlast_checkpoints.redaction import redact
from outlast_checkpoints.storage import retry
from outlast_checkpoints.storage.base import (
    Appender,
    Capabilities,
    Following,
    Unfinished,
    check_path,
    join,
    read_file_into,
    storage_error,
)
from outlast_checkpoints.storage.fsspec_clients import Client
from outlast_checkpoints.storage.retry_budget import BRIEF, patience, seconds
from outlast_checkpoints.storage.temp_dirs import temp_dir

T = TypeVar("T")

_SPEC = fsspec.AbstractFileSystem

# memory:// looks, then writes. Only this process sees it, so a lock makes that one step.
_memory_lock = threading.Lock()


class FsspecStorage:
    """A folder of any file system that fsspec supports."""

    def __init__(self, client: Client, base: str, url: str) -> None:
        self._client = client
        self._base = base.rstrip("/")
        self.root = url.rstrip("/") if not url.endswith("://") else url

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any]) -> FsspecStorage:
        """Open a URL. Raises `UsageError` if fsspec has no file system for it."""
        client = Client(url, options)
        return cls(client, client.base(), url)

    def __repr__(self) -> str:
        return f"FsspecStorage({redact(self.root)!r})"

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            exclusive_create=self._is_exclusive,
            append=False,
            local=False,
            in_process=self._client.protocol == "memory",
        )

    @property
    def _fs(self) -> Any:
        return self._client.files

    def read(self, path: str) -> bytes:
        options = self._client.reading()
        return bytes(self._try("read", path, lambda at: self._fs.cat_file(at, **options)))

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        # Some stores answer with an error for a range past the end.
        size = self.size(path)
        stop = size if end is None else min(end, size)
        if start >= stop:
            return b""
        data = bytes(
            self._try("read", path, lambda at: self._fs.cat_file(at, start=start, end=stop))
        )
        # A plain web server ignores the range and sends the whole file.
        return data if len(data) <= stop - start else data[start:stop]

    def size(self, path: str) -> int:
        return int(self._look(path)["size"])

    def exists(self, path: str) -> bool:
        # Not fs.exists: some clients report False when the server fails.
        try:
            self._look(path)
        except NotFound:
            return False
        return True

    def modified(self, path: str) -> float:
        self._forget(path)

        def once(at: str) -> float:
            try:
                return float(self._fs.modified(at).timestamp())
            except (NotImplementedError, KeyError) as error:
                raise OSError(errno.ENOTSUP, "it does not report modification times") from error

        return self._try("look at", path, once)

    def create(self, path: str, data: bytes) -> None:
        self._for_writing("create", path)
        # A store that ignores the condition would overwrite an existing file, so look first. Of two
        # creators that look at the same moment the later one wins: such a store cannot fence.
        if not self.capabilities.exclusive_create and self.exists(path):
            raise AlreadyExists(path=path, root=self.root)
        self._create(path, data)

    def _create(self, path: str, data: bytes) -> None:
        lost = False

        def once(at: str) -> None:
            nonlocal lost
            try:
                with _memory_lock if self._in_memory else nullcontext():
                    self._fs.pipe_file(at, data, mode="create")
            except Exception as error:
                refused = retry.was_refused(error)
                if refused is False:
                    lost = lost or retry.is_transient(error)
                    raise
                # A failed precondition, or our own earlier try whose answer was lost.
                if lost and self.read(path) == data:
                    return
                if refused or self.exists(path):
                    raise AlreadyExists(path=path, root=self.root) from error
                raise

        self._write("create", path, once)

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self._for_writing("write", path)
        # A file that need not be durable is replaced soon: do not wait long.
        with nullcontext() if durable else patience(min(BRIEF, seconds())):
            self._write("write", path, lambda at: self._fs.pipe_file(at, data, mode="overwrite"))

    def list(self, folder: str) -> list[str]:
        self._forget(folder)
        try:
            # Without the slash adlfs takes a trailing "?" for an empty query.
            names = self._try("list", folder, lambda at: self._fs.ls(f"{at}/", detail=False))
        except NotFound:
            return []
        base = self._at(folder).strip("/")
        if self._client.read_only:
            names = _links(names, base)
        found = {str(name).strip("/") for name in names}
        return sorted(name.rpartition("/")[2] for name in found if name != base)

    def delete(self, path: str) -> None:
        self._for_writing("delete", path)
        with suppress(NotFound):
            self._try("delete", path, lambda at: self._fs.rm_file(at))
        self._forget(path)

    def delete_tree(self, folder: str) -> None:
        self._for_writing("delete", folder)
        self._forget(folder)

        def once(at: str) -> None:
            # Not fs.rm(recursive=True): it treats "[", "*" and "?" in names as patterns.
            found = self._fs.find(at, withdirs=True, detail=True)
            folders = [name for name, info in found.items() if info["type"] == "directory"]
            for name in found:
                if name not in folders:
                    with suppress(FileNotFoundError):
                        self._fs.rm_file(name)
            for name in [*sorted(folders, key=len, reverse=True), at]:
                with suppress(OSError):  # most stores have no folders
                    self._client.remove_folder(name)

        with suppress(NotFound):
            self._try("delete", folder, once)
        self._forget(folder)

    @contextmanager
    def stage(self, path: str, *, over: bool = False) -> Iterator[Path]:
        self._for_writing("write", path)
        if not over and self.exists(path):
            raise AlreadyExists(path=path, root=self.root)
        with temp_dir() as folder:
            local = folder / path.rpartition("/")[2]
            try:
                yield local
                size = local.stat().st_size
            except OSError as error:
                raise storage_error(error, "write", path, self.root) from error
            # The next try overwrites what a failed upload leaves. Nothing is deleted here: a
            # deletion that we gave up on may arrive later and hit what was uploaded since.
            self._upload(local, path, size)
            if self.size(path) != size:
                raise StorageError(
                    action="upload", path=join(self.root, path), reason="it arrived incomplete"
                )

    def _upload(self, local: Path, path: str, size: int) -> None:
        options = self._client.sending()

        def send(at: str) -> None:
            if (parts := self._client.s3_parts(size)) is not None:
                parts.upload(local, at)
            else:
                self._client.files_for(size).put_file(str(local), at, **options)

        self._write("upload", path, send)

    def follow(self, path: str, local: Path, size: int) -> Following | None:
        self._for_writing("write", path)
        parts = self._client.s3_parts(size)
        if parts is None:
            return None
        upload = parts.upload_growing(local, self._at(path), size)
        return _Following(upload, lambda: self.size(path) == size)

    @contextmanager
    def fetch(self, path: str) -> Iterator[Path]:
        size = int(self._look(path)["size"] or 0)
        options = self._client.fetching()
        with temp_dir() as folder:
            local = folder / path.rpartition("/")[2]

            def receive(at: str) -> None:
                self._client.files_for(size).get_file(at, str(local), **options)

            self._try("download", path, receive)
            yield local

    def read_into(self, path: str, buffer: memoryview) -> int:
        def receive(at: str) -> int | None:
            parts = self._client.s3_parts(len(buffer))
            return None if parts is None else parts.read_into(at, buffer)

        found = self._try("download", path, receive)
        if found is None:
            with self.fetch(path) as local:
                return read_file_into(local, buffer)
        return found

    def link(self, source: str, path: str) -> bool:
        return False

    def appender(self, path: str) -> Appender:
        raise StorageError(
            action="append to", path=join(self.root, path), reason="this storage cannot append"
        )

    def local_path(self, path: str) -> Path | None:
        return None

    def unfinished(self) -> Sequence[Unfinished]:
        if self._client.protocol != "s3":
            return []  # other stores discard unfinished parts by themselves
        from outlast_checkpoints.storage import multipart

        try:
            return self._try("list", "", lambda at: multipart.unfinished(self._fs, at))
        except NotFound:  # some servers answer like this if there are none
            return []

    def discard(self, left: Unfinished) -> None:
        from outlast_checkpoints.storage import multipart

        with suppress(NotFound):
            self._try("delete", left.path, lambda at: multipart.abort(self._fs, at, left.token))

    def sub(self, folder: str) -> FsspecStorage:
        return FsspecStorage(self._client, self._at(folder), join(self.root, folder))

    def _at(self, path: str) -> str:
        return f"{self._base}/{check_path(path)}" if path else self._base

    def _forget(self, path: str) -> None:
        """Drop cached listings: another machine may have written since."""
        at = self._at(path)
        self._fs.invalidate_cache(at)
        self._fs.invalidate_cache(at.rpartition("/")[0])

    def _look(self, path: str) -> dict[str, Any]:
        self._forget(path)
        found: dict[str, Any] = self._try("look at", path, lambda at: self._fs.info(at))
        return found

    def _try(self, action: str, path: str, call: Callable[[str], T]) -> T:
        at = self._at(path)
        try:
            return self._until_done(call, at)
        except StorageError:
            raise
        except Exception as error:
            found = retry.real(error)
            if retry.status_of(found) == 404:
                raise NotFound(path=path, root=self.root, errno=errno.ENOENT) from error
            raise storage_error(found, action, path, self.root) from error

    def _until_done(self, call: Callable[[str], T], at: str) -> T:
        """Run a call. What the client found at its start, such as credentials, may be outdated."""
        try:
            return retry.until_done(call, at)
        except Exception as error:
            if retry.was_unauthorised(error):
                if not self._client.renew():
                    raise
            else:
                if retry.had_no_answer(error):
                    self._client.renew()  # for the next call, because this one has waited already
                raise
        return retry.until_done(call, at)

    def _write(self, action: str, path: str, call: Callable[[str], Any]) -> None:
        """Run a writing call. If it reports "not found", the bucket is missing."""
        try:
            self._try(action, path, call)
        except NotFound as error:
            raise StorageError(
                action=action, path=join(self.root, path), reason="the bucket does not exist"
            ) from error

    def _for_writing(self, action: str, path: str) -> None:
        if self._client.read_only:
            raise ReadOnly(action=action, path=join(self.root, path), scheme=self._client.scheme)

    @property
    def _in_memory(self) -> bool:
        return self._client.protocol == "memory"

    def _is_exclusive(self) -> bool:
        """Return whether the store can fence. The store is probed once."""
        if self._client.exclusive is None:
            self._client.exclusive = self._in_memory or self._probe()
        return self._client.exclusive

    def _probe(self) -> bool:
        """Create one file twice: some servers accept the condition but ignore it.

        Raises `StorageError` if listings do not show the file: jobs would start over.
        """
        inmost = self._fs
        while isinstance(getattr(inmost, "fs", None), _SPEC):
            inmost = inmost.fs
        if not inmost.async_impl and type(inmost).pipe_file is _SPEC.pipe_file:
            return False  # fsspec's default looks first, then writes: no exclusion
        if self._client.read_only:
            return False
        path = f".probe-{secrets.token_hex(8)}"
        try:
            self._create(path, b"1")
            if path not in self.list(""):
                raise StorageError(
                    action="list", path=self.root, reason="a file just created is not listed"
                )
            try:
                self._create(path, b"2")
            except AlreadyExists:
                return True
            return False
        finally:
            self.delete(path)


class _Following:
    """An upload of a growing file. `stage` repeats one that failed, and names what is wrong."""

    def __init__(self, upload: Any, is_whole: Callable[[], bool]) -> None:
        self._upload, self._is_whole = upload, is_whole
        self.grown, self.cancel = upload.grown, upload.cancel

    def finish(self) -> bool:
        try:
            self._upload.finish()
            return self._is_whole()
        except Exception:  # noqa: BLE001  (whatever it is, the file is uploaded again)
            return False


def _links(names: Iterable[Any], base: str) -> list[str]:
    """Return the links of a web page that lead below it."""
    below = f"{unquote(base)}/"
    found = [unquote(str(name)).strip("/") for name in names]
    return [name for name in found if name.startswith(below) and "/" not in name[len(below) :]]

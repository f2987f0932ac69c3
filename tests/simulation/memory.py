"""A store in memory that reports every change and behaves like a folder or a bucket."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from outlast_checkpoints.errors import AlreadyExists, NotFound, StorageError
from outlast_checkpoints.storage.base import Capabilities, check_path, storage_error

FOLDER = Capabilities(exclusive_create=True, append=True, local=True, in_process=False, links=True)
BUCKET = Capabilities(exclusive_create=True, append=False, local=False, in_process=False)
DISK = Capabilities(exclusive_create=True, append=True, local=True, in_process=False)


class Memory:
    """Files by path. changed: called before each change with operation, path and new content.

    As `FOLDER` it can append and link; what was appended is durable from a sync on.
    """

    def __init__(self, capabilities: Capabilities, scratch: Path) -> None:
        self.root = "simulated"
        self.capabilities = capabilities
        self.files: dict[str, bytes] = {}
        self.durable: dict[str, int] = {}  # bytes, of those that grow
        self.changed: Callable[[str, str, bytes | None], None] = lambda *_: None
        self._scratch = scratch

    def read(self, path: str) -> bytes:
        try:
            return self.files[check_path(path)]
        except KeyError:
            raise NotFound(path=path, root=self.root) from None

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        return self.read(path)[start:end]

    def size(self, path: str) -> int:
        return len(self.read(path))

    def exists(self, path: str) -> bool:
        return path in self.files or any(name.startswith(f"{path}/") for name in self.files)

    def create(self, path: str, data: bytes) -> None:
        check_path(path)
        if path in self.files:
            raise AlreadyExists(path=path, root=self.root)
        self._put("create", path, data)

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self._put("replace", path, data)

    def list(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        cut = len(start)
        return sorted(
            {name[cut:].partition("/")[0] for name in self.files if name.startswith(start)}
        )

    def delete(self, path: str) -> None:
        if path in self.files:
            self.changed("delete", path, None)
            del self.files[path]

    def delete_tree(self, folder: str) -> None:
        for path in [name for name in self.files if name.startswith(f"{folder}/")]:
            self.delete(path)

    @contextmanager
    def stage(self, path: str, *, over: bool = False) -> Iterator[Path]:
        if not over and path in self.files:
            raise AlreadyExists(path=path, root=self.root)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            local = Path(folder) / path.rpartition("/")[2]
            try:
                yield local
                data = local.read_bytes()
            except OSError as error:
                raise storage_error(error, "write", path, self.root) from error
        self._put("stage", path, data)

    def follow(self, path: str, local: Path, size: int) -> None:
        return None

    @contextmanager
    def fetch(self, path: str) -> Iterator[Path]:
        data = self.read(path)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            local = Path(folder) / path.rpartition("/")[2]
            local.write_bytes(data)
            yield local

    def read_into(self, path: str, buffer: memoryview) -> int:
        data = self.read(path)[: len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    def link(self, source: str, path: str) -> bool:
        if not self.capabilities.links or source not in self.files:
            return False
        if path in self.files:
            raise AlreadyExists(path=path, root=self.root)
        self._put("link", path, self.files[source])
        return True

    def appender(self, path: str) -> _Appender:
        if not self.capabilities.append:
            raise StorageError(action="append to", path=path, reason="this storage cannot append")
        return _Appender(self, path)

    def local_path(self, path: str) -> Path | None:
        return None

    def sub(self, folder: str) -> Memory:
        raise NotImplementedError

    def lose_power(self) -> None:
        """Lose what was appended and not synced."""
        for path, size in self.durable.items():
            if path in self.files:
                self.files[path] = self.files[path][:size]

    def _put(self, operation: str, path: str, data: bytes) -> None:
        self.changed(operation, path, data)
        self.files[path] = data


class _Appender:
    def __init__(self, memory: Memory, path: str) -> None:
        self._memory, self._path = memory, path
        if path not in memory.files:
            memory._put("append", path, b"")
            memory.durable[path] = 0
        self.size = len(memory.files[path])

    def write(self, data: bytes) -> None:
        there = self._memory.files.get(self._path, b"")[: self.size]
        self._memory._put("append", self._path, there + data)
        self.size += len(data)

    def sync(self) -> None:
        self._memory.durable[self._path] = len(self._memory.files.get(self._path, b""))

    def close(self) -> None:
        pass

"""A storage that fails on demand, for tests of the code above it."""

from __future__ import annotations

import errno
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar, cast

from outlast_checkpoints.errors import StorageError, StorageFull, UsageError
from outlast_checkpoints.storage.base import (
    Appender,
    Capabilities,
    Following,
    Storage,
    Unfinished,
    join,
)

T = TypeVar("T")

FAULTS = ("fail", "full", "lost", "late", "partial", "die-before", "die-after")
CHANGING = frozenset(
    {"create", "replace", "delete", "delete_tree", "stage", "link", "appender", "append", "sync"}
)

_RULE = re.compile(r"(\w+)@(\d+):([a-z-]+)")


class Died(BaseException):
    """A simulated process death: nothing done afterwards reaches the storage."""


class FaultyStorage:
    """A storage that fails on demand, at the k-th call of an operation.

    Example:

        FaultyStorage(storage, "create@2:full delete@1:lost")

    Args:
        inner: The storage that does the work.
        faults: Rules "operation@k:fault", separated by spaces. The operation "any" counts all
            operations that change something. "fail" and "full" raise and do nothing. "lost" does
            the operation and raises. "late" raises and does it only at `deliver`, like a request
            that was given up on too early. "partial" deletes part of a tree and raises.
            "die-before" and "die-after" raise `Died`, then and at every later call.

    Attributes:
        calls: All calls so far, as (operation, path).
        late: Operations that have not been delivered yet.
    """

    def __init__(self, inner: Storage, faults: str = "") -> None:
        self.inner = inner
        self.calls: list[tuple[str, str]] = []
        self.late: list[Callable[[], object]] = []
        self.dead = False
        self._counts: Counter[str] = Counter()
        self._rules: dict[tuple[str, int], str] = {}
        for rule in faults.split():
            match = _RULE.fullmatch(rule)
            if match is None or match.group(3) not in FAULTS:
                raise UsageError(
                    field="faults", problem=f"unknown rule {rule!r}", hint="Use operation@k:fault."
                )
            self._rules[match.group(1), int(match.group(2))] = match.group(3)

    @property
    def root(self) -> str:
        return self.inner.root

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def read(self, path: str) -> bytes:
        return self._call("read", path, lambda: self.inner.read(path))

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        return self._call("read_range", path, lambda: self.inner.read_range(path, start, end))

    def size(self, path: str) -> int:
        return self._call("size", path, lambda: self.inner.size(path))

    def exists(self, path: str) -> bool:
        return self._call("exists", path, lambda: self.inner.exists(path))

    def modified(self, path: str) -> float:
        return self._call("modified", path, lambda: self.inner.modified(path))

    def create(self, path: str, data: bytes) -> None:
        self._call("create", path, lambda: self.inner.create(path, data))

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self._call("replace", path, lambda: self.inner.replace(path, data, durable=durable))

    def list(self, folder: str) -> list[str]:
        return self._call("list", folder, lambda: self.inner.list(folder))

    def delete(self, path: str) -> None:
        self._call("delete", path, lambda: self.inner.delete(path))

    def delete_tree(self, folder: str) -> None:
        fault = self._enter("delete_tree", folder)
        if fault == "partial":
            names = self.inner.list(folder)
            for name in names[: len(names) // 2]:
                self.inner.delete(join(folder, name))
        self._leave("delete_tree", folder, fault, lambda: self.inner.delete_tree(folder))

    @contextmanager
    def stage(self, path: str, *, over: bool = False) -> Iterator[Path]:
        fault = self._enter("stage", path)
        if fault == "late":
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / path.rpartition("/")[2]
                yield local
                data = local.read_bytes()
            # An upload has no condition: it overwrites what exists by then.
            self._leave("stage", path, fault, lambda: self.inner.replace(path, data))
        with self.inner.stage(path, over=over) as local:
            yield local
            if self.dead:  # another thread's call died
                raise Died
        self._leave("stage", path, fault, lambda: None)

    def follow(self, path: str, local: Path, size: int) -> Following | None:
        return None if self.dead else self.inner.follow(path, local, size)

    def fetch(self, path: str) -> AbstractContextManager[Path]:
        return self._call("fetch", path, lambda: self.inner.fetch(path))

    def read_into(self, path: str, buffer: memoryview) -> int:
        return self._call("read_into", path, lambda: self.inner.read_into(path, buffer))

    def link(self, source: str, path: str) -> bool:
        return self._call("link", path, lambda: self.inner.link(source, path))

    def appender(self, path: str) -> Appender:
        return _FaultyAppender(
            self, path, self._call("appender", path, lambda: self.inner.appender(path))
        )

    def local_path(self, path: str) -> Path | None:
        return self.inner.local_path(path)

    def unfinished(self) -> Sequence[Unfinished]:
        return self._call("unfinished", "", self.inner.unfinished)

    def discard(self, left: Unfinished) -> None:
        self._call("discard", left.path, lambda: self.inner.discard(left))

    def sub(self, folder: str) -> Storage:
        return FaultyStorage(self.inner.sub(folder))

    def deliver(self) -> None:
        """Run the late operations in order. Their errors are dropped."""
        while self.late:
            with suppress(StorageError):
                self.late.pop(0)()

    def _call(self, operation: str, path: str, call: Callable[[], T]) -> T:
        return self._leave(operation, path, self._enter(operation, path), call)

    def _enter(self, operation: str, path: str) -> str | None:
        """Raise a fault that precedes the operation, or return a later one."""
        if self.dead:
            raise Died
        self.calls.append((operation, path))
        fault = self._fault(operation)
        if fault == "die-before":
            self.dead = True
            raise Died(operation, path)
        if fault in ("fail", "full"):
            raise self._error(operation, path, fault)
        return fault

    def _leave(self, operation: str, path: str, fault: str | None, call: Callable[[], T]) -> T:
        """Run the operation unless the fault prevents it, then return or raise."""
        if fault == "late" and operation in CHANGING:
            self.late.append(call)
        result = call() if fault not in ("late", "partial") else None
        if fault == "die-after":
            self.dead = True
            raise Died(operation, path)
        if fault is not None:
            raise self._error(operation, path, fault)
        return cast(T, result)

    def _fault(self, operation: str) -> str | None:
        self._counts[operation] += 1
        found = self._rules.get((operation, self._counts[operation]))
        if operation in CHANGING:
            self._counts["any"] += 1
            found = self._rules.get(("any", self._counts["any"]), found)
        return found

    def _error(self, operation: str, path: str, fault: str) -> StorageError:
        kind = StorageFull if fault == "full" else StorageError
        number = errno.ENOSPC if fault == "full" else errno.EIO
        reason = f"injected: {fault}"
        return kind(action=operation, path=join(self.root, path), reason=reason, errno=number)


class _FaultyAppender:
    def __init__(self, storage: FaultyStorage, path: str, inner: Appender) -> None:
        self._storage, self._path, self._inner = storage, path, inner

    @property
    def size(self) -> int:
        return self._inner.size

    def write(self, data: bytes) -> None:
        self._storage._call("append", self._path, lambda: self._inner.write(data))

    def sync(self) -> None:
        self._storage._call("sync", self._path, self._inner.sync)

    def close(self) -> None:
        self._inner.close()

"""For tests of storages and of what stands on them: faults on demand, and a conformance suite.

All of it is for anybody who writes a storage of their own: subclass `StorageConformance` with a
fixture `storage` that gives an empty one.
"""

from __future__ import annotations

import errno
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar, cast

import pytest

from outlast_checkpoints.errors import (
    AlreadyExists,
    NotFound,
    StorageError,
    StorageFull,
    UsageError,
)
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.storage.base import Appender, Capabilities, Storage, Unfinished, join

T = TypeVar("T")

FAULTS = ("fail", "full", "lost", "late", "partial", "die-before", "die-after")
_RULE = re.compile(r"(\w+)@(\d+):([a-z-]+)")


class Died(BaseException):
    """The process of a test "died" here: nothing it does afterwards reaches the storage."""


def sample_snapshot(
    step: int,
    *,
    phase: int = 0,
    stage: int = Stage.STEP,
    metrics: Mapping[str, float] | None = None,
    salt: int = 0,
    numbers: int = 64,
    backbone: int | None = None,
) -> Snapshot:
    """Return a small snapshot whose content follows from its place, `salt` and `numbers`.

    backbone: adds an array of 1 MiB that follows from this number alone, as a frozen layer's.
    """
    import numpy as np

    generator = np.random.default_rng([phase, step, int(stage), salt])
    weights = {
        "layers/dense/vars/0": generator.standard_normal((numbers, 2), dtype=np.float32),
        "layers/dense/vars/1": np.float32(step),
        "optimizer/vars/0": np.int64(step),
    }
    if backbone is not None:
        weights["layers/base/vars/0"] = np.full(1 << 18, backbone, np.float32)
    state = {"rng/key": generator.integers(0, 2**63, 4), "empty": np.zeros((0, 3))}
    return Snapshot(
        Progress(phase=phase, step=step, epoch=0, batch=step, stage=int(stage)),
        files={
            "model.weights.h5": ArrayFile(weights),
            "state.h5": ArrayFile(state, {"rng": {"kind": "philox"}}),
        },
        documents={"model.json": b'{"name": "sample"}'},
        metrics={} if metrics is None else metrics,
    )


class FaultyStorage:
    """A storage that fails on demand, at the k-th call of an operation.

    faults: rules "operation@k:fault", separated by spaces; "any" counts all operations that
    change something. Faults: "fail" and "full" do nothing and raise; "lost" does it and raises;
    "late" raises and does it only at `deliver`, as a request does that was given up on too early;
    "partial" deletes some of a tree and raises; "die-before" and "die-after" raise `Died` there
    and at every later call.
    calls: what was called so far, as (operation, path). late: what has not arrived yet.
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
                raise UsageError(field="faults", problem=f"{rule!r} is no rule", hint="")
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
            # An upload has no condition: it writes over what is there by then.
            self._leave("stage", path, fault, lambda: self.inner.replace(path, data))
        with self.inner.stage(path, over=over) as local:
            yield local
            if self.dead:  # another thread's call was the last
                raise Died
        self._leave("stage", path, fault, lambda: None)

    def fetch(self, path: str) -> AbstractContextManager[Path]:
        return self._call("fetch", path, lambda: self.inner.fetch(path))

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
        """Do what was late, in order; whether it still worked, nobody is told."""
        while self.late:
            with suppress(StorageError):
                self.late.pop(0)()

    def _call(self, operation: str, path: str, call: Callable[[], T]) -> T:
        return self._leave(operation, path, self._enter(operation, path), call)

    def _enter(self, operation: str, path: str) -> str | None:
        """Fail before anything is done, or return the fault to come."""
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
        """Do it, unless the fault is that it is not done now, and answer, unless that is lost."""
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


CHANGING = frozenset(
    {"create", "replace", "delete", "delete_tree", "stage", "link", "appender", "append", "sync"}
)


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


class StorageConformance:
    """What every storage must do. Subclass it with a fixture `storage`: an empty one."""

    def test_reads_back_what_was_created(self, storage: Storage) -> None:
        data = bytes(range(256)) * 5
        storage.create("a/b c/d'é\".json", data)
        assert storage.read("a/b c/d'é\".json") == data
        assert storage.size("a/b c/d'é\".json") == len(data)
        assert storage.exists("a/b c/d'é\".json")

    def test_creates_empty_files(self, storage: Storage) -> None:
        storage.create("empty", b"")
        assert storage.read("empty") == b""
        assert storage.list("") == ["empty"]

    def test_create_never_overwrites(self, storage: Storage) -> None:
        storage.create("a/b", b"first")
        with pytest.raises(AlreadyExists):
            storage.create("a/b", b"second")
        assert storage.read("a/b") == b"first"

    def test_tells_by_one_clock_when_files_were_written(self, storage: Storage) -> None:
        storage.create("old", b"1")
        storage.create("new", b"2")
        before = storage.modified("old")
        assert before <= storage.modified("new") < before + 3600
        time.sleep(1.1)  # some clocks have seconds only
        storage.replace("old", b"3")
        assert before < storage.modified("old")
        with pytest.raises(NotFound):
            storage.modified("missing")

    def test_what_was_finished_is_not_among_the_unfinished(self, storage: Storage) -> None:
        storage.create("a/file", b"1")
        storage.replace("a/file", b"2")
        with storage.stage("a/large") as path:
            path.write_bytes(b"3" * 1000)
        with suppress(ZeroDivisionError), storage.stage("a/half") as path:
            path.write_bytes(b"4")
            raise ZeroDivisionError
        assert list(storage.unfinished()) == []

    def test_one_of_many_creators_wins(self, storage: Storage) -> None:
        if not storage.capabilities.exclusive_create:
            pytest.skip("this storage says that it cannot")
        start = threading.Barrier(16)
        won: list[int] = []
        lost: list[int] = []

        def claim(number: int) -> None:
            start.wait()
            try:
                storage.create("journal/00000001.json", str(number).encode())
            except AlreadyExists:
                lost.append(number)
            else:
                won.append(number)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(lost) == 15
        assert storage.read("journal/00000001.json") == str(won[0]).encode()
        assert storage.list("journal") == ["00000001.json"]

    def test_read_range(self, storage: Storage) -> None:
        storage.create("a", b"0123456789")
        assert storage.read_range("a", 2, 5) == b"234"
        assert storage.read_range("a", 7, None) == b"789"
        assert storage.read_range("a", 7, 99) == b"789"
        assert storage.read_range("a", 10, None) == b""
        assert storage.read_range("a", 50, 60) == b""
        assert storage.read_range("a", 5, 5) == b""

    def test_what_is_missing_is_not_found(self, storage: Storage) -> None:
        for read in (storage.read, storage.size, lambda path: storage.read_range(path, 0, 1)):
            with pytest.raises(NotFound):
                read("no/such")
        with pytest.raises(NotFound), storage.fetch("no/such"):
            pass
        assert not storage.exists("no/such")
        assert storage.list("no/such") == []

    def test_replace(self, storage: Storage) -> None:
        storage.replace("a/beat", b"long content")
        storage.replace("a/beat", b"2", durable=False)
        assert storage.read("a/beat") == b"2"
        storage.replace("a/beat", b"third")
        assert storage.read("a/beat") == b"third"
        assert storage.list("a") == ["beat"]

    def test_list_gives_names_of_files_and_folders(self, storage: Storage) -> None:
        for path in ("f/b", "f/a/x", "f/a/y", "f/c[1]*?/z", "g"):
            storage.create(path, b"1")
        assert storage.list("f") == ["a", "b", "c[1]*?"]
        assert storage.list("f/c[1]*?") == ["z"]
        assert storage.list("") == ["f", "g"]

    def test_list_sees_what_others_write(self, storage: Storage) -> None:
        other = storage.sub("f")
        assert storage.list("f") == []
        other.create("x", b"1")
        assert storage.list("f") == ["x"]
        other.delete("x")
        assert storage.list("f") == []

    def test_delete(self, storage: Storage) -> None:
        storage.create("a/b", b"1")
        storage.delete("a/b")
        assert not storage.exists("a/b")
        storage.delete("a/b")
        storage.create("a/b", b"2")
        assert storage.read("a/b") == b"2"

    def test_delete_tree_takes_nothing_else(self, storage: Storage) -> None:
        for path in ("t/a", "t/b/c", "t2/a", "t[1]/a", "t1/a", "t*/b"):
            storage.create(path, b"1")
        storage.delete_tree("t")
        assert storage.list("") == ["t*", "t1", "t2", "t[1]"]
        storage.delete_tree("t[1]")
        storage.delete_tree("t*")
        assert storage.list("") == ["t1", "t2"]
        storage.delete_tree("t")

    def test_stage_publishes_on_a_clean_exit(self, storage: Storage) -> None:
        with storage.stage("c/x/file.h5") as path:
            assert not path.exists()
            path.write_bytes(b"z" * 100_000)
        assert storage.read("c/x/file.h5") == b"z" * 100_000
        assert storage.list("c/x") == ["file.h5"]

    def test_stage_leaves_nothing_after_an_error(self, storage: Storage) -> None:
        def break_off() -> None:
            with storage.stage("c/x/file.h5") as path:
                path.write_bytes(b"half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            break_off()
        assert not storage.exists("c/x/file.h5")
        assert storage.list("c/x") == []

    def test_stage_never_overwrites(self, storage: Storage) -> None:
        storage.create("c/file", b"first")
        with pytest.raises(AlreadyExists), storage.stage("c/file") as path:
            path.write_bytes(b"second")
        assert storage.read("c/file") == b"first"

    def test_stage_writes_over_an_earlier_try_when_told_to(self, storage: Storage) -> None:
        storage.create("c/file", b"an earlier try, cut")
        with storage.stage("c/file", over=True) as path:
            assert not path.exists()
            path.write_bytes(b"whole")
        assert storage.read("c/file") == b"whole"
        with storage.stage("c/other", over=True) as path:
            path.write_bytes(b"new")
        assert storage.read("c/other") == b"new"
        assert storage.list("c") == ["file", "other"]

    def test_errors_of_the_local_disk_are_storage_errors(self, storage: Storage) -> None:
        with pytest.raises(StorageFull) as caught, storage.stage("c/file"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert "c/file" in str(caught.value)

    def test_fetch(self, storage: Storage) -> None:
        storage.create("c/file.h5", b"content")
        with storage.fetch("c/file.h5") as path:
            assert path.read_bytes() == b"content"
            assert path.name == "file.h5"
        assert storage.read("c/file.h5") == b"content"

    def test_link(self, storage: Storage) -> None:
        storage.create("c/one/file.h5", b"content")
        storage.create("taken", b"other")
        assert not storage.link("c/none/file.h5", "c/two/file.h5")
        assert storage.list("c/two") == []
        made = storage.link("c/one/file.h5", "c/two/file.h5")
        assert made == storage.capabilities.links
        if not made:
            assert not storage.exists("c/two/file.h5")
            return
        with pytest.raises(AlreadyExists):
            storage.link("c/one/file.h5", "taken")
        assert storage.read("taken") == b"other"
        storage.delete_tree("c/one")
        assert storage.read("c/two/file.h5") == b"content"
        assert storage.link("c/two/file.h5", "c/three/file.h5")
        storage.delete("c/two/file.h5")
        assert storage.read("c/three/file.h5") == b"content"

    def test_sub_is_the_folder_below(self, storage: Storage) -> None:
        job = storage.sub("jo b")
        job.create("spec.json", b"1")
        assert storage.read("jo b/spec.json") == b"1"
        assert storage.list("") == ["jo b"]
        assert job.list("") == ["spec.json"]
        assert job.capabilities == storage.capabilities
        assert job.root.startswith(storage.root)

    @pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//b", "a/./b", "a\0b"])
    def test_paths_stay_below_the_root(self, storage: Storage, path: str) -> None:
        with pytest.raises(UsageError):
            storage.create(path, b"1")
        with pytest.raises(UsageError):
            storage.read(path)

    def test_appender(self, storage: Storage) -> None:
        if not storage.capabilities.append:
            with pytest.raises(StorageError):
                storage.appender("h")
            return
        file = storage.appender("a/h")
        file.write(b"one\n")
        file.write(b"two\n")
        assert storage.read("a/h") == b"one\ntwo\n"
        assert file.size == 8
        file.sync()
        file.close()
        again = storage.appender("a/h")
        assert again.size == 8
        again.write(b"three\n")
        again.close()
        assert storage.read("a/h") == b"one\ntwo\nthree\n"

    def test_local_path(self, storage: Storage) -> None:
        storage.create("a/b", b"1")
        path = storage.local_path("a/b")
        if storage.capabilities.local:
            assert path is not None
            assert path.read_bytes() == b"1"
        else:
            assert path is None

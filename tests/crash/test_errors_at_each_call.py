"""Each system call of a save fails once, as on a full or broken disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from outlast_checkpoints import errors
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.crash.example import row
from tests.crash.test_crash_points import check_content
from tests.crash.tracing import Saver

pytestmark = pytest.mark.crash

FULL = ("openat", "mkdir", "write", "pwrite64", "fsync", "link")
BROKEN = (
    *FULL,
    "close",
    "unlink",
    "unlinkat",
    "rmdir",
    "preadv,preadv2",
    "pread64",
    "getdents64",
    "newfstatat",
)


# What a client of NFS is told of a file that the server has replaced meanwhile.
STALE = ("openat", "getdents64", "newfstatat", "link")


@pytest.mark.parametrize(
    ("error", "call"),
    [
        *(("ENOSPC", call) for call in FULL),
        *(("EIO", call) for call in BROKEN),
        *(("ESTALE", call) for call in STALE),
    ],
)
def test_one_call_fails(error: str, call: str, saver: Saver, fresh_job: Callable[[], Path]) -> None:
    """Each failure is reported with the file's name, or recovered silently. Committed
    checkpoints stay good, and a second try succeeds."""
    told_of, silent = 0, 0
    while True:
        folder = fresh_job()
        n = told_of + silent + 1
        told = saver.do("save", folder, call, f"{call}:error={error}:when={n}")
        assert told.code == 0
        if told.tampered is None:
            assert told.failed == []
            break
        where = f"{n}: {told.tampered}"
        assert len(told.failed) <= 1, (where, told.failed)
        for failed in told.failed:
            kind = getattr(errors, failed["kind"], None)
            assert kind is not None, (where, failed["text"])
            assert issubclass(kind, errors.StorageError), (where, failed)
            if error == "ENOSPC" and kind is not errors.CommitUnknown:
                assert kind is errors.StorageFull, (where, failed)
            assert str(folder) in failed["text"], (where, failed)
        if told.failed:
            told_of += 1
        else:
            silent += 1
        reader = CheckpointStore(open_storage(folder))
        assert [damage for found in reader.ids() for damage in reader.verify(found)] == [], where
        newest, damages = reader.latest()
        assert newest is not None
        assert not damages
        # The deed was done to its end: it has saved step 4 and pruned what is older.
        assert newest.progress.step == 4, where
        check_content(reader, newest.id)
        rows = list(HistoryReader(open_storage(folder)).rows())
        assert rows == [row(step) for step in range(1, 5)], where
        assert list(folder.rglob(".tmp-*")) == [] or call == "unlink", where
    print(f"{call} fails with {error}: {told_of} told, {silent} made good")
    assert told_of + silent > 0


def test_rows_are_written_again_after_a_failed_sync(
    saver: Saver, fresh_job: Callable[[], Path]
) -> None:
    """After a failed fsync the kernel drops the dirty pages: a second fsync alone would succeed
    without making anything durable."""
    folder = fresh_job()
    plain = saver.do("save", folder, "fsync")
    syncs = [line.split(" ", 1)[1] for line in plain.calls if " fsync(" in line]
    n = next(i for i, line in enumerate(syncs, 1) if "history.jsonl>" in line)
    folder = fresh_job()
    told = saver.do("save", folder, "fsync,pwrite64", f"fsync:error=EIO:when={n}")
    assert told.tampered is not None
    assert [failed["step"] for failed in told.failed] == ["sync 3"]
    mine = [line for line in told.calls if "history.jsonl>" in line]
    at = mine.index(told.tampered)
    kinds = [line.split()[1].partition("(")[0] for line in mine]
    assert kinds[: at + 3] == ["pwrite64", "fsync", "pwrite64", "fsync"]
    written = [line.rsplit(", ", 1)[1] for line in mine if "pwrite64" in line]
    assert written[0] == written[1]  # the same bytes at the same place, as many as before
    assert list(HistoryReader(open_storage(folder)).rows()) == [row(n) for n in range(1, 5)]

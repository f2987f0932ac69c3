"""A save is killed before each of its system calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from outlast.job.events import Claimed, Ended, Released
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.process_identity import here
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.crash.example import arrays, document, row, snapshot
from tests.crash.tracing import Saver, numbered

pytestmark = pytest.mark.crash

# Every call of a save that changes the disk, makes something durable or opens what will.
CALLS = (
    "openat",
    "mkdir",
    "write",
    "pwrite64",
    "fsync",
    "close",
    "link",
    "unlink",
    "unlinkat",
    "rmdir",
)
# What a file system call may be named elsewhere, and what none of ours should be.
OTHERS = "fdatasync,rename,renameat,renameat2,linkat,mkdirat,ftruncate,truncate,creat,open,sync"


@pytest.mark.parametrize(("deed", "saves"), [("save", 2), ("tune", 3)])
def test_all_is_durable_before_the_commit(
    saver: Saver, fresh_job: Callable[[], Path], deed: str, saves: int
) -> None:
    """When a manifest gets its name, everything it lists is synced, so a machine crash leaves
    no less than a kill of the process."""
    folder = fresh_job()
    told = saver.do(deed, folder, "openat,mkdir,write,pwrite64,fsync,link")
    assert told.failed == []
    unsynced: set[str] = set()  # files with bytes, and names in folders, that are not durable
    commits = 0
    for line in told.calls:
        call, _, rest = line.partition(" ")[2].strip().partition("(")
        if call in ("write", "pwrite64", "fsync"):
            path = rest.partition("<")[2].partition(">")[0]
            if call == "fsync":
                unsynced.discard(path)
                unsynced -= {name for name in unsynced if name.rpartition(" in ")[2] == path}
            elif path.startswith(str(folder)):
                unsynced.add(path)
        elif call in ("mkdir", "link") or (call == "openat" and "O_CREAT" in rest):
            path = Path(rest.split('"')[3 if call == "link" else 1])
            if path.name == "manifest.json":
                commits += 1
                temporary = Path(rest.split('"')[1])
                # The manifest's own temporary name is all that need not last.
                assert unsynced == {f"{temporary.name} in {temporary.parent}"}, line
            unsynced.add(f"{path.name} in {path.parent}")
    assert commits == saves
    # Nothing is said to be saved before the manifest's name is durable, too.
    assert unsynced == set()


def check_content(
    store: CheckpointStore, checkpoint: CheckpointId, *, frozen: bool = False
) -> None:
    loaded = store.load(checkpoint)
    for file, wanted in arrays(checkpoint.step, frozen=frozen).items():
        assert loaded.files[file].keys() == wanted.keys()
        for name, array in wanted.items():
            found = loaded.files[file][name]
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
    assert loaded.documents["model.json"] == document(checkpoint.step)


def check_job(folder: Path, least: int, *, frozen: bool = False) -> None:
    """Check the remains of a crashed save, and resume as attempt 3.

    least: the oldest step that the newest checkpoint may have. frozen: whether attempt 2 had a
    part that never changes.
    """
    storage = open_storage(folder)
    reader = CheckpointStore(storage)
    ids = reader.ids()
    assert [damage for found in ids for damage in reader.verify(found)] == []
    for found in ids:
        check_content(reader, found, frozen=frozen and found.attempt == 2)
    newest, damages = reader.latest()
    assert newest is not None
    assert not damages
    assert newest.progress.step >= least
    done = newest.progress.step
    # What is committed of the history is all there, each step once.
    assert [r["step"] for r in HistoryReader(storage).rows()][:done] == list(range(1, done + 1))

    store = CheckpointStore(storage, attempt=3)
    resumed, damages = store.begin()
    assert resumed == newest
    assert not damages
    history = HistoryWriter(storage, 3)
    for step in range(done + 1, done + 3):
        history.append(row(step))
    mark = history.mark()
    history.sync(mark)
    store.save(snapshot(done + 2), reason="step", history=mark)
    store.prune(Keep(last=1))
    history.close()
    latest, damages = CheckpointStore(storage).latest()
    assert latest is not None
    assert str(latest.id) == f"00-{done + 2:012d}.0-0003"
    assert not damages
    check_content(reader, latest.id)
    rows = list(HistoryReader(storage).rows())
    assert rows == [row(step) for step in range(1, done + 3)]
    # What the crash left half-written is gone with the next pruning.
    assert reader.orphans() == []


def test_save_makes_no_other_calls(saver: Saver, fresh_job: Callable[[], Path]) -> None:
    """The tests below kill at every kind of call that a save makes."""
    folder = fresh_job()
    told = saver.do("save", folder, ",".join([*CALLS, OTHERS]))
    assert (told.code, told.failed) == (0, [])
    counts = numbered(told.calls)
    print("calls of a resume and two saves:", counts)
    assert set(counts) == set(CALLS)
    check_job(folder, 4)


@pytest.mark.parametrize("call", CALLS)
def test_kill_before_each_call(call: str, saver: Saver, fresh_job: Callable[[], Path]) -> None:
    """Attempt 2 resumes, saves two steps and prunes. It dies before its nth call of a kind."""
    killed = 0
    while True:
        folder = fresh_job()
        told = saver.do("save", folder, call, f"{call}:signal=SIGKILL:when={killed + 1}")
        if told.code == 0:
            assert told.failed == []
            check_job(folder, 4)
            break
        assert told.code == -9
        killed += 1
        check_job(folder, 2)
    print(f"{call}: killed at each of {killed}")
    assert killed > 0


def test_kill_around_the_link_to_the_frozen_part(
    saver: Saver, fresh_job: Callable[[], Path]
) -> None:
    """Attempt 2 dies at each call that names, deletes or makes durable, in the save that links and
    in the pruning after it, which deletes the folder that the linked file was written to."""
    folder = fresh_job()
    told = saver.do("tune", folder, ",".join(CALLS))
    assert (told.code, told.failed) == (0, [])
    check_job(folder, 5, frozen=True)
    links = [n for n, line in enumerate(told.calls) if " link(" in line]
    (at,) = (n for n in links if told.calls[n].count("model.weights.frozen.h5") == 2)
    begun = links[links.index(at) - 1]  # what commits step 4
    before, whole = numbered(told.calls[: begun + 1]), numbered(told.calls)
    killed = 0
    for call in ("link", "fsync", "unlink", "unlinkat"):
        for n in range(before[call] + 1, whole[call] + 1):
            folder = fresh_job()
            told = saver.do("tune", folder, call, f"{call}:signal=SIGKILL:when={n}")
            assert told.code == -9, (call, n)
            killed += 1
            check_job(folder, 4, frozen=True)
    print("killed at", killed)


PLANNED = ["ended", "released", "claimed", "launched", "started"]


@pytest.mark.parametrize("call", ["openat", "pwrite64", "fsync", "link", "unlink", "close"])
def test_kill_before_each_call_of_the_journal(
    call: str, saver: Saver, fresh_job: Callable[[], Path]
) -> None:
    """The journal holds a prefix of the events, and accepts the next one."""
    killed = 0
    lengths = set()
    while True:
        folder = fresh_job()
        told = saver.do("events", folder, call, f"{call}:signal=SIGKILL:when={killed + 1}")
        journal = Journal(open_storage(folder))
        entries = [entry.event.__struct_config__.tag for entry in journal.read()[4:]]
        assert entries == PLANNED[: len(entries)]
        lengths.add(len(entries))
        job = journal.existing_job()
        if job.in_flight:
            job = journal.append(Ended(attempt=job.attempt, outcome=Outcome.KILLED))
        if job.owner is not None:
            job = journal.append(Released())
        assert journal.append(Claimed(attempt=job.attempt + 1, owner=here())).attempt >= 2
        if told.code == 0:
            assert told.failed == []
            break
        killed += 1
    print(f"{call}: killed at each of {killed}")
    assert lengths | {0} == set(range(len(PLANNED) + 1))

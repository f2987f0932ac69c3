"""Copying a job: complete, verified, resumable, and never over another job."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outlast_checkpoints.arrays.hashing import Digests
from outlast_checkpoints.errors import CheckpointDamaged, JobChanged, PlaceTaken, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.copy_job import copy_job
from outlast_checkpoints.testing import CHANGING, Died, FaultyStorage, sample_snapshot

BACKBONE = 3


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Callable[[str], Storage]]:
    """Return a function that opens a new empty folder or in-memory storage."""
    made: list[Storage] = []

    def place(kind: str) -> Storage:
        name = uuid.uuid4().hex
        url = str(tmp_path / name) if kind == "folder" else f"memory://{name}/jobs"
        made.append(open_storage(url))
        return made[-1]

    yield place
    for storage in made:
        if storage.local_path("") is None:
            storage.delete_tree("")


def train(storage: Storage, attempt: int, steps: range, backbone: int | None = BACKBONE) -> None:
    """Add an attempt with rows and a checkpoint at each step."""
    store = CheckpointStore(storage, attempt=attempt)
    store.begin()
    history = HistoryWriter(storage, attempt)
    for step in steps:
        history.append({"kind": "step", "phase": 0, "step": step, "epoch": 0, "batch": step})
        mark = history.mark()
        history.sync(mark)
        store.save(sample_snapshot(step, backbone=backbone), reason="step", history=mark)
    history.close()
    storage.create(layout.journal_event(attempt), f"attempt {attempt}".encode())
    storage.replace(layout.heartbeat(attempt), b"{}")


def make_job(storage: Storage) -> None:
    storage.create(layout.SPEC, b'{"job": "sample"}')
    train(storage, 1, range(1, 5))


def parts(storage: Storage) -> set[int]:
    """Return the inodes of the frozen parts."""
    folder = Path(storage.root) / layout.CHECKPOINTS
    return {path.stat().st_ino for path in folder.glob("*/*.frozen.h5")}


def assert_same(one: Storage, other: Storage) -> None:
    """Assert that two storages hold the same job."""
    ids = CheckpointStore(one).ids()
    assert CheckpointStore(other).ids() == ids
    for checkpoint in ids:
        path = layout.manifest(checkpoint)
        assert one.read(path) == other.read(path)
        assert CheckpointStore(other).verify(checkpoint) == []
    assert list(HistoryReader(one).rows()) == list(HistoryReader(other).rows())
    for folder in (layout.JOURNAL, layout.attempt_dir(1)):
        names = one.list(folder)
        assert other.list(folder) == names
        assert [one.read(f"{folder}/{n}") for n in names] == [
            other.read(f"{folder}/{n}") for n in names
        ]


def test_there_and_back_over_a_storage_without_links(places: Callable[[str], Storage]) -> None:
    first, bucket, last = places("folder"), places("memory"), places("folder")
    make_job(first)
    out = copy_job(first, bucket)
    assert_same(first, bucket)
    assert (out.tally.linked, out.tally.kept, out.damages) == (0, 0, [])
    back = copy_job(bucket, last)
    assert_same(first, last)
    # Three checkpoints have the frozen part; on a disk it is there once.
    assert len(parts(first)) == len(parts(last)) == 1
    assert back.tally.linked == out.tally.written - back.tally.written > 1 << 20
    train(last, 2, range(5, 7))
    assert [row["step"] for row in HistoryReader(last).rows()] == [1, 2, 3, 4, 5, 6]
    assert not last.exists(layout.COPYING)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_kill_at_any_call_leaves_no_job_and_the_copy_can_be_repeated(
    places: Callable[[str], Storage], kind: str
) -> None:
    """Until the last call there is no spec, and every manifest's files exist."""
    source = places("folder")
    make_job(source)
    whole = places(kind)
    calls = FaultyStorage(whole)
    copy_job(source, calls, at_once=1)
    count = sum(1 for name, _ in calls.calls if name in CHANGING)
    assert count > 20
    assert [path for name, path in calls.calls if name in CHANGING][-2:] == [
        layout.SPEC,
        layout.COPYING,
    ]
    for at in range(1, count, 3):
        target = places(kind)
        with pytest.raises((Died, StorageError)):
            copy_job(source, FaultyStorage(target, f"any@{at}:die-before"), at_once=1)
        assert not target.exists(layout.SPEC)
        reader = CheckpointStore(target)
        assert [damage for one in reader.ids() for damage in reader.verify(one)] == []
        copy_job(source, target)
        assert_same(source, target)


def test_correct_files_are_not_copied_again(places: Callable[[str], Storage]) -> None:
    source, target = places("folder"), places("folder")
    make_job(source)
    copy_job(source, target)
    counted = FaultyStorage(target)
    again = copy_job(source, counted)
    assert again.tally.written == again.tally.linked == 0
    assert [call for call in counted.calls if call[0] in ("stage", "link", "replace")] == []


def test_damage_in_the_copy_is_repaired(places: Callable[[str], Storage]) -> None:
    source, target = places("folder"), places("folder")
    make_job(source)
    copy_job(source, target)
    newest = CheckpointStore(target).ids()[-1]
    for name in ("state.h5", "model.weights.frozen.h5"):
        path = Path(target.root) / layout.checkpoint_file(newest, name)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    copy_job(source, target)
    assert_same(source, target)
    assert len(parts(target)) == 1


def test_a_copy_of_a_job_that_continued_is_updated(places: Callable[[str], Storage]) -> None:
    source, target = places("folder"), places("memory")
    make_job(source)
    copy_job(source, target)
    train(source, 2, range(5, 7))
    copied = copy_job(source, target)
    assert_same(source, target)
    assert 0 < copied.tally.written < copied.tally.kept


def test_a_destination_with_other_files_is_refused(places: Callable[[str], Storage]) -> None:
    source, other = places("folder"), places("folder")
    make_job(source)
    other.create(layout.SPEC, b"another job")
    with pytest.raises(PlaceTaken, match="it holds another job"):
        copy_job(source, other)
    assert other.list("") == [layout.SPEC]

    stray = places("folder")
    stray.create("precious.txt", b"mine")
    with pytest.raises(PlaceTaken, match="it is not empty"):
        copy_job(source, stray)
    assert stray.list("") == ["precious.txt"]

    half = places("folder")
    with pytest.raises(Died):
        copy_job(source, FaultyStorage(half, "stage@2:die-before"), at_once=1)
    unlike = places("folder")
    unlike.create(layout.SPEC, b"of another job")
    with pytest.raises(PlaceTaken, match="incomplete copy of another job"):
        copy_job(unlike, half)


def test_a_copy_that_was_resumed_is_refused(places: Callable[[str], Storage]) -> None:
    source, target = places("folder"), places("folder")
    make_job(source)
    copy_job(source, target)
    train(target, 2, range(5, 6))
    before = CheckpointStore(target).ids()
    with pytest.raises(PlaceTaken, match="has been run itself"):
        copy_job(source, target)
    train(source, 2, range(5, 6), backbone=9)
    source.replace(layout.journal_event(2), b"another attempt 2")
    with pytest.raises(PlaceTaken, match="has been run itself"):
        copy_job(source, target)
    assert CheckpointStore(target).ids() == before
    assert CheckpointStore(target).verify(before[-1]) == []


def test_a_job_that_continues_during_the_copy_is_an_error(places: Callable[[str], Storage]) -> None:
    source, target = places("folder"), places("folder")
    make_job(source)

    class Going(FaultyStorage):
        """The job is resumed while its checkpoints are copied."""

        def read_range(self, path: str, start: int, end: int | None) -> bytes:
            if path.endswith(layout.MANIFEST_FILE) and not source.exists(layout.journal_event(2)):
                source.create(layout.journal_event(2), b"taken up")
            return super().read_range(path, start, end)

    with pytest.raises(JobChanged):
        copy_job(Going(source), target, at_once=1)
    assert not target.exists(layout.SPEC)
    copy_job(source, target)
    assert_same(source, target)


def test_damage_of_the_source_is_copied_and_named(places: Callable[[str], Storage]) -> None:
    source, target = places("folder"), places("memory")
    make_job(source)
    ids = CheckpointStore(source).ids()
    root = Path(source.root)
    (root / layout.checkpoint_file(ids[0], "model.json")).write_bytes(b"flipped bits here!")
    (root / layout.checkpoint_file(ids[1], "state.h5")).unlink()
    (root / layout.manifest(ids[2])).write_bytes(b"no manifest")
    copied = copy_job(source, target)
    assert sorted(str(damage) for damage in copied.damages) == [
        f"{ids[0]}: model.json: its content has changed (the hash differs)",
        f"{ids[1]}: state.h5: it is missing",
        f"{ids[2]}: manifest.json: its checksum does not match its content",
    ]
    mine, theirs = CheckpointStore(source), CheckpointStore(target)
    assert [theirs.verify(one) for one in ids] == [mine.verify(one) for one in ids]
    found, damages = theirs.latest()
    assert (found is not None, damages) == (True, [])


def test_a_job_with_unreadable_checkpoints_is_not_copied(
    places: Callable[[str], Storage],
) -> None:
    """Otherwise the copy would silently start over."""
    source, target = places("folder"), places("folder")
    source.create(layout.SPEC, b"{}")
    train(source, 1, range(1, 2))
    (only,) = CheckpointStore(source).ids()

    class Unreadable(FaultyStorage):
        def read(self, path: str) -> bytes:
            return self.read_range(path, 0, None)

        def read_range(self, path: str, start: int, end: int | None) -> bytes:
            if path == layout.manifest(only):
                raise StorageError(action="read", path=path, reason="Input/output error")
            return super().read_range(path, start, end)

    with pytest.raises(CheckpointDamaged):
        copy_job(Unreadable(source), target)
    assert not target.exists(layout.SPEC)


def test_a_file_with_several_names_is_read_once(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    (tmp_path / "one").write_bytes(b"x" * 10_000)
    storage.link("one", "two")
    (tmp_path / "three").write_bytes(b"x" * 10_000)

    class Counting(FaultyStorage):
        pass

    counted = Counting(storage)
    digests = Digests()
    assert len({digests.of(counted, name) for name in ("one", "two", "three")}) == 1
    assert [path for call, path in counted.calls if call == "fetch"] == ["one", "three"]

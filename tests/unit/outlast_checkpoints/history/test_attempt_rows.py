"""The rows of an attempt: read from either end, by kind, and with damage named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.history_attempt import Attempt, read, step


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 11, 12, 99])
def test_tail(storage: Storage, n: int) -> None:
    one = Attempt(storage, 1)
    one.train(5)
    one.save()
    one.train(3)
    one.history.flush()
    two = Attempt(storage, 2)
    two.train(6)
    two.history.close()
    whole = list(HistoryReader(storage).rows())
    assert len(whole) == 11
    assert HistoryReader(storage).tail(n) == whole[max(0, 11 - n) :]


def test_long_histories_are_read_in_pieces(storage: Storage) -> None:
    attempt = Attempt(storage, 1)
    for number in range(1, 5001):
        attempt.history.append(step(number, by=1, pad="x" * (number % 1000)))
        if number % 1700 == 0:
            attempt.history.sync()
    attempt.history.close()
    assert attempt.history.mark().mark > 2 << 20
    assert read(storage) == [(number, 1) for number in range(1, 5001)]
    assert [row["step"] for row in HistoryReader(storage).tail(1500)] == list(range(3501, 5001))


class CountingStorage(FaultyStorage):
    """A storage that counts the bytes read."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.bytes = 0

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        data = super().read_range(path, start, end)
        self.bytes += len(data)
        return data


def write_epochs(storage: Storage, attempt: int, epochs: list[int], first: int = 0) -> None:
    """Write epochs with the given numbers of steps; 0 means only the epoch's row."""
    history = HistoryWriter(storage, attempt)
    at = 0
    if attempt == 1:
        history.append({"kind": "phase", "phase": 0, "step": 0, "name": None, "params": {}})
    for epoch, steps in enumerate(epochs, first):
        for batch in range(steps):
            at += 1
            history.append(step(at, epoch=epoch, batch=batch, pad="x" * 100))
        history.append({"kind": "epoch", "phase": 0, "step": at, "epoch": epoch, "logs": {}})
    history.append(step(at + 1, epoch=first + len(epochs), batch=0))
    history.close()


@pytest.mark.parametrize(
    "epochs",
    [[], [1], [3, 0, 0, 2], [3000], [2500, 1, 2500, 0, 0, 700], [1] * 3000, [9000, 4, 1, 1]],
)
def test_rows_of_a_kind_are_found_from_either_end(storage: Storage, epochs: list[int]) -> None:
    CheckpointStore(storage, attempt=1).begin()
    write_epochs(storage, 1, epochs)
    reader = HistoryReader(storage)
    whole = list(reader.rows())
    for kind in ("epoch", "step", "phase", "none such"):
        wanted = [row for row in whole if row["kind"] == kind]
        assert list(reader.rows(kind)) == wanted
        for n in (0, 1, 2, 5, 10**6):
            assert reader.tail(n, kind) == (wanted[-n:] if n else [])


def test_the_last_epochs_are_found_without_reading_all_steps(local: Storage) -> None:
    CheckpointStore(local, attempt=1).begin()
    write_epochs(local, 1, [6000] * 8)
    size = local.size(layout.history(1))
    counting = CountingStorage(local)
    found = HistoryReader(counting).tail(3, "epoch")
    assert [row["epoch"] for row in found] == [5, 6, 7]
    assert counting.bytes < size / 4


def test_epochs_without_numbers_are_found_step_by_step(local: Storage) -> None:
    attempt = Attempt(local, 1)
    attempt.history.append({"kind": "epoch", "phase": 0, "step": 0, "logs": {}})
    for number in range(1, 2000):
        attempt.history.append(step(number, pad="x" * 100))
    attempt.history.close()
    assert [row["step"] for row in HistoryReader(local).tail(2, "epoch")] == [0]


def test_epochs_are_found_over_attempts(storage: Storage) -> None:
    one = Attempt(storage, 1)
    write_epochs(storage, 1, [1500, 2])
    size = sum(
        storage.size(f"{layout.attempt_dir(1)}/{name}")
        for name in storage.list(layout.attempt_dir(1))
        if name.startswith("history")
    )
    one.store.save(sample_snapshot(1503), reason="step", history=HistoryMark(1, size))
    CheckpointStore(storage, attempt=2).begin()
    write_epochs(storage, 2, [1800], first=2)
    reader = HistoryReader(storage)
    assert [row["epoch"] for row in reader.tail(9, "epoch")] == [0, 1, 2]
    assert [row["epoch"] for row in reader.rows("epoch")] == [0, 1, 2]
    for kind in ("step", "epoch"):
        steps = [one for some in reader.columns() if some.kind == kind for one in some.steps]
        assert steps == [row["step"] for row in reader.rows(kind)]


def test_damage_in_rows_of_another_kind_is_named_too(local: Storage) -> None:
    CheckpointStore(local, attempt=1).begin()
    write_epochs(local, 1, [5, 5])
    path = local.local_path(layout.history(1))
    assert path is not None
    whole = path.read_bytes()
    third = [at for at, byte in enumerate(whole) if byte == ord(b"\n")][2] + 1
    path.write_bytes(whole[:third] + b"!" + whole[third + 1 :])
    for read_all in (lambda: list(HistoryReader(local).rows("epoch")), columns_of(local)):
        with pytest.raises(FormatError, match=f"attempt 1: it is damaged at byte {third}"):
            read_all()


def columns_of(storage: Storage) -> Callable[[], object]:
    return lambda: list(HistoryReader(storage).columns())


@pytest.mark.parametrize("rest", [b'{"kind":"step","phase":0,', b'{"kind":1}', b"\0" * 300])
def test_a_torn_last_line_is_ignored(local: Storage, rest: bytes) -> None:
    attempt = Attempt(local, 1)
    attempt.train(2)
    attempt.history.close()
    path = local.local_path(layout.history(1))
    assert path is not None
    path.write_bytes(path.read_bytes() + rest)
    assert read(local) == [(1, 1), (2, 1)]
    assert len(HistoryReader(local).tail(9)) == 2


def test_damage_elsewhere_is_named(local: Storage) -> None:
    one = Attempt(local, 1)
    one.train(3)
    one.save()
    path = local.local_path(layout.history(1))
    assert path is not None
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    path.write_bytes(whole[:second] + b"!" + whole[second + 1 :])
    reader = HistoryReader(local)
    rows = reader.rows()
    assert next(rows)["step"] == 1
    with pytest.raises(FormatError, match=f"attempt 1: it is damaged at byte {second}"):
        next(rows)
    with pytest.raises(FormatError, match=f"byte {second}"):
        reader.tail(2)
    assert len(reader.tail(1)) == 1


def test_missing_committed_rows_are_reported(local: Storage) -> None:
    one = Attempt(local, 1)
    one.train(3)
    one.save()
    Attempt(local, 2)
    path = local.local_path(layout.history(1))
    assert path is not None
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: whole.index(b"\n") + 1], b""):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="were committed"):
            list(HistoryReader(local).rows())
        with pytest.raises(FormatError, match="were committed"):
            HistoryReader(local).tail(1)
    path.unlink()
    with pytest.raises(FormatError, match="were committed"):
        list(HistoryReader(local).rows())


def test_a_gap_in_the_lineage_is_reported(local: Storage) -> None:
    for number in (1, 2, 3):
        attempt = Attempt(local, number)
        attempt.train(2)
        attempt.save()
    store = CheckpointStore(local)
    for found in store.ids()[:-2]:
        store.delete(found)
    path = local.local_path(layout.origin(2))
    assert path is not None
    path.unlink()
    with pytest.raises(FormatError, match=r"attempts/0002/origin\.json"):
        list(HistoryReader(local).rows())

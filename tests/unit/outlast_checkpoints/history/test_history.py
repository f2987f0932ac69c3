"""History: appending never waits, recovers from a full disk, and reads once over all attempts."""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from outlast_checkpoints.errors import FormatError, StorageError, StorageFull
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.disk_limits import files_no_longer_than


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    where = tmp_path / "job" if request.param == "file" else f"memory://{uuid.uuid4().hex}/job"
    return open_storage(where)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "job")


def step(number: int, **more: object) -> dict[str, object]:
    return {"kind": "step", "phase": 0, "step": number, "logs": {"loss": 1 / number}, **more}


class Attempt:
    """An attempt as the training runs it: begin, train, save."""

    def __init__(self, storage: Storage, number: int) -> None:
        self.store = CheckpointStore(storage, attempt=number)
        resumed, _ = self.store.begin()
        self.at = resumed.progress.step if resumed else 0
        self.history = HistoryWriter(storage, number)
        self.number = number

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.at += 1
            self.history.append(step(self.at, by=self.number))

    def save(self) -> None:
        mark = self.history.mark()
        self.history.sync(mark)
        self.store.save(sample_snapshot(self.at), reason="step", history=mark)


def read(storage: Storage) -> list[tuple[int, int]]:
    return [(row["step"], row["by"]) for row in HistoryReader(storage).rows()]


def test_rows_come_back(storage: Storage) -> None:
    attempt = Attempt(storage, 1)
    rows = [
        {"kind": "phase", "phase": 0, "name": "NaN", "params": {"seed": None, "epochs": 3}},
        step(1, batch_loss=math.inf, time=1.5),
        {"kind": "epoch", "phase": 0, "step": 1, "logs": {"a": -math.inf, "b": 2.0, "ü": 1e-300}},
    ]
    for row in rows:
        attempt.history.append(row)
    attempt.history.append(step(2, logs={"loss": math.nan}))
    attempt.history.close()
    *found, last = HistoryReader(storage).rows()
    assert found == rows
    assert math.isnan(last["logs"]["loss"])


def test_numbers_of_numpy_are_numbers(storage: Storage) -> None:
    attempt = Attempt(storage, 1)
    logs = {"a": np.float32(0.5), "b": np.float64(0.25), "c": np.array(2), "d": np.float32("nan")}
    attempt.history.append(step(1, logs=logs))
    attempt.history.close()
    (row,) = HistoryReader(storage).rows()
    assert math.isnan(row["logs"].pop("d"))
    assert row["logs"] == {"a": 0.5, "b": 0.25, "c": 2}
    with pytest.raises(NotImplementedError, match="object"):
        attempt.history.append(step(2, what=object()))


def test_the_file_is_json_lines_for_anybody(local: Storage) -> None:
    attempt = Attempt(local, 1)
    attempt.history.append(step(1, batch_loss=math.nan))
    attempt.history.close()
    data = local.read(layout.history(1))
    assert data.endswith(b"\n")
    assert json.loads(data)["batch_loss"] == "NaN"


def test_marks_count_bytes_of_rows(storage: Storage) -> None:
    attempt = Attempt(storage, 1)
    assert attempt.history.mark() == HistoryMark(1, 0)
    attempt.train(1)
    first = attempt.history.mark().mark
    attempt.history.sync(attempt.history.mark())
    attempt.train(1)
    attempt.history.flush()
    attempt.train(1)
    assert attempt.history.mark().mark > first > 0
    attempt.history.close()
    names = storage.list(layout.attempt_dir(1))
    sizes = [storage.size(f"{layout.attempt_dir(1)}/{name}") for name in names if "hist" in name]
    assert sum(sizes) == attempt.history.mark().mark


def test_flush_makes_rows_visible(storage: Storage) -> None:
    attempt = Attempt(storage, 1)
    attempt.train(3)
    assert read(storage) == []
    attempt.history.flush()
    assert read(storage) == [(1, 1), (2, 1), (3, 1)]
    attempt.history.flush()
    assert len(read(storage)) == 3


def test_each_step_once_over_crashes_and_zombies(storage: Storage) -> None:
    one = Attempt(storage, 1)
    one.train(5)
    one.save()
    one.train(3)
    one.history.flush()  # visible, and past what the next attempt resumes from
    assert len(read(storage)) == 8
    two = Attempt(storage, 2)
    assert len(read(storage)) == 5
    one.train(2)
    one.history.flush()
    two.train(4)
    two.save()
    two.train(1)  # lost with attempt 2: never flushed
    three = Attempt(storage, 3)
    three.train(2)
    three.history.close()
    assert read(storage) == [
        *((n, 1) for n in range(1, 6)),
        *((n, 2) for n in range(6, 10)),
        *((n, 3) for n in range(10, 12)),
    ]
    assert HistoryReader(storage).restarts() == [(2, 0, 5), (3, 0, 9)]


def test_an_attempt_that_saved_nothing_is_passed_over(storage: Storage) -> None:
    one = Attempt(storage, 1)
    one.train(2)
    one.save()
    two = Attempt(storage, 2)
    two.train(3)
    two.history.flush()
    three = Attempt(storage, 3)
    three.train(1)
    three.history.close()
    assert read(storage) == [(1, 1), (2, 1), (3, 3)]


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


def test_epochs_that_nobody_numbered_are_found_step_by_step(local: Storage) -> None:
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


# Damage


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
def test_a_torn_last_line_is_left_out(local: Storage, rest: bytes) -> None:
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


def test_committed_rows_that_are_gone_are_missed(local: Storage) -> None:
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


def test_a_gap_in_the_lineage_is_said(local: Storage) -> None:
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


# A failing disk


def test_a_row_cut_by_a_full_disk_is_healed_by_the_next_flush(local: Storage) -> None:
    attempt = Attempt(local, 1)
    attempt.train(2)
    attempt.history.flush()
    size = local.size(layout.history(1))
    attempt.train(2)
    for more in (1, 10, 60):
        with files_no_longer_than(size + more):
            with pytest.raises(StorageFull, match=r"history\.jsonl"):
                attempt.history.flush()
            with pytest.raises(StorageFull):
                attempt.history.sync(attempt.history.mark())
        assert read(local) == [(1, 1), (2, 1)]
        attempt.train(1)
    attempt.history.flush()
    assert read(local) == [(number, 1) for number in range(1, 8)]
    assert attempt.history.mark().mark == local.size(layout.history(1))
    attempt.history.close()


@pytest.mark.parametrize("fault", ["fail", "full", "lost"])
def test_any_failing_call_loses_no_row(storage: Storage, fault: str) -> None:
    for call in range(1, 7):
        base = storage.sub(f"{fault}{call}")
        CheckpointStore(base, attempt=1).begin()
        history = HistoryWriter(FaultyStorage(base, f"any@{call}:{fault}"), 1)
        for number in range(1, 10):
            history.append(step(number, by=1))
            try:
                history.sync(history.mark())
            except StorageError as error:
                assert "attempts/0001/history" in str(error)  # noqa: PT017
        history.close()
        assert read(base) == [(number, 1) for number in range(1, 10)]


def test_a_long_full_disk_costs_no_row_and_no_row_waits_for_it(local: Storage) -> None:
    watched = FaultyStorage(local)
    attempt = Attempt(watched, 1)
    attempt.train(1)
    attempt.history.flush()
    with files_no_longer_than(local.size(layout.history(1))):
        for number in range(2, 8000):
            attempt.history.append(step(number, by=1, pad="x" * 100))
    tried = [operation for operation, _ in watched.calls].count("append")
    assert 2 < tried < 10
    attempt.history.close()
    assert read(local) == [(number, 1) for number in range(1, 8000)]


def test_a_large_buffer_is_written_in_passing(local: Storage) -> None:
    attempt = Attempt(local, 1)
    for number in range(1, 4000):
        attempt.history.append(step(number, by=1, pad="x" * 100))
    written = len(read(local))
    assert 1000 < written < 4000
    attempt.history.close()


def test_a_second_writer_of_one_attempt_is_refused(local: Storage) -> None:
    attempt = Attempt(local, 1)
    attempt.train(1)
    attempt.history.close()
    other = HistoryWriter(local, 1)
    other.append(step(1, by=1))
    with pytest.raises(StorageError, match="another process was first"):
        other.flush()
    assert read(local) == [(1, 1)]


def test_rows_are_appended_while_another_thread_syncs(storage: Storage) -> None:
    attempt = Attempt(storage, 1)
    stop = threading.Event()
    errors: list[BaseException] = []

    def sync() -> None:
        try:
            while not stop.is_set():
                attempt.history.sync(attempt.history.mark())
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    for number in range(1, 3001):
        attempt.history.append(step(number, by=1))
        if number % 500 == 0:
            attempt.history.flush()
    stop.set()
    thread.join()
    attempt.history.close()
    assert errors == []
    assert read(storage) == [(number, 1) for number in range(1, 3001)]


# Following


def test_follow_gives_rows_as_they_come_and_each_once(storage: Storage) -> None:
    one = Attempt(storage, 1)
    one.train(3)
    one.save()
    looks = iter(range(100))
    two: list[Attempt] = []

    def stop() -> bool:
        # Called before each look: what happens here happens between two looks.
        look = next(looks)
        if look == 1:
            one.train(2)
            one.history.flush()
        elif look == 2:
            two.append(Attempt(storage, 2))  # takes over at 3; 4 and 5 were shown already
            two[0].train(1)
            two[0].history.flush()
            one.train(4)
            one.history.flush()  # a zombie's
        elif look == 3:
            two[0].train(3)
            two[0].history.flush()
        return look == 4

    rows = HistoryReader(storage).follow(poll=0, stop=stop)
    assert [(row["step"], row["by"]) for row in rows] == [
        *((number, 1) for number in range(1, 6)),
        *((number, 2) for number in range(6, 8)),
    ]


def test_follow_gives_the_rows_of_a_kind_over_attempts(local: Storage) -> None:
    def epoch(attempt: Attempt) -> None:
        row = {"kind": "epoch", "phase": 0, "step": attempt.at, "by": attempt.number, "logs": {}}
        attempt.history.append(row)
        attempt.history.flush()

    one = Attempt(local, 1)
    one.train(2)
    one.save()
    looks = iter(range(100))
    two: list[Attempt] = []

    def stop() -> bool:
        look = next(looks)
        if look == 1:
            epoch(one)
            one.train(3000)
            epoch(one)
            one.train(1)
            one.history.flush()
        elif look == 2:
            two.append(Attempt(local, 2))  # takes over before the first epoch's end
            epoch(two[0])
            two[0].train(3000)
            epoch(two[0])
        elif look == 3:
            two[0].train(1)
            epoch(two[0])
        return look == 4

    rows = HistoryReader(local).follow(poll=0, stop=stop, kind="epoch")
    assert [(row["step"], row["by"]) for row in rows] == [(2, 1), (3002, 1), (3003, 2)]


def test_follow_waits_for_the_end_of_a_row(local: Storage) -> None:
    attempt = Attempt(local, 1)
    attempt.train(1)
    attempt.history.flush()
    path = local.local_path(layout.history(1))
    assert path is not None
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    looks = iter(range(10))

    def stop() -> bool:
        look = next(looks)
        if look == 1:
            path.write_bytes(whole)
        return look == 2

    assert [row["step"] for row in HistoryReader(local).follow(poll=0, stop=stop)] == [1]


def test_follow_sees_the_first_attempt_come(storage: Storage) -> None:
    looks = iter(range(10))

    def stop() -> bool:
        look = next(looks)
        if look == 1:
            attempt = Attempt(storage, 1)
            attempt.train(2)
            attempt.history.close()
        return look == 2

    assert len(list(HistoryReader(storage).follow(poll=0, stop=stop))) == 2

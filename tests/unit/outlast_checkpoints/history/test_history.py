"""History: appending never waits, recovers from a full disk, and reads once over all attempts."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest

from outlast_checkpoints.errors import StorageError, StorageFull
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage
from tests.support.disk_limits import files_no_longer_than
from tests.support.history_attempt import Attempt, read, step


def test_rows_are_read_back(storage: Storage) -> None:
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


def test_the_file_is_plain_json_lines(local: Storage) -> None:
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


def test_an_attempt_that_saved_nothing_is_skipped(storage: Storage) -> None:
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


def test_a_row_cut_by_a_full_disk_is_completed_by_the_next_flush(local: Storage) -> None:
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


def test_a_disk_that_stays_full_loses_and_blocks_no_row(local: Storage) -> None:
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


def test_a_large_buffer_is_written_while_appending(local: Storage) -> None:
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


def test_follow_returns_new_rows_once(storage: Storage) -> None:
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


def test_follow_returns_the_rows_of_a_kind_over_attempts(local: Storage) -> None:
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


def test_follow_waits_for_the_first_attempt(storage: Storage) -> None:
    looks = iter(range(10))

    def stop() -> bool:
        look = next(looks)
        if look == 1:
            attempt = Attempt(storage, 1)
            attempt.train(2)
            attempt.history.close()
        return look == 2

    assert len(list(HistoryReader(storage).follow(poll=0, stop=stop))) == 2


def test_the_rows_between_two_marks_are_those_of_the_lineage(storage: Storage) -> None:
    first, marks = Attempt(storage, 1), []
    for at in range(1, 5):
        first.train(1)
        marks.append(first.history.mark())
        if at == 3:
            first.save()
    first.history.close()
    second = Attempt(storage, 2)  # trains step 4 again
    second.train(2)
    last = second.history.mark()
    second.history.close()

    def between(start: HistoryMark, end: HistoryMark) -> list[tuple[int, int]]:
        rows = HistoryReader(storage).between(start, end)
        return [(row["step"], row["by"]) for row in rows]

    assert between(marks[0], marks[2]) == [(2, 1), (3, 1)]
    assert between(marks[1], last) == [(3, 1), (4, 2), (5, 2)]
    assert between(last, last) == []

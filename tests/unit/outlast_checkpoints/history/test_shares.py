"""A long history read by several processes: the same as by one, damage and all."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format import layout
from outlast_checkpoints.history import HistoryReader, HistoryWriter, shares
from outlast_checkpoints.history.columns import Columns, Points
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot

MIB = 1 << 20


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A job of two attempts with 7 MiB of rows that count, of two phases."""
    monkeypatch.setattr(shares, "WORTH", 4 * MIB)
    monkeypatch.setattr(shares, "SHARE", MIB + 1)  # which is two pieces
    storage = open_storage(tmp_path / "job")
    write(storage, 1, range(1, 4000), saved=3000)
    write(storage, 2, range(3001, 9000))
    return storage


def write(storage: Storage, attempt: int, steps: range, saved: int | None = None) -> None:
    store = CheckpointStore(storage, attempt=attempt)
    store.begin()
    history = HistoryWriter(storage, attempt)
    for number in steps:
        phase = number // 5000
        place = {"phase": phase, "step": number - 5000 * phase}
        if place["step"] == 0:
            history.append({"kind": "phase", **place, "name": "tune"})
            continue
        logs = {"loss": math.nan if number == 8000 else 1 / number, "accuracy": number / 7}
        rest = {"batch_loss": None if number % 3000 == 0 else math.sin(number), "pad": "x" * 700}
        history.append({"kind": "step", **place, "logs": logs, **rest})
        if number % 1000 == 0:
            history.append({"kind": "epoch", **place, "logs": {**logs, "val_loss": number / 3}})
        if number == saved:
            mark = history.mark()
            history.sync(mark)
            store.save(sample_snapshot(number), reason="step", history=mark)
    history.close()


def tear(storage: Storage, *, at: int | None = None) -> None:
    """Spoil a byte of the second attempt's rows, or leave its last line unfinished."""
    path = storage.local_path(layout.history(2))
    assert path is not None
    with path.open("r+b" if at is not None else "ab") as file:
        if at is not None:
            file.seek(at)
        file.write(b'{"kind":"step","phase":1,')


def plain(blocks: Iterator[Columns]) -> list[object]:
    """Return all that is in columns, every bit of it."""

    def bits(points: Points | None) -> list[bytes] | None:
        return None if points is None else [np.asarray(one).tobytes() for one in points]

    return [
        (
            *(one.kind, one.phase, one.name, one.steps.tobytes(), bits(one.batch_loss)),
            [(name, bits(points)) for name, points in one.logs.items()],
        )
        for one in blocks
    ]


def processes() -> int:
    return len(multiprocessing.active_children())


def test_several_processes_give_the_blocks_of_one(job: Storage) -> None:
    tear(job)
    reader = HistoryReader(job)
    alone = plain(reader.columns())
    blocks = reader.columns(processes=2)
    some = [next(blocks)]
    assert processes() == 2
    assert plain(iter([*some, *blocks])) == alone
    assert processes() == 0
    assert len(alone) > 10
    assert {one[0:3] for one in alone} >= {("epoch", 0, None), ("phase", 1, "tune")}


def test_damage_is_named_as_ever(job: Storage) -> None:
    tear(job, at=3 * MIB)
    reader = HistoryReader(job)
    errors = []
    for count in (1, 2):
        with pytest.raises(FormatError, match="the history of attempt 2: it is damaged") as raised:
            plain(reader.columns(count))
        errors.append(str(raised.value))
        assert processes() == 0
    assert errors[0] == errors[1]


def test_rows_of_a_process_that_is_killed_are_read_all_the_same(job: Storage) -> None:
    reader = HistoryReader(job)
    blocks = reader.columns(processes=2)
    some = [next(blocks)]
    for process in multiprocessing.active_children():
        process.kill()
    assert plain(iter([*some, *blocks])) == plain(reader.columns())


def test_a_short_history_starts_no_process(job: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "WORTH", 64 * MIB)
    assert next(HistoryReader(job).columns(processes=2))
    assert processes() == 0

"""Random trainings, deaths, damage and zombies, compared with a perfect model in memory.

The model records the training as it happened: one line of checkpoints and rows, cut where an
attempt takes over. The store has to find the same line from origins and manifests alone. One large
array changes only sometimes, so that checkpoints share its file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from outlast_checkpoints.errors import CheckpointDamaged, CommitUnknown, StorageError, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.retention import Item, Keep, plan
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import Died, FaultyStorage
from tests.support.store_model import Attempt, Row, in_a_folder, in_memory, snapshot_at

PART = "model.weights.frozen.h5"


class Job(RuleBasedStateMachine):
    """Attempts of one job; the newest one is the training, older ones are zombies."""

    make_storage: staticmethod[[], tuple[Storage, str]]
    shared = 0  # commits, over all examples, whose frozen part is an older one's as well

    def __init__(self) -> None:
        super().__init__()
        self.storage, self.folder = self.make_storage()
        self.reader = CheckpointStore(self.storage)
        self.attempts: list[Attempt] = []
        self.numbers = 0
        # The model: the line of checkpoints, what is damaged of it, the rows, and how many rows
        # each checkpoint stands for.
        self.line: list[CheckpointId] = []
        self.bad: set[CheckpointId] = set()
        self.spoiled: set[CheckpointId] = set()  # those whose frozen part is damaged
        self.rows: list[Row] = []
        self.rows_at: dict[CheckpointId, int] = {}
        self.origin: CheckpointId | None = None
        self.deleted: set[CheckpointId] = set()

    def teardown(self) -> None:
        for attempt in self.attempts:
            attempt.history.close()
        for name in self.storage.list(""):
            self.storage.delete_tree(name)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # What happens to a job

    @initialize()
    def first(self) -> None:
        self.start()

    @rule(skip=st.integers(0, 2))
    def start_next(self, skip: int) -> None:
        self.numbers += skip  # attempts that died before they began
        self.start()

    def start(self) -> None:
        self.numbers += 1
        storage = FaultyStorage(self.storage)
        store = CheckpointStore(storage, attempt=self.numbers)
        good = [found for found in self.line if found not in self.bad]
        if self.line and not good:
            with pytest.raises(CheckpointDamaged):
                store.begin()
            return
        found, damages = store.begin()
        wanted = good[-1] if good else None
        assert (found.id if found else None) == wanted
        newer = self.line[self.line.index(wanted) + 1 :] if wanted else []
        assert {damage.checkpoint for damage in damages} == {str(bad) for bad in newer}
        self.line = self.line[: len(self.line) - len(newer)]
        self.rows = self.rows[: self.rows_at[wanted]] if wanted else []
        self.origin = wanted
        history = HistoryWriter(storage, self.numbers)
        step, stage = (wanted.step, wanted.stage) if wanted else (0, Stage.STEP)
        self.attempts.append(Attempt(self.numbers, storage, store, history, step, stage))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), steps=st.integers(1, 4))
    def train(self, data: st.DataObject, steps: int) -> None:
        attempt = self.draw_living(data)
        for _ in range(steps):
            self.step(attempt)

    def step(self, attempt: Attempt) -> None:
        attempt.step, attempt.stage = attempt.step + 1, Stage.STEP
        row = {"kind": "step", "phase": 0, "step": attempt.step, "by": attempt.number}
        attempt.history.append(row)
        attempt.waiting.append((attempt.step, attempt.number))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        attempt = self.draw_living(data)
        attempt.history.flush()
        self.note_rows(attempt)

    @precondition(lambda self: self.attempts)
    @rule(
        data=st.data(),
        stage=st.sampled_from(Stage),
        fault=st.sampled_from(["", "fail", "full", "lost", "die-before", "die-after"]),
        call=st.integers(1, 8),
        operation=st.sampled_from(["any", "create", "stage", "link", "sync", "append"]),
    )
    def save(
        self, data: st.DataObject, stage: Stage, fault: str, call: int, operation: str
    ) -> None:
        self.save_one(self.draw_living(data), stage, fault, call, operation)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), times=st.integers(2, 4))
    def save_often(self, data: st.DataObject, times: int) -> None:
        attempt = self.draw_living(data)
        for _ in range(times):
            self.step(attempt)
            self.save_one(attempt, Stage.STEP)

    def save_one(
        self, attempt: Attempt, stage: Stage, fault: str = "", call: int = 1, operation: str = "any"
    ) -> None:
        attempt.stage = max(attempt.stage, stage)
        checkpoint = CheckpointId(0, attempt.step, attempt.stage, attempt.number)
        before = self.reader_sees(checkpoint)
        if attempt is self.attempts[-1] and self.origin is not None:
            assert checkpoint.place >= self.origin.place
            if checkpoint.place == self.origin.place:
                return  # the training saves only what is new
        if checkpoint in self.deleted:
            return  # a zombie could bring it back, which is as good as it was
        if fault:
            count = attempt.storage._counts[operation]
            attempt.storage._rules = {(operation, count + call): fault}
        rows_before = len(attempt.waiting)
        snapshot = snapshot_at(checkpoint)
        mark = attempt.history.mark()
        died = False
        try:
            attempt.history.sync(mark)
            attempt.store.save(snapshot, reason="step", history=mark)
            assert self.reader_sees(checkpoint), "what was reported as saved is there"
        except CommitUnknown:
            pass
        except StorageError as error:
            assert not self.reader_sees(checkpoint) or before
            if "injected" not in str(error):
                raise
        except Died:
            died = True
        attempt.storage._rules = {}
        if died:
            self.bury(attempt)
        elif rows_before:
            attempt.history.sync(mark)  # a failing disk that works again
            self.note_rows(attempt)
        if self.reader_sees(checkpoint) and not before:
            self.note_commit(attempt, checkpoint)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        attempt = self.draw_living(data)
        attempt.storage.dead = True
        self.attempts.remove(attempt)
        if not self.attempts or attempt.number > self.attempts[-1].number:
            self.start()

    @precondition(lambda self: self.line)
    @rule(data=st.data(), byte=st.integers(0, 10**9), how=st.sampled_from(["flip", "cut", "gone"]))
    def damage(self, data: st.DataObject, byte: int, how: str) -> None:
        checkpoint = data.draw(st.sampled_from(self.line))
        names = ["model.weights.h5", PART, "state.h5", "model.json", "manifest.json"]
        name = data.draw(st.sampled_from(names))
        if name == "manifest.json" and how == "gone":
            return  # then it is no checkpoint any more: see `withdraw`
        path = layout.checkpoint_file(checkpoint, name)
        if checkpoint in self.bad or not self.storage.exists(path):
            return
        content = bytearray(self.storage.read(path))
        self.storage.delete(path)
        if how == "flip":
            content[byte % len(content)] ^= 1 << byte % 8
        elif how == "cut":
            del content[byte % len(content) :]
        if how != "gone":
            self.storage.create(path, bytes(content))
        self.bad.add(checkpoint)
        if name == PART:
            self.spoiled.add(checkpoint)
        self.reader = CheckpointStore(self.storage)

    @precondition(lambda self: any(self.part(found) for found in self.line))
    @rule(data=st.data(), byte=st.integers(0, 10**9))
    def damage_in_place(self, data: st.DataObject, byte: int) -> None:
        """All checkpoints that share the file are damaged."""
        parts = {found: part for found in self.line if (part := self.part(found))}
        hit = data.draw(st.sampled_from([*parts]))
        if hit in self.spoiled:
            return  # what is flipped twice is good
        with open(parts[hit], "r+b") as file:
            file.seek(byte % parts[hit].stat().st_size)
            (old,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([old ^ 1 << byte % 8]))
        sharing = {found for found, part in parts.items() if part.samefile(parts[hit])}
        self.bad |= sharing
        self.spoiled |= sharing
        self.reader = CheckpointStore(self.storage)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        checkpoint = data.draw(st.sampled_from(self.line))
        self.reader.delete(checkpoint)
        self.line.remove(checkpoint)
        self.deleted.add(checkpoint)
        self.bad.discard(checkpoint)

    @precondition(lambda self: self.attempts)
    @rule(
        last=st.integers(1, 3),
        every=st.none() | st.integers(1, 6),
        by_reader=st.booleans(),
    )
    def prune(self, last: int, every: int | None, by_reader: bool) -> None:
        store = self.reader if by_reader else self.attempts[-1].store
        if not by_reader and self.attempts[-1].number != self.numbers_begun():
            return
        keep = Keep(last=last, every=every)
        good = [found for found in self.line if found not in self.bad]
        least = plan([Item(found) for found in self.line], keep)
        ends = [found for found in self.line if found.stage == Stage.END][-1:]
        least |= {*self.line[-1:], *ends}
        if self.origin in self.line:
            least.add(self.origin)
        wanted = least | {*good[-1:]} if good else set(self.line)
        store.prune(keep)
        left = self.reader.ids()
        # A store that has just saved the newest need not look how good the older ones are.
        saved = self.line and not by_reader and self.line[-1] in store._saved
        if saved:
            assert least <= set(left) <= wanted
        else:
            assert set(left) == wanted
        self.deleted |= set(self.line) - set(left)
        self.line = left
        self.bad &= set(left)
        newest = self.numbers_begun()
        # In a bucket a reader leaves what was never committed: a later attempt may be sending it.
        cautious = by_reader and self.storage.local_path("") is None
        assert all(
            found.attempt >= newest or (cautious and not self.reader.is_committed(found))
            for found in map(CheckpointId.parse, self.reader.orphans())
            if found is not None
        )

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def begin_again(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([attempt.number for attempt in self.attempts]))
        with pytest.raises(Superseded):
            CheckpointStore(self.storage, attempt=number).begin()

    # What must hold at any time

    @invariant()
    def the_line_is_the_models(self) -> None:
        assert self.reader.ids() == self.line

    @invariant()
    def the_newest_good_one_is_found_and_holds_what_was_saved(self) -> None:
        good = [found for found in self.line if found not in self.bad]
        found, damages = CheckpointStore(self.storage).latest()
        assert (found.id if found else None) == (good[-1] if good else None)
        newer = self.line[self.line.index(good[-1]) + 1 :] if good else self.line
        assert {damage.checkpoint for damage in damages} == {str(one) for one in newer}
        if found is not None:
            loaded = self.reader.load(found.id)
            for name, file in snapshot_at(found.id).files.items():
                for path, array in file.arrays.items():
                    assert loaded.files[name][path].tobytes() == array.tobytes()

    @invariant()
    def each_step_is_read_once(self) -> None:
        rows = [(row["step"], row["by"]) for row in HistoryReader(self.storage).rows()]
        assert rows == self.rows
        assert [step for step, _ in rows] == list(range(1, len(rows) + 1))

    # The model's own bookkeeping

    def draw_living(self, data: st.DataObject) -> Attempt:
        numbers = [attempt.number for attempt in self.attempts]
        # The training itself more often than its zombies.
        number = data.draw(st.sampled_from([*numbers, numbers[-1], numbers[-1]]))
        return self.attempts[numbers.index(number)]

    def numbers_begun(self) -> int:
        names = self.storage.list(layout.ATTEMPTS)
        return max(
            int(name)
            for name in names
            if self.storage.exists(f"{layout.ATTEMPTS}/{name}/origin.json")
        )

    def is_training(self, attempt: Attempt) -> bool:
        return attempt.number == self.numbers_begun()

    def part(self, checkpoint: CheckpointId) -> Path | None:
        """Return the local path of a checkpoint's frozen part, if it has one."""
        path = self.storage.local_path(layout.checkpoint_file(checkpoint, PART))
        return path if path is not None and path.exists() else None

    def reader_sees(self, checkpoint: CheckpointId) -> bool:
        return self.storage.exists(layout.manifest(checkpoint))

    def note_rows(self, attempt: Attempt) -> None:
        if self.is_training(attempt):
            self.rows += attempt.waiting
        attempt.waiting = []

    def note_commit(self, attempt: Attempt, checkpoint: CheckpointId) -> None:
        if self.is_training(attempt):
            part = self.part(checkpoint)
            if part is not None:
                type(self).shared += part.stat().st_nlink > 1
                # What is linked is not read again: it may have been damaged since it was written.
                if any(part.samefile(p) for one in self.spoiled if (p := self.part(one))):
                    self.spoiled.add(checkpoint)
                    self.bad.add(checkpoint)
            self.line.append(checkpoint)
            self.rows_at[checkpoint] = len(self.rows)

    def bury(self, attempt: Attempt) -> None:
        """Remove an attempt that died in a save; its rows may be visible or not."""
        self.attempts.remove(attempt)
        newest = self.is_training(attempt)
        if newest:
            parts = [layout.history(attempt.number)]
            parts += [layout.history_segment(attempt.number, index) for index in range(99)]
            visible = b"".join(
                self.storage.read(path) for path in parts if self.storage.exists(path)
            ).count(b"\n")
            known = sum(1 for _, by in self.rows if by == attempt.number)
            self.rows += attempt.waiting[: visible - known]


def run(make_storage: object, examples: int) -> type[Job]:
    class Concrete(Job):
        pass

    Concrete.make_storage = staticmethod(make_storage)  # type: ignore[arg-type]
    run_state_machine_as_test(
        Concrete,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Concrete


@pytest.mark.longest
def test_a_job_in_a_folder() -> None:
    assert run(in_a_folder, 25).shared > 0


def test_a_job_in_memory() -> None:
    run(in_memory, 25)

"""The invariants, checked at every change of the store and at every read.

The oracle keeps books of its own, by rules as plain as can be: it shares no code with what it
judges but the names of files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import xxhash

from outlast_checkpoints.errors import CheckpointDamaged, StorageError
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.simulation import training
from tests.simulation.memory import Memory

Place = tuple[int, int, int]


class Violation(AssertionError):
    """An invariant does not hold."""


def demand(condition: object, *what: object) -> None:
    if not condition:
        raise Violation(" ".join(str(part) for part in what))


@dataclass(eq=False)
class Checkpoint:
    """A commit. files: hash by path of all that it names. acknowledged: somebody was told."""

    id: CheckpointId
    files: dict[str, str]
    acknowledged: bool = False
    damaged: bool = False


@dataclass(eq=False)
class Books:
    """What is known of the job: commits there are, and from where each attempt went on."""

    commits: dict[str, Checkpoint] = field(default_factory=dict)
    origins: dict[int, str | None] = field(default_factory=dict)
    claims: dict[int, float] = field(default_factory=dict)


class Oracle:
    """Watches one job. clock: the true time. expected: the last commit known to be good."""

    def __init__(self, memory: Memory, clock: Callable[[], float]) -> None:
        self.memory = memory
        self.books = Books()
        self.clock = clock
        self.story: list[str] = []
        self.late = False  # whether a request arrives now that was given up on
        self.commits = self.begins = self.reads = 0
        # By checkpoint: who saved it last, and the newest claim when that began.
        self._saving: dict[str, tuple[int, int]] = {}
        # By attempt: when it last showed a sign of life, and when it last did so after a silence.
        self.silence = 8.0
        self.beats: dict[int, tuple[float, float]] = {}
        self.fair: Callable[[int, int, int], bool] = lambda owner, by, attempt: True
        self._owner = 0
        memory.changed = self.changed

    def tell(self, *what: object) -> None:
        self.story.append(f"{self.clock():9.3f}  " + " ".join(str(part) for part in what))

    # --- the line that counts, worked out anew each time ------------------------------

    def accepts(self, checkpoint: CheckpointId) -> bool:
        """Whether a commit lies on the line that leads to the newest attempt that has begun."""
        bound: Place | None = None
        attempt = max(self.books.origins, default=None)
        while attempt is not None:
            if checkpoint.attempt == attempt:
                return bound is None or checkpoint.place <= bound
            source = self.books.origins.get(attempt)
            if source is None:
                return False
            parsed = CheckpointId.parse(source)
            assert parsed is not None
            attempt, bound = parsed.attempt, parsed.place
        return False

    def line(self) -> list[Checkpoint]:
        found = [one for one in self.books.commits.values() if self.accepts(one.id)]
        return sorted(found, key=lambda one: (one.id.place, one.id.attempt))

    def newest_good(self) -> Checkpoint | None:
        good = [one for one in self.line() if not one.damaged]
        return good[-1] if good else None

    # --- every change of the store ----------------------------------------------------

    def changed(self, operation: str, path: str, data: bytes | None) -> None:
        self.tell(operation, path, "" if data is None else len(data))
        parts = path.split("/")
        if parts[0] == "checkpoints":
            self._checkpoint_changed(operation, path, parts[1], parts[2], data)
        elif parts[0] == "journal":
            demand(operation == "create", "an event of the journal was changed:", path)
            self._event(data or b"")
        elif parts[-1] == "origin.json":
            self._origin(int(parts[1]), operation, data)
        elif parts[-1] == "heartbeat.json":
            now = self.clock()
            claimed = self.books.claims.get(int(parts[1]), now)
            last, woke = self.beats.get(int(parts[1]), (claimed, 0.0))
            self.beats[int(parts[1])] = now, now if now - last >= self.silence else woke
        elif parts[-1].startswith("history"):
            before = self.memory.files.get(path)
            grown = before is None or (operation == "append" and (data or b"").startswith(before))
            demand(grown and operation in ("append", "create"), "history was changed:", path)

    def _checkpoint_changed(
        self, operation: str, path: str, name: str, file: str, data: bytes | None
    ) -> None:
        commit = self.books.commits.get(name)
        if file == "manifest.json":
            if operation == "delete":
                self._withdrawn(name)
            else:
                demand(operation == "create" and commit is None, "a manifest was changed:", name)
                self._committed(name, data or b"")
        elif commit is not None and file in commit.files and not commit.damaged:
            if operation == "delete" and not self.accepts(commit.id):
                # A zombie's, which nobody resumes from: its manifest came after whoever clears it
                # away had found none, and before the first of its files was gone.
                commit.damaged = True
                return
            same = data is not None and _hash(data) == commit.files[file]
            demand(same, operation, "of what a manifest names:", path)

    def _committed(self, name: str, data: bytes) -> None:
        found = CheckpointId.parse(name)
        assert found is not None
        body = json.loads(data)["body"]
        commit = Checkpoint(found, {entry["name"]: entry["hash"] for entry in body["files"]})
        self.books.commits[name] = commit
        self.commits += 1
        for entry in body["files"]:
            there = self.memory.files.get(f"checkpoints/{name}/{entry['name']}")
            late = self.late and commit is not self.newest_good()
            if there is None and (late or not self.accepts(found)):
                # Given up on long ago, and found and pruned since; or of a zombie, whose
                # manifest was on its way when its files were cleared away.
                commit.damaged = True
                return
            demand(there is not None, "a manifest names what is not there:", name, entry["name"])
            assert there is not None
            demand(_hash(there) == entry["hash"], "a manifest names other content:", name)
        mark = body["history"]
        if mark is not None:
            durable = self._durable_history(mark["attempt"])
            demand(durable >= mark["mark"], "committed before its history was durable:", name)
        saver, claimed = self._saving.get(name, (0, 0))
        late = f"attempt {saver} began to save when {claimed} had been claimed:"
        demand(claimed <= saver, late, name)

    def _durable_history(self, attempt: int) -> int:
        folder = f"attempts/{attempt:04d}/history"
        return sum(
            self.memory.durable.get(path, len(data))
            for path, data in self.memory.files.items()
            if path.startswith(folder)
        )

    def _withdrawn(self, name: str) -> None:
        commit = self.books.commits[name]
        if self.accepts(commit.id):
            newest = self.newest_good()
            demand(commit is not newest, "the newest good checkpoint was deleted:", name)
            kept = commit.damaged or commit.id.stage != Stage.END
            demand(kept, "the end of a phase was deleted:", name)
            source = self.books.origins[max(self.books.origins)]
            demand(source != name or commit.damaged, "what an attempt resumed from is gone:", name)
        del self.books.commits[name]

    def _origin(self, attempt: int, operation: str, data: bytes | None) -> None:
        demand(operation == "create", "an origin was changed:", attempt)
        demand(attempt not in self.books.origins, "an origin was written twice:", attempt)
        body = json.loads(data or b"")["body"]
        demand(body["attempt"] == attempt, "an origin of another attempt:", attempt)
        source = body["checkpoint"]
        demand(
            source is None or source in self.books.commits,
            "an attempt goes on from what is not there:",
            attempt,
            source,
        )
        self.books.origins[attempt] = source

    def _event(self, data: bytes) -> None:
        entry = json.loads(data)
        event = entry["event"]
        self.tell("   ", event)
        if event["kind"] == "claimed":
            number = event["attempt"]
            demand(number not in self.books.claims, "an attempt was claimed twice:", number)
            self.books.claims[number] = self.clock()
            self._owner = event["owner"]["pid"]
        elif event["kind"] == "ended" and not self.late:
            by, attempt = entry["by"]["pid"], event["attempt"]
            fair = self.fair(self._owner, by, attempt)
            demand(fair, f"{by} wrote off attempt {attempt} of {self._owner}, which is at work")

    # --- what the processes tell ------------------------------------------------------

    def save_begins(self, name: str, attempt: int) -> None:
        """An attempt begins to save a checkpoint, its own or what one before has left."""
        self._saving[name] = attempt, max(self.books.claims, default=0)

    def acknowledged(self, name: str) -> None:
        """Somebody was told that a checkpoint is saved."""
        self.tell("acknowledged", name)
        found = CheckpointId.parse(name)
        assert found is not None
        commit = self.books.commits.get(name)
        if commit is None:  # deleted, but only by whoever took over
            newest = max(self.books.origins, default=0)
            demand(newest > found.attempt, "told of a commit that is not there:", name)
            return
        commit.acknowledged = True

    def begins_now(self) -> Checkpoint | None:
        """An attempt begins: return what it must not fall behind."""
        good = [one for one in self.line() if one.acknowledged and not one.damaged]
        return good[-1] if good else None

    def begun(self, attempt: int, found: str | None, promised: Checkpoint | None) -> None:
        """An attempt goes on from `found`."""
        self.begins += 1
        self.tell("attempt", attempt, "goes on from", found)
        overtaken = attempt < max(self.books.claims, default=0)  # what it begins is in vain
        if promised is not None and not promised.damaged and not overtaken:
            demand(found is not None, "starts over, but was acknowledged:", promised.id)
            parsed = CheckpointId.parse(found or "")
            assert parsed is not None
            demand(parsed.place >= promised.id.place, found, "is older than", promised.id)
        demand(found is None or found in self.books.commits, "no such commit:", found)

    # --- what a reader sees, with nothing in its way ----------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return the steps of the history."""
        return list(HistoryReader(self.memory).rows("step"))

    def check_reading(self) -> None:
        """Read all as `outlast history` and a resume would."""
        self.reads += 1
        reader = CheckpointStore(self.memory)
        wanted = [str(one.id) for one in self.line()]
        seen = [str(found) for found in reader.ids()]
        demand(seen == wanted, "the line is", seen, "and not", wanted)
        newest = self.newest_good()
        try:
            found, _ = reader.latest()
            if found is not None:
                training.check_loaded(reader.load(found.id), found.id)
        except (CheckpointDamaged, StorageError, AssertionError) as error:
            raise Violation(f"the latest cannot be read: {error}") from error
        demand(
            (found.checkpoint if found else None) == (str(newest.id) if newest else None),
            "latest is",
            found,
            "and not",
            newest,
        )
        rows = self.rows()
        steps = [(row["phase"], row["step"]) for row in rows]
        demand(
            steps == training.all_steps()[: len(steps)],
            "history does not have each step once:",
            [(row["phase"], row["step"], row["by"]) for row in rows],
        )
        for row in rows:
            state = training.state_at(row["phase"], row["step"])
            demand(row["logs"]["loss"] == state % 1000, "history is not exact:", row)
        for one in self.line()[-1:]:
            before = [at for at in training.all_steps() if at <= one.id.place[:2]]
            demand(len(steps) >= len(before), "history is shorter than", one.id)


def _hash(data: bytes) -> str:
    return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"

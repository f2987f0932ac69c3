"""Real trainings on a real S3 server that goes away: cut off, frozen, and back."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from outlast import exit_codes
from outlast.job import logs
from outlast.job.events import Ended
from outlast.job.outcome import Outcome
from outlast_checkpoints.format import lineage
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.store.spool import Spool
from tests.acceptance.jobs import Training, assert_same
from tests.acceptance.test_object_stores import Away
from tests.support.away import Cable
from tests.support.command_line import answer
from tests.support.object_stores import ObjectStore

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]


class CutOff(Away):
    """A training whose store is behind a cable."""

    def __init__(
        self,
        folder: Path,
        digits: Path,
        server: ObjectStore,
        cable: Cable,
        patch: pytest.MonkeyPatch,
    ) -> None:
        url = f"http://127.0.0.1:{cable.port}"
        store = replace(server, environment={**server.environment, "AWS_ENDPOINT_URL": url})
        super().__init__(folder, digits, store, patch)
        self.options += ["--heartbeat-every", "0.5", "--lost-after", "2", "--grace", "8"]
        self.cable = cable

    def until(self, what: str, look: Callable[[], Any], pause: float = 0.1) -> Any:
        """Wait until `look` returns something true; each look is a request to the server."""
        return super().until(what, look, pause)

    def spool(self) -> Spool:
        """Return what waits on the machine of now, the store being away."""
        spool: Spool = self.until("a spool", lambda: Spool.found(self.storage))
        return spool

    def until_waiting(self, epoch: int) -> CheckpointId:
        """Wait until the checkpoint of an epoch's end is the newest that waits; return it."""

        def look() -> CheckpointId | None:
            for newest in self.spool().waiting()[-1:]:
                if self.spool().manifest(newest).progress.epoch >= epoch:
                    return newest
            return None

        found: CheckpointId = self.until(f"epoch {epoch} waits", look)
        return found

    def until_held_without_a_store(
        self, attempt: psutil.Process, epoch: int, away: int
    ) -> CheckpointId:
        """Train to an epoch, cut the cable there, and train on; return the newest that waits."""
        self.until_held(attempt, "epoch_end", epoch)
        self.until("it has arrived", lambda: self._arrived(epoch))
        self.cable.cut()
        self.hold("epoch_end", away)
        self.until_held(attempt, "epoch_end", away)
        return self.until_waiting(away)

    def _arrived(self, epoch: int) -> bool:
        newest = self.store.ids()[-1:]
        return bool(newest) and self.store.manifest(newest[0]).progress.epoch >= epoch

    def origin(self, attempt: int) -> CheckpointId:
        """Return what an attempt went on from, once it has begun."""

        def look() -> CheckpointId | None:
            for origin in lineage.read_lineage(self.storage)[0].line:
                if origin.attempt == attempt:
                    return CheckpointId.parse(origin.checkpoint or "")
            return None

        found: CheckpointId = self.until(f"attempt {attempt} has begun", look)
        return found

    def outcomes(self) -> list[Outcome]:
        events = [entry.event for entry in self.journal.read()]
        return [event.outcome for event in events if isinstance(event, Ended)]

    def events(self) -> list[str]:
        return [row["event"] for row in logs.read(self.storage)]


@pytest.fixture
def cut_off(
    tmp_path: Path, digits: Path, moto: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CutOff]:
    cable = Cable(int(moto.environment["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    training = CutOff(tmp_path, digits, moto, cable, monkeypatch)
    yield training
    cable.cut()
    cable.mend()
    training.end_all()
    cable.cut()


@pytest.mark.longest
def test_a_job_killed_stopped_and_moved_while_the_store_is_away_ends_with_the_same_bytes(
    cut_off: CutOff, untouched: Callable[[str], Training], capsys: pytest.CaptureFixture[str]
) -> None:
    job = cut_off
    job.hold("epoch_end", 2)
    job.start()
    first = job.attempt(1)
    left = job.until_held_without_a_store(first, 2, 5)
    _assert_status_tells(job, left, capsys)

    # Its process is killed: the supervisor waits for the store, and goes on from what waits here.
    first.kill()
    job.until("the supervisor knows", lambda: "store_lost" in job.output())
    job.hold("epoch_end", 8, but=first)
    job.cable.mend()
    second = job.attempt(2)
    job.until_held(second, "epoch_end", 8)
    assert job.origin(2) == left

    # It is asked to stop: the state is safe on this machine.
    job.until_held_without_a_store(second, 8, 10)
    assert job.supervisor is not None
    job.supervisor.send_signal(signal.SIGINT)
    job.until("asked", lambda: "stop_requested" in job.output())
    job.hold("epoch_end", 13)
    job.end(exit_codes.RESUMABLE)
    stopped = job.until_waiting(10)
    assert job.spool().manifest(stopped).reason == "stop"
    assert job.spool().path in job.output()

    # Another machine knows nothing of that: it goes on from the last that was sent.
    job.another_machine()
    job.hold("never")
    job.cable.mend()
    sent = job.store.ids()[-1]
    assert sent < stopped
    job.resume()
    job.end()
    assert job.origin(3) == sent
    assert_same(job, untouched("mlp"))
    assert job.outcomes() == [Outcome.KILLED, Outcome.LOST, Outcome.COMPLETED]
    assert {"store_lost", "spooled", "store_recovered", "sent"} <= set(job.events())


def _assert_status_tells(
    job: CutOff, newest: CheckpointId, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(*options: str) -> str:
        said = answer(capsys, "status", *options, "--root", job.url, "mlp")
        assert said.code == exit_codes.DONE, said.err
        return said.out

    found: dict[str, Any] = json.loads(status("--json"))
    assert str(newest) in found["spooled"]
    assert found["spooled_bytes"] > 0
    job.until("the beat", lambda: json.loads(status("--json"))["away_since"])
    text = status()
    assert "checkpoint" in text
    assert job.spool().path in text
    assert "cannot be reached" in text
    assert "Epoch" in text or "epoch" in text


def test_a_hanging_store_does_not_block_training_and_a_finished_training_waits_for_it(
    cut_off: CutOff,
    moto: ObjectStore,
    untouched: Callable[[str], Training],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = cut_off
    monkeypatch.setenv("OUTLAST_SPOOL_WAIT", "1")
    server = psutil.Process(moto.pid)
    job.hold("epoch_end", 2)
    job.start()
    attempt = job.attempt(1)
    job.until_held(attempt, "epoch_end", 2)
    server.suspend()
    try:
        job.hold("epoch_end", 6)
        job.until_held(attempt, "epoch_end", 6)
        assert job.until_waiting(5).step > 100
    finally:
        server.resume()
    job.until("it has arrived", lambda: job._arrived(5))
    assert job.outcomes() == []

    job.cable.cut()
    job.hold("never")
    job.end(exit_codes.STORAGE_FAILED)
    assert "outlast resume mlp" in job.output()
    assert job.spool().path in job.output()
    assert job.spool().waiting()
    job.cable.mend()
    job.resume()
    job.end()
    assert_same(job, untouched("mlp"))
    left = Spool.found(job.storage)
    assert left is None or left.attempts() == []

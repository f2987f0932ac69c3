"""A supervisor that cannot reach its job's store, while the attempt can. Real attempts, run from
here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from outlast import exit_codes
from outlast.job import lifecycle, stop_note
from outlast.job.lifecycle import Job, State
from outlast.job.outcome import Outcome
from outlast.job.stop_note import StopNote
from outlast.supervisor import supervisor
from outlast.supervisor.supervisor import Supervisor
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.testing import FaultyStorage
from tests.acceptance.plain import PATIENCE, Make, PlainJob
from tests.support.away import Bucket

pytestmark = pytest.mark.acceptance

UNTIL_TOLD = "while not (here / 'enough').exists(): step()\n"


class Supervised:
    """A supervisor in a thread, whose view of the store can be cut."""

    def __init__(self, plain: PlainJob) -> None:
        self.plain = plain
        self.bucket = Bucket(plain.storage)
        self.supervisor = Supervisor(self.bucket)
        self.job: Job | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.job = self.supervisor.run()

    def until(self, look: Callable[[], object]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not look():
            assert time.monotonic() < give_up
            time.sleep(0.02)

    def steps(self) -> int:
        beat = self.plain.beat()
        return 0 if beat is None else beat.step

    def cut(self) -> None:
        """Let it train for a while, and then cut the supervisor off until that has noticed."""
        self.until(lambda: self.steps() > 3 and self.plain.job.state is State.RUNNING)
        self.bucket.away = True
        self.until(lambda: self.supervisor._outage.since is not None)

    def end(self) -> Job:
        self._thread.join(PATIENCE)
        assert self.job is not None
        return self.job


def test_the_attempt_continues_and_its_end_is_recorded_when_the_store_is_back(job: Make) -> None:
    plain = job(UNTIL_TOLD)
    here = Supervised(plain)
    here.cut()
    seen = here.steps()
    here.until(lambda: here.steps() > seen + 10)
    here.bucket.away = False
    here.until(lambda: here.supervisor._outage.since is None)
    assert plain.ends == []
    here.bucket.away = True
    (plain.folder / "enough").touch()
    here.until(lambda: here.supervisor._outage.waiting)
    here.bucket.away = False
    assert here.end().state is State.SUCCEEDED
    assert [end.outcome for end in plain.ends] == [Outcome.COMPLETED]


@pytest.mark.parametrize("how", ["interrupt", "terminate", "note"])
def test_a_terminated_supervisor_lets_its_attempt_save(
    job: Make, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LEAVING", 0.1)
    plain = job("go_on_for_ever()")
    here = Supervised(plain)
    here.cut()
    if how == "note":
        spool = here.supervisor._spool
        assert spool is not None
        stop_note.leave(spool.storage, 1, StopNote(by="somebody"))
    else:
        getattr(here.supervisor, how)()
    assert lifecycle.exit_code(here.end()) == exit_codes.RESUMABLE
    assert plain.ends == []  # whoever resumes it sees that both are gone, and that it was stopped
    spool = here.supervisor._spool
    assert spool is not None
    left = stop_note.take(spool.storage, 1)
    assert (left is not None) is (how != "terminate")
    found = list((plain.folder / "jobs/plain/checkpoints").glob("*/manifest.json"))
    assert len(found) == 1


def test_a_disk_that_rejects_writes_for_too_long_ends_the_supervisor(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STORAGE_PATIENCE", 0.5)
    plain = job("go_on_for_ever()")
    always = " ".join(f"create@{call}:full" for call in range(3, 50))
    with pytest.raises(StorageError, match="No space"):
        Supervisor(FaultyStorage(plain.storage, always)).run()
    assert plain.output() == "saved because of SIGTERM\n"

"""A supervisor that cannot reach its job's store, while the attempt can. Real attempts, run from
here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from outlast import exit_codes
from outlast.job import lifecycle
from outlast.job.lifecycle import Job, State
from outlast.job.outcome import Outcome
from outlast.supervisor import supervisor
from outlast.supervisor.supervisor import Supervisor
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.testing import FaultyStorage
from tests.acceptance.plain import PATIENCE, PlainJob
from tests.support.away import Bucket

pytestmark = pytest.mark.acceptance

Make = Callable[..., PlainJob]
UNTIL_TOLD = "while not (here / 'enough').exists(): step()\n"


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:
        yield lambda code, **options: stack.enter_context(PlainJob(tmp_path, code, **options))


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


def test_the_attempt_goes_on_and_its_end_is_recorded_when_the_store_is_back(job: Make) -> None:
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


@pytest.mark.parametrize("how", ["interrupt", "terminate"])
def test_it_can_be_told_to_leave_and_lets_its_attempt_save(
    job: Make, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LEAVING", 0.1)
    plain = job("go_on_for_ever()")
    here = Supervised(plain)
    here.cut()
    getattr(here.supervisor, how)()
    assert lifecycle.exit_code(here.end()) == exit_codes.RESUMABLE
    assert plain.ends == []  # whoever resumes it sees that both are gone
    found = list((plain.folder / "jobs/plain/checkpoints").glob("*/manifest.json"))
    assert len(found) == 1


def test_a_disk_that_takes_nothing_for_too_long_ends_it(
    job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STORAGE_PATIENCE", 0.5)
    plain = job("go_on_for_ever()")
    always = " ".join(f"create@{call}:full" for call in range(3, 50))
    with pytest.raises(StorageError, match="No space"):
        Supervisor(FaultyStorage(plain.storage, always)).run()
    assert plain.output() == "saved because of SIGTERM\n"

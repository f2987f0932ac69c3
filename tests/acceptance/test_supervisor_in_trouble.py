"""A supervisor whose storage, backend or terminal fails, with real attempts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from outlast.backends.base import Exit, Handle
from outlast.backends.local import LocalBackend
from outlast.errors import BackendFailed
from outlast.job import heartbeat, lifecycle
from outlast.job.events import Launched
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.supervisor.supervisor import Observer, Supervisor, resume, submit
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.testing import FaultyStorage
from tests.acceptance.plain import Make

pytestmark = pytest.mark.acceptance


class Blind(LocalBackend):
    """Cannot tell how its first attempt is, as a cluster whose controller is down."""

    sees = False

    def poll(self, handle: Handle) -> Exit | None:
        if "/0001/" in handle["output"] and not self.sees:
            raise BackendFailed(backend="blind", action="look", reason="nobody answers")
        return super().poll(handle)

    def kill(self, handle: Handle) -> None:
        os.kill(handle["pid"], signal.SIGKILL)


def test_a_failing_backend_does_not_end_an_attempt_with_a_heartbeat(job: Make) -> None:
    plain = job(
        "if ctx.attempt == 1:\n"
        "    for _ in range(400): step()\n"  # longer than lost_after
        "    os.kill(os.getpid(), signal.SIGSTOP)\n",
        lost_after=3.0,
        stall_timeout=0.0,
    )
    backend = Blind()
    found = Supervisor(plain.storage, backend=backend).run()
    backend.sees = True
    handle = next(e.event.handle for e in plain.journal.read() if isinstance(e.event, Launched))
    assert backend.poll(handle) == Exit(signal=signal.SIGKILL)
    assert found.state is State.SUCCEEDED
    first = plain.ends[0]
    assert first.outcome is Outcome.LOST
    assert "nobody answers" in first.reason
    beat = heartbeat.read(plain.storage, 1)
    assert beat is not None
    assert beat.step > 300  # it was left alone as long as it showed signs of life


def test_a_brief_storage_failure_is_retried(job: Make) -> None:
    plain = job("step()")
    storage = FaultyStorage(plain.storage, "create@2:fail create@3:lost create@4:full")
    assert Supervisor(storage).run().state is State.SUCCEEDED
    states = [entry.state for entry in plain.journal.read()]
    assert states == [State.PENDING] * 3 + [State.RUNNING, State.SUCCEEDED]


def test_a_closed_terminal_does_not_end_the_training(job: Make) -> None:
    plain = job("print('hello')\nfor _ in range(20): step()")

    class Closed(Observer):
        def on_state(self, job: Job) -> None:
            if job.state is State.RUNNING:
                raise BrokenPipeError("the reader has left")

    assert Supervisor(plain.storage, observer=Closed()).run().state is State.SUCCEEDED
    assert "observer_dropped" in plain.log(level="warning")


def test_a_crashing_supervisor_lets_its_attempt_save(job: Make) -> None:
    plain = job("if ctx.attempt == 1: go_on_for_ever()")

    class Broken(LocalBackend):
        def output(self, handle: Handle, start: int = 0) -> bytes:
            beat = plain.beat()
            if beat is not None and beat.step > 3:
                raise ZeroDivisionError
            return super().output(handle, start)

    with pytest.raises(ZeroDivisionError):
        Supervisor(plain.storage, backend=Broken()).run()
    assert plain.output() == "saved because of SIGTERM\n"
    assert plain.job.owner is not None  # the end is for the next one to record
    assert plain.job.owner.pid == os.getpid()


def test_a_job_in_the_memory_of_one_process_is_rejected(tmp_path: Path) -> None:
    root = open_storage(f"memory://{tmp_path.name}")
    submit(root, JobSpec(job="j", script="a.py"))
    storage = root.sub("j")
    found = Supervisor(storage).run()
    assert (found.state, found.outcome) == (State.FAILED, Outcome.REJECTED)
    assert "one process only" in found.reason
    assert resume(storage).state is State.PENDING


def test_a_final_job_is_not_run_again(job: Make) -> None:
    plain = job("sys.exit(3)")
    first = Supervisor(plain.storage).run()
    assert first.state is State.FAILED
    assert Supervisor(plain.storage).run() == first
    assert lifecycle.exit_code(first) == 3
    assert len(plain.ends) == 1


def test_interrupt_counts_like_ctrl_c(job: Make) -> None:
    plain = job("go_on_for_ever()")

    class Impatient(Observer):
        def on_beat(self, beat: heartbeat.Beat) -> None:
            if beat.step > 3:
                supervisor.interrupt()

    supervisor = Supervisor(plain.storage, observer=Impatient())
    assert supervisor.run().state is State.STOPPED
    assert plain.ends[0].outcome is Outcome.STOPPED


def test_the_journal_of_a_whole_job_reads_back(job: Make) -> None:
    plain = job("if ctx.attempt < 3: os.kill(os.getpid(), signal.SIGKILL)")
    found = Supervisor(plain.storage).run()
    entries = Journal(plain.storage).read()
    assert Journal(plain.storage).job() == found
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [end.signal for end in plain.ends] == [signal.SIGKILL, signal.SIGKILL, None]

"""When a supervisor starts an audit, and what it makes of its end."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import structlog

from outlast.job.heartbeat import Beat
from outlast.job.log_events import LogEvent
from outlast.job.spec import JobSpec
from outlast.supervisor import background_audit
from outlast.supervisor.background_audit import BackgroundAudit
from outlast_checkpoints.storage import open_storage


class Process:
    """A process that runs until the test gives it a return code."""

    made: list[Process]

    def __init__(self, command: list[str], **options: Any) -> None:
        self.command = command
        self.pid = 7
        self.returncode: int | None = None
        self.said = ""
        self.signals: list[str] = []
        self.made.append(self)

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        if self.returncode is None and timeout is not None:
            raise subprocess.TimeoutExpired("audit", timeout)
        return "", self.said

    def terminate(self) -> None:
        self.signals.append("term")

    def kill(self) -> None:
        self.signals.append("kill")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """The processes of audits, oldest first."""
    Process.made = []
    monkeypatch.setattr(background_audit.subprocess, "Popen", Process)
    return Process.made


@pytest.fixture
def log() -> Any:
    with structlog.testing.capture_logs() as rows:
        yield rows


def audit(every: str) -> BackgroundAudit:
    spec = JobSpec(job="j", script="train.py", audit_every=every)
    return BackgroundAudit(spec, open_storage("memory://audit/j"), structlog.get_logger, now=100.0)


def beat(checkpoint: int) -> Beat:
    return Beat(attempt=1, last_checkpoint=f"00-{checkpoint:012d}.0-0001")


def test_one_audit_at_a_time_after_so_many_checkpoints(
    started: list[Process], log: list[Any]
) -> None:
    audits = audit("3")
    for checkpoint in (1, 1, 2, 2):
        audits.look(beat(checkpoint), 200.0)
    audits.look(None, 9e9)
    assert started == []
    audits.look(beat(3), 201.0)
    assert len(started) == 1
    assert started[0].command[-3:] == ["-m", "outlast.audit.main", "memory://audit/j"]
    for checkpoint in range(4, 9):
        audits.look(beat(checkpoint), 202.0)
    assert len(started) == 1
    started[0].returncode = 0
    audits.look(beat(9), 203.0)
    assert len(started) == 2  # more than three are new since the first began
    assert [row["event"] for row in log] == [LogEvent.AUDIT_STARTED] * 2


def test_after_a_time_if_anything_was_saved(started: list[Process], log: list[Any]) -> None:
    audits = audit("60s")
    audits.look(None, 500.0)
    assert started == []
    audits.look(beat(1), 501.0)
    started[0].returncode = 67
    audits.look(beat(2), 560.0)
    assert len(started) == 1
    audits.look(beat(2), 561.0)
    assert len(started) == 2
    assert {row["event"] for row in log} == {LogEvent.AUDIT_STARTED}


def test_a_failed_audit_is_logged_and_the_next_one_starts(
    started: list[Process], log: list[Any]
) -> None:
    audits = audit("1")
    audits.look(beat(1), 101.0)
    started[0].said, started[0].returncode = "The audit of 'j' could not …\n", 1
    audits.look(beat(2), 102.0)
    assert [row["event"] for row in log] == [
        LogEvent.AUDIT_STARTED, LogEvent.AUDIT_FAILED, LogEvent.AUDIT_STARTED
    ]  # fmt: skip
    assert (log[1]["error"], log[1]["log_level"]) == ("The audit of 'j' could not …", "warning")


def test_a_job_that_leaves_starts_none_and_waits_for_none(
    started: list[Process], log: list[Any]
) -> None:
    audits = audit("1")
    audits.look(beat(1), 101.0)
    audits.stop()
    audits.stop()
    assert started[0].signals == ["term"]
    started[0].returncode = 75
    audits.look(beat(2), 102.0)
    assert not audits.running
    assert len(started) == 1
    audits.close()


def test_one_that_does_not_end_is_killed(started: list[Process], log: list[Any]) -> None:
    audits = audit("1")
    audits.look(beat(1), 101.0)
    audits.close()
    assert started[0].signals == ["term", "kill"]
    assert not audits.running


def test_without_a_wish_there_is_none(started: list[Process]) -> None:
    audits = audit("never")
    for checkpoint in range(9):
        audits.look(beat(checkpoint), 1e9)
    audits.close()
    assert started == []

"""The deadline of an attempt: from the notice, through the supervisor's file, to the save."""

from __future__ import annotations

import time
from pathlib import Path

import click
import pytest

from outlast.attempt import spool_handover
from outlast.attempt.context import AttemptContext
from outlast.attempt.signals import StopFlag
from outlast.backends.local import LocalBackend
from outlast.cli.commands.run import run
from outlast.cli.new_job import new_spec
from outlast.job import deadline
from outlast.job.heartbeat import Status
from outlast.job.logs import silent_logger
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec, spec_env
from outlast.supervisor.running_attempt import RunningAttempt
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "job")


def attempt_of(storage: Storage, spec: JobSpec) -> AttemptContext:
    return AttemptContext(
        storage=storage,
        spec=spec,
        attempt=1,
        stop=StopFlag(),
        status=Status(),
        log=silent_logger(),
        fence=lambda: None,
        supervised=True,
        local_dir=None,
        read_deadline=lambda: deadline.seconds_left(storage, 1),
    )


def test_the_attempt_reads_the_deadline_of_its_supervisor(storage: Storage) -> None:
    ctx = attempt_of(storage, JobSpec(job="x", grace=1000.0))
    assert deadline.seconds_left(storage, 1) is None
    assert deadline.write(storage, 1, "gce: the machine is preempted", within=100.0)
    assert ctx.time_left() is None  # nobody has asked it to leave
    ctx.stop.request("SIGTERM")
    left = ctx.time_left()
    assert left is not None
    assert 50.0 < left <= 100.0
    # A store that is away is waited for no longer than that, whatever the grace is.
    now = time.monotonic()
    assert 40.0 < spool_handover._wait_until(ctx, now) - now <= 80.0
    storage.replace(layout.deadline(1), b"{}")  # it was read once
    assert ctx.time_left() is not None


def test_without_a_notice_the_grace_counts(storage: Storage) -> None:
    ctx = attempt_of(storage, JobSpec(job="x", grace=1000.0))
    ctx.stop.request("SIGTERM")
    assert ctx.time_left() is None
    assert spool_handover._wait_until(ctx, 7.0) == 807.0


def test_after_the_deadline_no_time_is_left(storage: Storage) -> None:
    ctx = attempt_of(storage, JobSpec(job="x"))
    deadline.write(storage, 1, "why", within=-5.0)
    ctx.stop.request("SIGTERM")
    assert ctx.time_left() == 0.0
    now = time.monotonic()
    assert spool_handover._wait_until(ctx, now) == now


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"why": "x"}', b'{"why":"","by":"soon"}'])
def test_an_empty_file_is_no_deadline(content: bytes, storage: Storage) -> None:
    storage.replace(layout.deadline(1), content)
    assert deadline.seconds_left(storage, 1) is None


def test_a_notice_shortens_the_time_of_one_that_is_leaving_already(storage: Storage) -> None:
    killed: list[object] = []

    class Backend(LocalBackend):
        def signal(self, handle: object, signum: int) -> None:
            pass

        def kill(self, handle: object) -> None:
            killed.append(handle)

    spec = JobSpec(job="x", grace=100.0)
    running = RunningAttempt(spec, storage, Backend(), {"pid": 1}, 1, 0.0)
    running.stop(0.0, "preempted")
    running.shorten(10.0, 200.0)  # never prolonged that way: somebody else counts on the grace
    running.shorten(10.0, 5.0)
    assert not running.overdue(14.0)
    assert running.overdue(16.0)
    assert running.verdict == (Outcome.PREEMPTED, "did not leave within 5 s and was killed")
    assert len(killed) == 1


@pytest.mark.parametrize(
    ("arguments", "limit"), [([], False), (["--grace", "30s"], True), (["--grace", "2m"], True)]
)
def test_a_grace_that_was_given_is_a_limit(
    arguments: list[str], limit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _made(tmp_path, arguments).grace_is_limit is limit
    monkeypatch.setenv("OUTLAST_GRACE", "30s")
    assert _made(tmp_path, []).grace_is_limit


def _made(folder: Path, arguments: list[str]) -> JobSpec:
    (folder / "train.py").touch()
    with run.make_context("run", [*arguments, "--cwd", str(folder), "train.py"]) as ctx:
        assert isinstance(ctx, click.Context)
        options = {name: value for name, value in ctx.params.items() if name != "command"}
        what = {"script": "train.py", "module": None, "args": []}
        return new_spec(ctx, "x", what, options)


def test_addresses_of_metadata_servers_are_not_stored_with_the_job() -> None:
    environ = {"OUTLAST_METADATA_URL": "http://127.0.0.1:1", "OUTLAST_PREEMPTION": "gce"}
    assert spec_env({}, environ) == {"OUTLAST_PREEMPTION": "gce"}


def test_the_time_left_of_an_attempt_decreases(storage: Storage) -> None:
    ctx = attempt_of(storage, JobSpec(job="x"))
    ctx.stop.leave_by = time.monotonic() - 1.0
    assert ctx.time_left() == 0.0

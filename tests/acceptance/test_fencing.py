"""One job, one owner: simultaneous claims, and frozen processes that continue too late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from outlast import exit_codes
from outlast.job import heartbeat
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.supervisor.supervisor import resume
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from tests.acceptance.plain import Make, PlainJob

pytestmark = pytest.mark.acceptance

CLAIM = """
import sys, time
from pathlib import Path
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.storage import open_storage
from outlast.job import lifecycle
from outlast.supervisor.supervisor import Supervisor, resume

storage, gate, number = open_storage(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
supervisor = Supervisor(storage)
(gate / number).touch()
while not (gate / "go").exists():
    time.sleep(0.001)
try:
    resume(storage)
    sys.exit(lifecycle.exit_code(supervisor.run()))
except OutlastError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_one_of_fifty_simultaneous_claims_wins(job: Make, tmp_path: Path) -> None:
    many = 50
    plain = job("while not (here / 'enough').exists(): step()")
    gate = tmp_path / "gate"
    gate.mkdir()
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, plain.storage.root, str(gate), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(many)
    ]
    try:
        plain.until(lambda: len(list(gate.iterdir())) == many)
        (gate / "go").touch()
        plain.until(lambda: sum(c.poll() is None for c in claimers) == 1)
        plain.training()
        (plain.folder / "enough").touch()
        said = [claimer.communicate(timeout=120)[0] for claimer in claimers]
    finally:
        for claimer in claimers:
            claimer.kill()
            claimer.communicate()
    codes = [claimer.returncode for claimer in claimers]
    assert sorted(codes) == [exit_codes.DONE] + [exit_codes.JOB_BUSY] * (many - 1), said
    winner = claimers[codes.index(exit_codes.DONE)].pid
    for code, words in zip(codes, said, strict=True):
        if code == exit_codes.JOB_BUSY:
            assert f"process {winner} on {os.uname().nodename} has it" in words
    claims = [
        entry for entry in plain.journal.read() if entry.event.__class__.__name__ == "Claimed"
    ]
    assert [entry.by.pid for entry in claims] == [winner]
    assert plain.storage.list(layout.ATTEMPTS) == ["0001"]


def freeze(pid: int) -> None:
    """Stop a process, and wait until it is."""
    process = psutil.Process(pid)
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def commits(plain: PlainJob, attempt: int) -> list[str]:
    names = map(CheckpointId.parse, plain.storage.list(layout.CHECKPOINTS))
    return [str(name) for name in names if name is not None and name.attempt == attempt]


STEPS_AND_SAVES = """
while not (here / f"enough-{ctx.attempt}").exists():
    step()
    commit(ctx.status.step)
"""


def test_a_frozen_supervisor_and_its_attempt_are_superseded_when_they_continue(job: Make) -> None:
    plain = job(STEPS_AND_SAVES, lost_after=1.5)
    frozen = plain.start()
    beat = plain.training()
    freeze(frozen.pid)
    freeze(beat.pid)

    waited: list[str] = []
    found = resume(plain.storage, on_wait=waited.append)
    assert "waiting 2 s for a sign of life" in waited[0]
    assert (found.state, found.outcome) == (State.PENDING, Outcome.LOST)
    successor = plain.start()
    plain.training(2)
    before = commits(plain, 1)

    # the attempt wakes first: it finds out by itself, commits nothing and leaves
    os.kill(beat.pid, signal.SIGCONT)
    plain.until(lambda: (last := heartbeat.read(plain.storage, 1)) is not None and last.ended)
    last = heartbeat.read(plain.storage, 1)
    assert last is not None
    assert last.ended == exit_codes.SUPERSEDED
    assert "superseded by attempt 2" in plain.output(1)
    assert commits(plain, 1) == before

    os.kill(frozen.pid, signal.SIGCONT)
    assert plain.end(frozen) == exit_codes.SUPERSEDED
    assert frozen.stdout is not None
    assert "superseded by attempt 2" in frozen.stdout.read()

    # and the successor has noticed nothing of all this
    (plain.folder / "enough-2").touch()
    assert plain.end(successor) == exit_codes.DONE
    assert plain.job.attempt == 2


def test_a_supervisor_that_continues_first_ends_its_frozen_attempt(job: Make) -> None:
    plain = job(STEPS_AND_SAVES, lost_after=1.5)
    frozen = plain.start()
    beat = plain.training()
    freeze(frozen.pid)
    freeze(beat.pid)
    resume(plain.storage)
    successor = plain.start()
    plain.training(2)
    before = commits(plain, 1)
    os.kill(frozen.pid, signal.SIGCONT)
    assert plain.end(frozen) == exit_codes.SUPERSEDED
    plain.until(lambda: not Path(f"/proc/{beat.pid}").exists())
    assert commits(plain, 1) == before
    (plain.folder / "enough-2").touch()
    assert plain.end(successor) == exit_codes.DONE


def test_a_frozen_orphan_is_superseded_when_it_continues(job: Make) -> None:
    plain = job(STEPS_AND_SAVES, grace=1.0)
    supervisor = plain.start()
    pid = plain.training().pid
    freeze(pid)
    supervisor.kill()
    supervisor.wait()
    assert resume(plain.storage).outcome is Outcome.LOST
    successor = plain.start()
    plain.training(2)
    before = commits(plain, 1)
    os.kill(pid, signal.SIGCONT)
    plain.until(lambda: not Path(f"/proc/{pid}").exists())
    last = heartbeat.read(plain.storage, 1)
    assert last is not None
    assert last.ended == exit_codes.SUPERSEDED
    assert commits(plain, 1) == before
    (plain.folder / "enough-2").touch()
    assert plain.end(successor) == exit_codes.DONE


def test_a_superseded_script_that_ignores_the_flag_is_ended(job: Make) -> None:
    plain = job("step(); step(); step()\nwhile True: time.sleep(1)", grace=1.0, max_retries=0)
    supervisor = plain.start()
    pid = plain.training().pid
    freeze(pid)
    supervisor.kill()
    supervisor.wait()
    resume(plain.storage)
    successor = plain.start()
    plain.training(2)
    os.kill(pid, signal.SIGCONT)
    plain.until(lambda: not Path(f"/proc/{pid}").exists())
    assert "exit_forced" in plain.log(attempt=1)
    successor.send_signal(signal.SIGINT)
    plain.end(successor)


def test_a_frozen_attempt_under_a_living_supervisor_is_stalled_not_lost(job: Make) -> None:
    """Its supervisor can see that the process is there: nobody may take the job away."""
    plain = job(STEPS_AND_SAVES, lost_after=1.0, stall_timeout=5.0)
    supervisor = plain.start()
    freeze(plain.training().pid)
    plain.training(2)
    assert plain.ends[0].outcome is Outcome.STALLED
    (plain.folder / "enough-2").touch()
    assert plain.end(supervisor) == exit_codes.DONE

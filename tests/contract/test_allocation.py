"""A supervisor started by a cluster, and its entry in the queue, with simulated Slurm commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outlast import exit_codes
from outlast.engines.testing import TRAINING
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

TOP = Path(__file__).parents[2]
PATIENCE = 120.0

# A requeue signals what the job has left of processes, before it comes back itself.
SCONTROL = """#!/bin/bash
echo "$*" >> "$(dirname "$0")/asked"
case "$1" in
  show) echo "JobId=$5 JobState=RUNNING" ;;
  requeue) kill -TERM $PPID; kill -CONT $PPID; sleep 0.3 ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Slurm that does what it is asked; in it, "asked" says what that was."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(SCONTROL)
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Storage:
    (tmp_path / "train.py").write_text(TRAINING, encoding="utf-8")
    root = open_storage(tmp_path / "jobs")
    values: dict[str, Any] = {"script": "train.py", "cwd": str(tmp_path), "engine": "slurm"}
    submit(root, JobSpec(job="j", heartbeat_every=0.2, **values))
    return root.sub("j")


@pytest.fixture
def start(job: Storage) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a supervisor of the job in a place of the cluster."""
    started: list[subprocess.Popen[str]] = []

    def start(**place: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", "outlast.engines.cluster_main", job.root]
        env = {**os.environ, "PYTHONPATH": str(TOP), **place}
        found = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        started.append(found)
        return found

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=PATIENCE)


def until(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.05)


def state(job: Storage) -> State:
    return Journal(job).existing_job().state


def test_the_signals_of_its_own_requeue_do_not_end_it(
    slurm: Path, job: Storage, start: Callable[..., subprocess.Popen[str]]
) -> None:
    supervisor = start(SLURM_JOB_ID="7")
    until(lambda: state(job) is State.RUNNING)
    supervisor.send_signal(signal.SIGUSR1)  # its time is nearly up
    _, said = supervisor.communicate(timeout=PATIENCE)
    assert Journal(job).existing_job().outcome is Outcome.PREEMPTED
    assert "requeue 7" in (slurm / "asked").read_text()
    assert "slurm will restart the job as 7" in said
    assert supervisor.returncode == exit_codes.RESUMABLE


def test_a_supervisor_that_finds_another_one_leaves_and_changes_nothing(
    slurm: Path, job: Storage, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    owner = start(SLURM_JOB_ID="8", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="0")
    until(lambda: state(job) is State.RUNNING)
    other = start(SLURM_JOB_ID="7", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")
    _, said = other.communicate(timeout=PATIENCE)
    assert "has it (attempt 1)" in said
    assert other.returncode not in (0, exit_codes.RESUMABLE)
    queued = Journal(job).existing_job().queued
    assert queued is not None
    assert queued.handle == {"id": "7_0"}
    (tmp_path / "done").touch()
    assert owner.wait(PATIENCE) == 0
    assert Journal(job).existing_job().attempt == 1

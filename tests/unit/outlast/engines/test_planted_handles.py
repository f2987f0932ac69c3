"""A journal is a file that others may write: what it says is stopped only if it is this job's."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from outlast import engines
from outlast.engines.local import LocalEngine
from outlast.engines.slurm import SlurmEngine
from outlast.errors import EngineFailed
from outlast.job import process_identity
from outlast.job.events import Queued
from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast.job.submission import request_stop, submit
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

FOREIGN = [
    "--me",
    "-u x",
    "1,2",
    "",
    "../x",
    "4711 --me",
    "4711\n",
    "%2e%2e",
    "a/b",
    "Job",
    7,
    None,
]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    root = open_storage(tmp_path)
    submit(root, JobSpec(job="j", script="t.py"))
    return root.sub("j")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record what is run and signalled; Slurm knows a job 4711 of somebody else."""
    found: list[Any] = []

    def run(command: Any, **more: Any) -> Any:
        found.append(list(command))
        foreign = "payroll" if "%k" in command else "RUNNING|None|node1"
        return subprocess.CompletedProcess(command, 0, f"{foreign}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(os, "kill", lambda *given: found.append(("kill", *given)))
    monkeypatch.setattr(os, "killpg", lambda *given: found.append(("killpg", *given)))
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *given: found.append(("pidfd", *given)))
    return found


@pytest.mark.parametrize("number", FOREIGN)
@pytest.mark.parametrize("engine", ["slurm", "kubernetes"])
def test_what_is_no_id_reaches_no_cluster(
    storage: Storage, calls: list[Any], engine: str, number: Any
) -> None:
    with pytest.raises(FormatError):
        engines.get(engine).stop({"id": number}, storage)
    with pytest.raises(FormatError):
        engines.get(engine).poll({"id": number})
    assert calls == []


def test_somebody_elses_job_is_not_cancelled(storage: Storage, calls: list[Any]) -> None:
    with pytest.raises(EngineFailed, match="4711 of Slurm does not belong to"):
        SlurmEngine().stop({"id": "4711"}, storage)
    assert [command[0] for command in calls] == ["squeue"]


def test_a_stop_that_reads_a_planted_handle_signals_nothing(
    storage: Storage, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    try:
        here = process_identity.of_process(victim.pid)
        handles = [
            {"id": "x", "pid": pid, "host": here.host, "boot_id": here.boot_id, "start": start}
            for pid in (-1, 0, 1, os.getppid(), victim.pid)
            for start in (None, here.start)
        ]
        for handle in handles:
            LocalEngine().stop(handle, storage)
        journal = Journal(storage)
        for handle in handles[:1] + handles[-1:]:
            journal.append(Queued(engine="local", handle=handle))
            assert engines.queue_state(journal.existing_job()) is None
        job = request_stop(storage)
        engines.remove_from_queue(job, storage)
        sent = [call for call in calls if call[0] != "kill" or call[2] != 0]  # kill(pid, 0) asks
        assert sent == []
        assert victim.poll() is None
    finally:
        monkeypatch.undo()  # this signal is real
        victim.kill()
        victim.wait()


def test_a_handle_without_an_id_is_no_event(storage: Storage) -> None:
    with pytest.raises(ValueError, match="id"):
        Queued(engine="slurm", handle={})

"""The audit beside a training: it keeps a checkpoint, waits for the next one, and gives up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outlast.audit import main as process
from outlast.exit_codes import DONE, NOT_EXACT, REJECTED
from outlast.job.events import Audited, StopRequested
from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.audited_job import Training, audit_here, make_job


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("nice", "sched_setscheduler"):
        monkeypatch.setattr(process.os, name, lambda *_: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    return audit_here(monkeypatch)


@pytest.fixture
def job(job_root: Path) -> tuple[Storage, Training]:
    storage, training = make_job(job_root)
    training.to(0)
    return storage, training


def while_it_waits(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]) -> None:
    """Let these happen, one after the other, each time that the audit waits."""
    left: Iterator[Callable[[], object]] = iter(events)
    monkeypatch.setattr(process.time, "sleep", lambda _: next(left)())


def audits(storage: Storage) -> list[Audited]:
    events = [entry.event for entry in Journal(storage).read()]
    return [event for event in events if isinstance(event, Audited)]


def test_it_keeps_what_retention_deletes(
    job: tuple[Storage, Training], again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, training = job
    training.to(5)
    first = CheckpointStore(storage).ids()[-1]

    def prune() -> None:
        CheckpointStore(storage).delete(first)

    while_it_waits(monkeypatch, prune, lambda: training.to(9))
    assert process.main([storage.root]) == DONE
    (found,) = audits(storage)
    assert (found.first, found.last) == (str(first), "00-000000000009.0-0001")
    assert found.exact
    assert storage.list("") == ["attempts", "checkpoints", "journal", "machine.json", "spec.json"]


def test_a_difference_is_recorded(
    job: tuple[Storage, Training], again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, training = job
    again["factor"] = 2.0
    while_it_waits(monkeypatch, lambda: training.to(5))
    assert process.main([storage.root]) == NOT_EXACT
    (found,) = audits(storage)
    assert (found.exact, found.count) == (False, 2)


def test_it_gives_up_when_the_job_ends(
    job: tuple[Storage, Training], again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, training = job
    training.to(5, Stage.END)  # no interval begins here

    def stop() -> None:
        Journal(storage).append(StopRequested(by="somebody"))

    while_it_waits(monkeypatch, lambda: None, stop)
    assert process.main([storage.root]) == DONE
    assert audits(storage) == []


def test_the_end_of_the_job_is_its_last_interval(
    job: tuple[Storage, Training], again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, training = job

    def end() -> None:
        training.to(5, Stage.END)
        Journal(storage).append(StopRequested(by="somebody"))

    while_it_waits(monkeypatch, end)
    assert process.main([storage.root]) == DONE
    assert [found.last for found in audits(storage)] == ["00-000000000005.2-0001"]


def test_it_leaves_without_its_supervisor(
    job: tuple[Storage, Training], again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    while_it_waits(monkeypatch, lambda: monkeypatch.setattr(process, "_parent", -1))
    with pytest.raises(SystemExit) as left:
        process.main([job[0].root])
    assert left.value.code == 75


def test_an_error_is_one_line(
    job_root: Path, again: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    submit(open_storage(job_root), JobSpec(job="notebook"))
    code = process.main([str(job_root / "notebook")])
    assert code not in (DONE, NOT_EXACT, REJECTED)
    assert capsys.readouterr().err.startswith("Job 'notebook' cannot be audited: it was started ")

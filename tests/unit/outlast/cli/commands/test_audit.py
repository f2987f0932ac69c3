"""`outlast audit` over a job that was made by hand: what it prints, records and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outlast.job.audit_target import AuditTarget
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from tests.support.audited_job import audit_here, make_job
from tests.support.command_line import Call

LATEST = "00-000000000010.1-0001"


@pytest.fixture
def job(job_root: Path) -> Storage:
    """A job whose phase 0 was saved at steps 0, 5 and 10, and after the epoch that ends there."""
    storage, training = make_job(job_root)
    for step in (0, 5, 10):
        training.to(step)
    training.to(10, Stage.EPOCH)
    return storage


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the audits of a test have seen; see `audit_here`."""
    return audit_here(monkeypatch)


def test_an_exact_job(job: Storage, again: dict[str, Any], outlast: Call) -> None:
    answer = outlast("audit", "j")
    assert answer.code == 0
    assert answer.out.startswith("exact    j  steps 6 to 10 of phase 0: 3 arrays and values, and ")
    assert answer.err == "training steps 6 to 10 of phase 0 of j again …\n"
    assert again["first"] == "00-000000000005.0-0001"
    assert again["target"] == AuditTarget(phase=0, step=10, stage=Stage.EPOCH, late=False)
    assert again["attempt"] == 2
    assert again["machine"] == b"any"
    spec = again["spec"]
    assert (spec.env["MINE"], spec.env["OUTLAST_AUDIT"]) == ("x", "1")
    assert (spec.save_every, spec.audit_every, spec.preemption) == ("never", "never", "none")
    assert sorted(job.list("")) == [
        "attempts",
        "checkpoints",
        "journal",
        "machine.json",
        "spec.json",
    ]
    status = json.loads(outlast("status", "--json", "j").out)["audit"]
    assert (status["exact"], status["last"], status["count"]) == (True, LATEST, 0)
    assert f"exact: 00-000000000005.0-0001 to {LATEST}" in outlast("status", "j").out


def test_a_job_that_is_not_exact(job: Storage, again: dict[str, Any], outlast: Call) -> None:
    again.update(factor=1.5, changed="cpu_flags: no avx2")
    answer = outlast("audit", "j")
    assert answer.code == 67
    lines = answer.out.splitlines()
    first = "weights: layers/dense/vars/0: 3 of 3 values, by up to 5"
    assert lines[0].startswith(f"DIFFERS  j  steps 6 to 10 of phase 0, first in {first} (")
    assert lines[1] == "The history differs from step 6 on."
    assert lines[-1].startswith("This machine differs from that of the first attempt (cpu_flags")
    found = json.loads(outlast("audit", "j", "--json").out)
    assert [one["part"] for one in found["differences"]] == ["weights", "history"]
    assert (found["exact"], found["steps"], found["seen_at"]) == (False, 5, "step 6")
    assert f"NOT EXACT: 00-000000000005.0-0001 to {LATEST}, first in {first}" in (
        outlast("status", "j").out
    )
    ignored = outlast("audit", "j", "--ignore", "layers/dense", "--ignore", "loss")
    assert ignored.code == 0


def test_an_interval_from_the_start_says_what_it_cannot_show(
    job: Storage, again: dict[str, Any], outlast: Call
) -> None:
    answer = outlast("audit", "j", "--at", "step:5")
    assert answer.code == 0
    assert "The interval begins where its phase begins" in answer.out


def test_a_job_without_two_checkpoints_or_a_script(
    job_root: Path, job: Storage, outlast: Call
) -> None:
    root = open_storage(job_root)
    submit(root, JobSpec(job="young", script="train.py"))
    answer = outlast("audit", "young")
    assert answer.code == 66
    assert "Job 'young' cannot be audited: it has no two checkpoints" in answer.err
    assert "--keep last:2" in answer.err
    submit(root, JobSpec(job="notebook"))
    assert "it was started by hand" in outlast("audit", "notebook").err
    assert outlast("audit", "j", "--at", "phase:3").code == 66
    assert outlast("audit", "j", "--at", "yesterday").code == 2
    assert outlast("audit", "nobody").code == 4


def test_damage_is_no_difference(job: Storage, again: dict[str, Any], outlast: Call) -> None:
    path = job.local_path(f"checkpoints/{LATEST}/{layout.WEIGHTS_FILE}")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    answer = outlast("audit", "j")
    assert answer.code == 65
    assert LATEST in answer.err

"""The rank of a process in its attempt, and what members of a gang must not do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outlast.backends.local import _environment
from outlast.errors import SpecInvalid
from outlast.job import heartbeat, rank
from outlast.job.heartbeat import HeartbeatWriter, Status
from outlast.job.rank import Rank
from outlast.job.spec import JobSpec, spec_env
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage


def test_without_variables_a_process_is_alone() -> None:
    assert rank.here({}) == Rank() == Rank(number=0, of=1)
    assert rank.here({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}) == Rank()


def test_the_variables_have_the_rank_for_us_and_for_the_script() -> None:
    third = Rank(number=2, of=4)
    told = third.variables(local=0)
    assert rank.here(told) == third
    assert [told[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["2", "4", "0"]
    assert not third.first
    assert Rank(of=4).first


@pytest.mark.parametrize(
    ("number", "of"), [("4", "4"), ("0", "0"), ("-1", "2"), ("x", "2"), ("0", ""), ("", "2")]
)
def test_an_incomplete_rank_is_an_error(number: str, of: str) -> None:
    with pytest.raises(SpecInvalid, match="OUTLAST_RANK"):
        rank.here({"OUTLAST_RANK": number, "OUTLAST_WORLD_SIZE": of})


def test_a_rank_is_not_passed_on_to_another_job() -> None:
    mine = {"OUTLAST_RANK": "1", "OUTLAST_WORLD_SIZE": "2", "OTHER": "x"}
    assert spec_env({}, mine) == {}
    started = _environment(JobSpec(job="j"), mine)
    assert rank.here(started) == Rank()
    assert started["OTHER"] == "x"
    member = JobSpec(job="j", env=Rank(number=0, of=3).variables(local=0))
    assert rank.here(_environment(member, mine)) == Rank(number=0, of=3)


def test_only_the_first_one_writes_the_heartbeat_of_the_attempt(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for number, step in ((0, 10), (1, 11)):
        status = Status()
        status.step = step
        HeartbeatWriter(storage, 3, status, 60.0, rank=number).stop(0)
    beat = heartbeat.read(storage, 3)
    assert beat is not None
    assert beat.step == 10
    assert storage.exists(layout.heartbeat(3, 1))
    assert layout.attempt_log(3, 1) == "attempts/0003/rank-0001/log.jsonl"


def test_a_training_refuses_to_run_as_one_of_several_processes() -> None:
    from outlast.training.job import TrainingJob

    ctx: Any = SimpleNamespace(rank=Rank(number=1, of=2))
    with pytest.raises(UsageError, match="training in several is not supported"):
        TrainingJob(ctx)

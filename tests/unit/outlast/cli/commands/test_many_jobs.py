"""Verbs over a whole root: `list`, and `stop` of several jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from tests.support.command_line import Call


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with three pending jobs."""
    for name in "abc":
        submit(open_storage(tmp_path / "jobs"), JobSpec(job=name, script="train.py"))
    return tmp_path / "jobs"


def states(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())
    return " ".join(Journal(open_storage(root / name)).existing_job().state for name in names)


def test_several_jobs_are_stopped_at_once(outlast: Call, root: Path) -> None:
    at = ("--root", str(root))
    answer = outlast("stop", "a", "b", "--wait", "9s", *at)
    assert (answer.code, answer.err) == (0, "")
    assert [line.partition(":")[0] for line in answer.out.splitlines()] == ["a", "b"]
    assert states(root) == "stopped stopped pending"
    assert [row["job"] for row in json.loads(outlast("stop", "--all", "--json", *at).out)] == ["c"]
    assert states(root) == "stopped stopped stopped"
    answer = outlast("stop", "--all", *at)
    assert (answer.code, answer.out) == (0, "")
    assert answer.err.startswith("No unfinished job in")


def test_a_wrong_name_stops_none(outlast: Call, root: Path) -> None:
    assert outlast("stop", "a", "nobody", "--root", str(root)).code == 4
    assert states(root) == "pending pending pending"


@pytest.mark.parametrize("names", [(), ("a", "--all")])
def test_names_and_all_exclude_each_other(
    outlast: Call, root: Path, names: tuple[str, ...]
) -> None:
    answer = outlast("stop", *names, "--root", str(root))
    assert answer.code == 2
    assert "--all" in answer.err
    assert states(root) == "pending pending pending"


def test_an_unreadable_job_does_not_keep_others_from_stopping(outlast: Call, root: Path) -> None:
    for event in (root / "b" / layout.JOURNAL).iterdir():
        event.write_text("{")
    answer = outlast("stop", "--all", "--root", str(root))
    assert answer.code == 1
    assert answer.err.startswith("b: ")
    assert [line.partition(":")[0] for line in sorted(answer.out.splitlines())] == ["a", "c"]


def test_a_root_that_is_missing_is_an_error_and_an_empty_one_is_not(
    outlast: Call, tmp_path: Path
) -> None:
    missing = outlast("list", "--root", str(tmp_path / "nowhere"))
    assert (missing.code, missing.out) == (4, "")
    assert f"There is no folder or bucket {str(tmp_path / 'nowhere')!r}" in missing.err
    assert outlast("list", "--json", "--root", "memory://nowhere/jobs").code == 4
    empty = outlast("list", "--root", str(tmp_path))
    assert empty.code == 0
    assert empty.out.startswith("No jobs in")

"""`events`, `rm`, and what `list` selects and sorts by."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from outlast.job import process_identity
from outlast.job.events import Audited, Ended, Launched, Reached, Started
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.job.submission import request_stop, submit
from outlast_checkpoints.storage import open_storage
from tests.support.command_line import Call


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three jobs: "done" succeeded, "failed" failed at a lower step, "new" is pending."""
    path = tmp_path / "jobs"
    for name, outcome, step, loss in (
        ("failed", Outcome.REJECTED, 5, 0.1),
        ("done", Outcome.COMPLETED, 20, 0.5),
    ):
        submit(open_storage(path), JobSpec(job=name, script="train.py", tags={"team": name}))
        journal = Journal(open_storage(path / name))
        journal.claim(process_identity.here())
        journal.append(Launched(attempt=1, handle={"pid": 42}))
        journal.append(Started(attempt=1))
        reached = Reached(phase=0, step=step, logs={"loss": loss})
        journal.append(Ended(attempt=1, outcome=outcome, reason="why", reached=reached))
    new = JobSpec(job="new", script="train.py", tags={"team": "done", "lr": "0.1"})
    submit(open_storage(path), new)
    return path


# --- events --------------------------------------------------------------------------------------


def test_events_say_what_happened_and_who_did_it(outlast: Call, root: Path) -> None:
    journal = Journal(open_storage(root / "done"))
    journal.append(Audited(first="x", last="y", exact=False, difference="layer 3"))
    lines = outlast("events", "done").out.splitlines()
    assert lines[0].split() == ["#", "AT", "EVENT", "STATE", "BY", "DETAILS"]
    me = f"process {os.getpid()} on "
    assert [line.split()[3] for line in lines[1:]] == [
        "submitted", "claimed", "launched", "started", "ended", "audited",
    ]  # fmt: skip
    assert all(me in line for line in lines[1:])
    assert lines[3].endswith("attempt 1, process 42")
    assert lines[5].split()[4] == "succeeded"
    assert lines[5].endswith("attempt 1 completed, why")
    assert lines[6].endswith("x to y is NOT exact, layer 3")


def test_events_as_json_are_those_of_the_journal(outlast: Call, root: Path) -> None:
    rows = [json.loads(line) for line in outlast("events", "done", "--json").out.splitlines()]
    assert [row["event"]["kind"] for row in rows][-1] == "ended"
    assert rows[-1]["event"]["reached"]["step"] == 20
    assert rows[0]["at"].endswith("Z")
    assert rows[0]["by"]["pid"] == os.getpid()
    assert outlast("events", "nobody").code == 4


# --- rm ------------------------------------------------------------------------------------------


def test_rm_deletes_what_has_ended_and_refuses_the_rest(outlast: Call, root: Path) -> None:
    planned = outlast("rm", "done", "--dry-run")
    assert (planned.code, planned.out) == (0, f"would delete {root}/done\n")
    answer = outlast("rm", "done", "new")
    assert answer.code == 1
    assert answer.out == f"deleted {root}/done\n"
    assert "'new' is pending and has not ended, so nothing of it was deleted" in answer.err
    alone = outlast("rm", "new")
    assert (alone.code, alone.out) == (5, "")
    assert sorted(path.name for path in root.iterdir()) == ["failed", "new"]
    assert outlast("rm", "done").code == 4
    assert outlast("rm").code == 2


def test_rm_by_age_leaves_the_young_and_the_living_alone(outlast: Call, root: Path) -> None:
    assert outlast("rm", "--older-than", "1d").out == f"Nothing to delete in {root}.\n"
    answer = outlast("rm", "--older-than", "0s", "--json")
    assert (answer.code, answer.jobs) == (0, ["done", "failed"])
    assert [path.name for path in root.iterdir()] == ["new"]


def test_rm_finishes_what_was_interrupted(outlast: Call, root: Path) -> None:
    from outlast.job.events import Removed

    Journal(open_storage(root / "done")).append(Removed())
    (root / "done/spec.json").unlink()
    assert "removed" in outlast("list").out
    resumed = outlast("resume", "failed", "--json")  # another job is not disturbed
    assert "removed" not in resumed.err
    assert outlast("rm", "done").code == 0
    assert not (root / "done").exists()


def test_rm_takes_the_folder_of_a_job(outlast: Call, root: Path) -> None:
    assert outlast("rm", str(root / "done") + "/").code == 0
    assert not (root / "done").exists()


# --- list ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        ("--state failed", ["failed"]),
        ("--state failed,pending --sort job", ["failed", "new"]),
        ("--tag team --sort job", ["done", "failed", "new"]),
        ("--tag team=done --sort step", ["done", "new"]),
        ("--tag team=done --tag lr", ["new"]),
        ("--tag lr=0.2", []),
        ("--sort updated", ["new", "done", "failed"]),
        ("--sort job", ["done", "failed", "new"]),
        ("--sort state", ["failed", "new", "done"]),
        ("--sort step", ["done", "failed", "new"]),
        ("--sort loss", ["failed", "done", "new"]),
    ],
)
def test_list_selects_and_sorts(outlast: Call, root: Path, options: str, jobs: list[str]) -> None:
    assert outlast("list", "--json", *options.split()).jobs == jobs


def test_list_shows_tags_when_asked_by_tag(outlast: Call, root: Path) -> None:
    shown = outlast("list", "--tag", "lr").out
    assert "TAGS" in shown
    assert "team=done, lr=0.1" in shown
    (row,) = json.loads(outlast("list", "--tag", "lr", "--json").out)
    assert row["tags"] == {"team": "done", "lr": "0.1"}
    assert outlast("list", "--tag", "x").out == f"No such jobs in {root}.\n"
    wrong = outlast("list", "--state", "sleeping")
    assert wrong.code == 2
    assert "Invalid state 'sleeping'. Use one of: pending" in wrong.err


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ({"a b": "x"}, "'a b' is no name of a tag"),
        ({"a": "x\n"}, "the value of a must be printable"),
        ({"a": "x" * 256}, "at most 255 characters"),
    ],
)
def test_odd_tags_are_refused(tags: dict[str, str], problem: str) -> None:
    from outlast.errors import SpecInvalid

    options: dict[str, Any] = {"job": "a", "tags": tags}
    with pytest.raises(SpecInvalid, match=problem):
        JobSpec(**options)


def test_a_stopped_job_can_be_removed(outlast: Call, root: Path) -> None:
    request_stop(open_storage(root / "new"))
    assert outlast("rm", "new").code == 0

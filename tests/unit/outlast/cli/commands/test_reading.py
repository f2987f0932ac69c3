"""Commands that read a job, on a hand-made one with two attempts, a zombie and damage."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from outlast.job import heartbeat, process_identity
from outlast.job import spec as specs
from outlast.job.events import Ended, Launched, Resumed, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot
from tests.support.command_line import Call


def snapshot(step: int, epoch: int, batch: int, stage: Stage, loss: float) -> Snapshot:
    return Snapshot(
        Progress(phase=0, step=step, epoch=epoch, batch=batch, stage=stage, epochs=2),
        files={"model.weights.h5": ArrayFile({"layers/dense/vars/0": np.full(3, step)})},
        documents={"notes.json": b"{}"},
        metrics={"loss": loss, "val_accuracy": loss / 2},
    )


def write_steps(history: HistoryWriter, first: int, end: int) -> None:
    for step in range(first, end):
        logs = {"accuracy": step / 10, "loss": 1 / step}
        row = {"kind": "step", "phase": 0, "step": step, "epoch": (step - 1) // 3, "batch": 0}
        history.append({**row, "time": 1e9 + step, "logs": logs, "batch_loss": 1.0})
        if step % 3 == 0:
            logs = {**logs, "val_loss": math.nan if step == 3 else 0.5}
            row = {"kind": "epoch", "phase": 0, "step": step, "epoch": (step - 1) // 3}
            history.append({**row, "time": 1e9, "logs": logs})


@pytest.fixture
def job(job_root: Path) -> Storage:
    """A job "digits" of six steps: attempt 1 was killed in step 5, attempt 2 went on from 3."""
    storage = open_storage(job_root / "digits")
    spec = JobSpec(job="digits", script="train.py", args=["--lr", "1"], created=1e9)
    storage.create(layout.SPEC, specs.encode(spec))
    journal = Journal(storage)
    journal.append(Submitted())
    for attempt in (1, 2):
        journal.claim(process_identity.here())
        journal.append(Launched(attempt=attempt))
        journal.append(Started(attempt=attempt))
        store = CheckpointStore(storage, attempt=attempt, writer={"keras": "3"})
        store.begin()
        history = HistoryWriter(storage, attempt)
        if attempt == 1:
            history.append({"kind": "phase", "phase": 0, "step": 0, "name": None, "params": {}})
            write_steps(history, 1, 4)
            mark = history.mark()
            history.sync(mark)
            store.save(snapshot(3, 1, 0, Stage.EPOCH, 0.4), reason="epoch", history=mark)
            write_steps(history, 4, 5)
            history.close()
            outcome, reason = Outcome.KILLED, "killed by SIGKILL, perhaps out of memory"
            # committed too late to count: attempt 2 goes on from step 3
            zombie = store
        else:
            zombie.save(snapshot(5, 1, 2, Stage.STEP, 9.0), reason="step", history=mark)
            write_steps(history, 4, 7)
            history.close()
            mark = history.mark()
            store.save(snapshot(5, 1, 2, Stage.STEP, 0.2), reason="step")
            store.save(snapshot(6, 2, 0, Stage.END, 0.3), reason="end", history=mark)
            outcome, reason = Outcome.COMPLETED, "the script ran to its end"
        status = heartbeat.Status()
        status.phase, status.step, status.total_steps, status.epoch = 0, attempt * 3, 6, attempt
        status.epochs, status.logs = 2, {"loss": 0.25}
        writer = heartbeat.HeartbeatWriter(storage, attempt, status, 60.0)
        writer.stop(0)
        log = {
            "time": 1e9 + attempt,
            "level": "info",
            "event": f"event {attempt}",
            "attempt": attempt,
        }
        debug = {**log, "level": "debug", "event": "detail"}
        lines = "".join(json.dumps(row) + "\n" for row in (log, debug)).encode()
        storage.replace(layout.attempt_log(attempt), lines)
        storage.replace(
            layout.output_log(attempt), f"hello from {attempt}\nlast of {attempt}".encode()
        )
        ended = Ended(attempt=attempt, outcome=outcome, reason=reason, advanced=True, signal=None)
        journal.append(ended)
    return storage


def checkpoint_names(storage: Storage) -> list[str]:
    return [str(found) for found in CheckpointStore(storage).ids()]


def flip(storage: Storage, path: str, at: int = -1) -> None:
    data = bytearray(storage.read(path))
    data[at] ^= 1
    storage.replace(path, bytes(data))


# --- list, status --------------------------------------------------------------------------------


def test_an_empty_root_has_no_jobs_and_says_how_to_start(outlast: Call) -> None:
    assert "outlast run train.py" in outlast("list").out
    assert outlast("list", "--json").json == []


def test_list_shows_each_job(outlast: Call, job: Storage, job_root: Path) -> None:
    (job_root / "a file").write_text("no job")
    (job_root / "a folder").mkdir()
    (found,) = outlast("list", "--json").json
    assert (found["job"], found["state"], found["attempt"]) == ("digits", "succeeded", 2)
    assert (found["step"], found["total_steps"], found["logs"]) == (6, 6, {"loss": 0.25})
    head, line = outlast("list").out.splitlines()
    assert head.split() == ["JOB", "STATE", "ATTEMPT", "STEP", "OF", "LOSS", "UPDATED", "NOTE"]
    assert line.split()[:6] == ["digits", "succeeded", "2", "6", "6", "0.25"]


def test_a_job_that_cannot_be_read_does_not_hide_the_others(
    outlast: Call, job: Storage, job_root: Path
) -> None:
    broken = open_storage(job_root / "broken")
    broken.create(layout.SPEC, b"{}")
    broken.create(layout.journal_event(1), b"no JSON")
    found = {one["job"]: one for one in outlast("list", "--json").json}
    assert found["digits"]["state"] == "succeeded"
    assert found["broken"]["state"] == "unreadable"
    assert "00000001.json" in found["broken"]["note"]


def test_status_shows_everything_of_a_job(outlast: Call, job: Storage) -> None:
    found = outlast("status", "--json", "digits").json
    assert (found["state"], found["outcome"], found["runs"]) == (
        "succeeded", "completed", "train.py --lr 1",
    )  # fmt: skip
    assert [one["outcome"] for one in found["attempts"]] == ["killed", "completed"]
    assert found["last_checkpoint"]["step"] == 6
    assert found["progress"]["logs"] == {"loss": 0.25}
    assert found["spec"]["keep"] == "last:3"
    told = outlast("status", "digits").out
    assert "killed by SIGKILL, perhaps out of memory" in told
    assert "step 6/6" in told


@pytest.mark.parametrize("how", ["folder", "file URL", "relative", "with a slash"])
def test_a_job_is_found_by_its_folder_too(
    outlast: Call, job: Storage, job_root: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.delenv("OUTLAST_ROOT")
    monkeypatch.chdir(job_root)
    named = {
        "folder": str(job_root / "digits"),
        "file URL": f"file://{job_root}/digits",
        "relative": "digits",
        "with a slash": "./digits/",
    }[how]
    found = outlast("status", "--json", named).json
    assert (found["job"], found["spec"]["job"]) == ("digits", "digits")


def test_an_unknown_job_is_exit_code_4_with_similar_names(
    outlast: Call, job: Storage, job_root: Path
) -> None:
    answer = outlast("status", "digit")
    assert (answer.code, answer.out) == (4, "")
    assert f"There is no job 'digit' in {str(job_root)!r}. Did you mean digits?" in answer.err


@pytest.mark.parametrize(
    "verb", ["status", "logs", "history", "checkpoints", "verify", "prune", "stop", "resume"]
)
def test_every_command_reports_an_unknown_job(outlast: Call, verb: str) -> None:
    answer = outlast(verb, "nobody")
    assert answer.code == 4
    assert answer.err.startswith("outlast: There is no job 'nobody'")
    assert answer.err.count("\n") == 1


def test_a_job_in_memory_of_another_process_is_not_found(outlast: Call) -> None:
    assert outlast("status", "memory://nowhere/job").code == 4


# --- logs ----------------------------------------------------------------------------------------


def test_logs_are_merged_over_attempts_from_info_up(outlast: Call, job: Storage) -> None:
    told = outlast("logs", "digits").out.splitlines()
    assert [line.split(" ", 2)[2].strip() for line in told] == ["[1] event 1", "[2] event 2"]
    events = [row["event"] for row in outlast("logs", "--json", "digits").rows]
    assert events == ["event 1", "event 2"]


@pytest.mark.parametrize(
    ("options", "events"),
    [
        (["--level", "debug"], ["event 1", "detail", "event 2", "detail"]),
        (["--level", "debug", "--lines", "3"], ["detail", "event 2", "detail"]),
        (["--attempt", "1"], ["event 1"]),
        (["--lines", "0"], []),
        (["--follow"], ["event 1", "event 2"]),
        (["--follow", "--lines", "1"], ["event 2"]),
    ],
)
def test_logs_are_selected_by_level_attempt_and_number(
    outlast: Call, job: Storage, options: list[str], events: list[str]
) -> None:
    assert [row["event"] for row in outlast("logs", "--json", *options, "digits").rows] == events


@pytest.mark.parametrize("output", [[], ["--output"]])
def test_an_unknown_attempt_is_named(outlast: Call, job: Storage, output: list[str]) -> None:
    answer = outlast("logs", "--attempt", "9", *output, "digits")
    assert answer.code == 2
    assert "--attempt: the job has no attempt 9. The last one is 2." in answer.err


def test_the_output_of_the_script(outlast: Call, job: Storage) -> None:
    assert outlast("logs", "--output", "digits").out.splitlines() == [
        "hello from 1", "last of 1", "hello from 2", "last of 2",
    ]  # fmt: skip
    assert outlast("logs", "--output", "-n", "1", "digits").out == "last of 2\n"
    assert outlast("logs", "--output", "--json", "digits").code == 2


# --- history -------------------------------------------------------------------------------------


def test_history_gives_each_step_once(outlast: Call, job: Storage) -> None:
    rows = outlast("history", "--json", "digits").rows
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["kind"] == "epoch"] == [3, 6]
    assert rows[0]["kind"] == "phase"


def test_history_for_people_is_the_epochs(outlast: Call, job: Storage) -> None:
    told = [line.split() for line in outlast("history", "digits").out.splitlines()]
    assert told == [
        ["EPOCH", "STEP", "loss", "val_loss", "accuracy"],
        ["1", "3", "0.3333", "nan", "0.3"],
        ["2", "6", "0.1667", "0.5", "0.6"],
    ]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (["--steps"], [1, 2, 3, 4, 5, 6]),
        (["--steps", "--tail", "2"], [5, 6]),
        (["--epochs", "--tail", "1"], [6]),
        (["--tail", "3"], [5, 6, 6]),
        (["--tail", "0"], []),
        (["--follow", "--steps"], [1, 2, 3, 4, 5, 6]),
        (["--follow", "--tail", "2"], [6, 6]),
    ],
)
def test_rows_are_selected_by_kind_and_number(
    outlast: Call, job: Storage, options: list[str], steps: list[int]
) -> None:
    assert [row["step"] for row in outlast("history", "--json", *options, "digits").rows] == steps


def test_followed_history_for_people_is_a_line_an_epoch(outlast: Call, job: Storage) -> None:
    assert outlast("history", "-f", "digits").out.splitlines() == [
        "epoch 1  step 3  loss 0.3333  val_loss nan  accuracy 0.3",
        "epoch 2  step 6  loss 0.1667  val_loss 0.5  accuracy 0.6",
    ]


def test_csv_has_a_column_for_each_metric(outlast: Call, job: Storage) -> None:
    rows = list(csv.DictReader(io.StringIO(outlast("history", "--csv", "digits").out)))
    assert list(rows[0]) == [
        "kind", "phase", "epoch", "step", "batch", "time", "batch_loss", "accuracy", "loss",
        "val_loss",
    ]  # fmt: skip
    assert [row["step"] for row in rows] == ["1", "2", "3", "3", "4", "5", "6", "6"]
    assert float(rows[4]["loss"]) == 1 / 4
    assert [row["val_loss"] for row in rows] == ["", "", "", "NaN", "", "", "", "0.5"]


def test_json_has_names_for_nan_and_infinity(outlast: Call, job: Storage) -> None:
    rows = outlast("history", "--json", "--epochs", "digits").rows
    assert [row["logs"]["val_loss"] for row in rows] == ["NaN", 0.5]


@pytest.mark.parametrize(
    "options",
    [["--csv", "--json"], ["-f", "--csv"], ["--plot", "a.png", "--csv"], ["--metric", "loss"]],
)
def test_conflicting_outputs_are_refused(outlast: Call, job: Storage, options: list[str]) -> None:
    assert outlast("history", *options, "digits").code == 2


def test_the_curves_as_a_png(outlast: Call, job: Storage, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    answer = outlast("history", "digits", "--plot", str(picture))
    assert answer.code == 0
    assert "loss, accuracy; 1 restarts" in answer.out
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    first = picture.read_bytes()
    outlast("history", "digits", "--plot", str(picture))
    assert picture.read_bytes() == first
    assert set(tmp_path.iterdir()) == {Path(job.root).parent, picture}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plot", "curve.jpg"], "Use a name that ends in .png."),
        (["--plot", "a.png", "--metric", "auc"], "Known metrics: loss, accuracy."),
        (["--plot", "no/such/folder/a.png"], "No such file or directory"),
    ],
)
def test_impossible_plots_are_refused(
    outlast: Call, job: Storage, options: list[str], said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    answer = outlast("history", *options, "digits")
    assert answer.code in (2, 74)
    assert said in answer.err
    assert list(tmp_path.glob("*.png")) == []


def test_without_matplotlib_the_extra_is_named(
    outlast: Call, job: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    answer = outlast("history", "digits", "--plot", str(tmp_path / "a.png"))
    assert answer.code == 2
    assert "pip install 'outlast[plot]'" in answer.err
    assert not (tmp_path / "a.png").exists()


def test_a_damaged_history_is_named(outlast: Call, job: Storage) -> None:
    flip(job, layout.history(1), 0)
    answer = outlast("history", "digits")
    assert answer.code == 65
    assert "attempt 1" in answer.err
    assert "damaged at byte 0" in answer.err


# --- checkpoints, verify, prune ------------------------------------------------------------------


def test_checkpoints_of_the_line_oldest_first(outlast: Call, job: Storage) -> None:
    found = outlast("checkpoints", "--json", "digits").json
    assert [(one["step"], one["stage"], one["attempt"], one["reason"]) for one in found] == [
        (3, "epoch", 1, "epoch"), (5, "step", 2, "step"), (6, "end", 2, "end"),
    ]  # fmt: skip
    assert found[0]["metrics"] == {"loss": 0.4, "val_accuracy": 0.2}
    assert found[0]["writer"] == {"keras": "3"}
    assert {entry["name"] for entry in found[0]["files"]} == {"model.weights.h5", "notes.json"}
    told = outlast("checkpoints", "digits").out.splitlines()
    assert len(told) == 4
    assert "loss 0.4  val_accuracy 0.2" in told[1]


@pytest.mark.parametrize("how", ["--deep", "--quick"])
def test_a_good_job_verifies(outlast: Call, job: Storage, how: str) -> None:
    found = outlast("verify", "--json", how, "digits")
    assert found.code == 0
    assert found.json["good"] is True
    assert [one["good"] for one in found.json["checkpoints"]] == [True] * 3
    assert found.json["history"]["entries"] == 9
    # the zombie's late commit is not of this line
    assert found.json["orphans"] == ["00-000000000005.0-0001"]
    assert "3 of 3 checkpoints are good." in outlast("verify", how, "digits").out


@pytest.mark.parametrize(
    ("how", "name", "said"),
    [
        ("flip", "model.weights.h5", "its content has changed (the hash differs)"),
        ("flip", "manifest.json", "its checksum does not match its content"),
        ("cut", "model.weights.h5", "bytes instead of"),
        ("delete", "notes.json", "it is missing"),
    ],
)
def test_damage_is_named_and_is_exit_code_65(
    outlast: Call, job: Storage, how: str, name: str, said: str
) -> None:
    newest = checkpoint_names(job)[-1]
    path = f"checkpoints/{newest}/{name}"
    if how == "flip":
        flip(job, path)
    elif how == "cut":
        job.replace(path, job.read(path)[:-1])
    else:
        job.delete(path)
    answer = outlast("verify", "digits")
    assert answer.code == 65
    assert any(
        line.startswith("DAMAGED") and newest in line and name in line and said in line
        for line in answer.out.splitlines()
    )
    assert "2 of 3 checkpoints are good." in answer.out
    found = outlast("verify", "--json", "digits").json
    assert [one["good"] for one in found["checkpoints"]] == [True, True, False]
    # a flipped byte of a file is only found by reading it
    quick = outlast("verify", "--quick", "digits").code
    assert quick == (0 if (how, name) == ("flip", "model.weights.h5") else 65)


@pytest.mark.parametrize("part", ["history", "journal", "spec", "origins"])
def test_damage_outside_of_checkpoints_is_named_too(outlast: Call, job: Storage, part: str) -> None:
    path = {
        "history": layout.history(1),
        "journal": layout.journal_event(3),
        "spec": layout.SPEC,
        "origins": layout.origin(2),
    }[part]
    flip(job, path, 0)
    answer = outlast("verify", "--json", "digits")
    assert answer.code == 65
    assert answer.json[part]["good"] is False
    assert f"DAMAGED  {part}" in outlast("verify", "digits").out


def test_prune_lists_then_deletes(outlast: Call, job: Storage) -> None:
    before = checkpoint_names(job)
    planned = outlast("prune", "--dry-run", "--json", "--keep", "1", "digits").json
    zombie = "00-000000000005.0-0001"
    assert planned == {
        "deleted": [zombie, before[1]],
        "reasons": {
            zombie: "it is beyond where the next attempt took over",
            before[1]: "last:1 does not keep it",
        },
        "leftovers": [],
        "dry_run": True,
        "keep": str(Keep.parse(1)),
    }
    assert checkpoint_names(job) == before
    told = outlast("prune", "--keep", "1", "digits").out.splitlines()
    assert told == [f"deleted {name}  ({why})" for name, why in planned["reasons"].items()]
    # what attempt 2 resumed from stays
    assert checkpoint_names(job) == [before[0], before[2]]
    assert "Nothing to delete" in outlast("prune", "--keep", "1", "digits").out


def test_prune_deletes_leftovers_by_their_age(outlast: Call, job: Storage) -> None:
    """A folder without a manifest, of the newest attempt, and temporary files."""
    cut_short = "checkpoints/00-000000000009.0-0002"
    job.create(f"{cut_short}/model.weights.h5", b"half")
    temporary = Path(job.root) / "journal" / ".tmp-0123456789abcdef"
    temporary.write_bytes(b"x" * 2000)
    assert outlast("prune", "--json", "digits").json["leftovers"] == []  # too young
    for path in (Path(job.root) / cut_short / "model.weights.h5", temporary):
        os.utime(path, (1e9, 1e9))
    planned = outlast("prune", "--dry-run", "--json", "digits").json["leftovers"]
    found = [(one["path"], one["reason"], one["size"]) for one in planned]
    assert found == [
        (cut_short, "a checkpoint that was never committed", 4),
        ("journal/.tmp-0123456789abcdef", "a temporary file", 2000),
    ]
    assert all(one["age"] > 1e8 for one in planned)
    assert temporary.exists()
    told = outlast("prune", "digits").out.splitlines()
    assert told[0].startswith(f"deleted {cut_short}  (a checkpoint that was never committed, 4 B, ")
    assert not temporary.exists()
    assert not job.exists(cut_short)
    assert "Nothing to delete" in outlast("prune", "--older-than", "0", "digits").out


def test_prune_keeps_files_that_may_be_being_written(outlast: Call, job: Storage) -> None:
    """A job at work clears its own folders away; elsewhere its newest ones may be half sent."""
    journal = Journal(job)
    journal.append(Resumed(by="a test"))
    journal.claim(process_identity.here())
    cut_short = "checkpoints/00-000000000009.0-0003"
    job.create(f"{cut_short}/model.weights.h5", b"half")
    os.utime(Path(job.root) / cut_short / "model.weights.h5", (1e9, 1e9))
    assert outlast("prune", "--json", "--older-than", "0", "digits").json["leftovers"] == []
    assert job.exists(cut_short)


def test_verify_of_a_root_names_damage_by_job(outlast: Call, job: Storage, job_root: Path) -> None:
    shutil.copytree(job_root / "digits", job_root / "other")
    shutil.copytree(job_root / "digits", job_root / "third")
    answer = outlast("verify")
    assert answer.code == 0
    assert answer.out.splitlines()[-2] == f"3 of 3 jobs in {job_root} are good."
    other = open_storage(job_root / "other")
    newest = checkpoint_names(other)[-1]
    flip(other, f"checkpoints/{newest}/model.weights.h5")
    flip(open_storage(job_root / "third"), layout.SPEC, 0)
    answer = outlast("verify", "--deep", str(job_root))
    assert answer.code == 65
    damaged = [line for line in answer.out.splitlines() if line.startswith("DAMAGED")]
    assert len(damaged) == 2
    assert damaged[0].startswith(f"DAMAGED  other  {newest}  model.weights.h5: its content")
    assert damaged[1].startswith("DAMAGED  third  spec  ")
    found = outlast("verify", "--json", str(job_root)).json
    assert [(one["job"], one["good"]) for one in found["jobs"]] == [
        ("digits", True), ("other", False), ("third", False),
    ]  # fmt: skip
    assert outlast("verify", str(job_root / "nothing")).code == 4


def test_copy_reports_its_work_and_continues_where_it_was(
    outlast: Call, job: Storage, job_root: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "elsewhere"
    first = outlast("copy", "--json", "digits", f"{dest}/").json
    assert first["url"] == f"{dest}/digits"
    assert (first["checkpoints"], first["kept"], first["damages"]) == (checkpoint_names(job), 0, [])
    again = outlast("copy", "--json", "digits", f"{dest}/digits").json
    assert (again["written"], again["kept"] > 0) == (0, True)
    assert outlast("verify", f"{dest}/digits").code == 0
    for verb in (["checkpoints", "--json"], ["history", "--format", "jsonl"], ["logs"]):
        assert outlast(*verb, "digits").out == outlast(*verb, f"{dest}/digits").out
    told = outlast("copy", "digits", f"{dest}/digits").out
    assert "already there; every byte verified" in told


def test_copy_refuses_a_used_destination_and_a_running_job(
    outlast: Call, job: Storage, tmp_path: Path, job_root: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    answer = outlast("copy", "digits", str(tmp_path / "full"))
    assert (answer.code, "it is not empty" in answer.err) == (2, True)
    assert outlast("copy", "digits", str(job_root / "digits")).code == 2
    journal = Journal(job)
    journal.append(Resumed(by="a test"))
    journal.claim(process_identity.here())
    answer = outlast("copy", "digits", str(tmp_path / "new"))
    assert (answer.code, "has it (attempt 3)" in answer.err) == (5, True)
    assert not (tmp_path / "new").exists()


def test_copy_copies_damaged_files_and_says_so(outlast: Call, job: Storage, tmp_path: Path) -> None:
    newest = checkpoint_names(job)[-1]
    flip(job, f"checkpoints/{newest}/model.weights.h5")
    answer = outlast("copy", "digits", str(tmp_path / "new"))
    assert answer.code == 65
    assert f"DAMAGED  {newest}: model.weights.h5: its content has changed" in answer.out
    assert "2 of 3 checkpoints are good." in outlast("verify", str(tmp_path / "new")).out


def test_shared_bytes_of_checkpoints_count_once(outlast: Call, job_root: Path) -> None:
    storage = open_storage(job_root / "frozen")
    storage.create(layout.SPEC, specs.encode(JobSpec(job="frozen", script="train.py")))
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    for step in range(1, 5):
        store.save(sample_snapshot(step, backbone=1), reason="step")
    found = outlast("checkpoints", "--json", "frozen").json
    part = 1 << 20
    assert [one["shared"] > part for one in found] == [False, False, True, True]
    assert [one["written"] > part for one in found] == [True, True, False, False]
    assert all(one["written"] + one["shared"] == one["size"] for one in found)
    outlast("prune", "--keep", "1", "frozen")
    (last,) = outlast("checkpoints", "--json", "frozen").json
    assert (last["written"] > part, last["shared"]) == (True, 0)
    assert "NEW" in outlast("checkpoints", "frozen").out


def test_a_bar_is_shown_on_a_terminal(job: Storage) -> None:
    """In a process of its own, whose errors go to a terminal."""
    master, terminal = os.openpty()
    command = [sys.executable, "-m", "outlast", "verify", job.root]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=terminal, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # the other end has gone
                break
            shown += data
        out = process.stdout.read() if process.stdout else b""
    os.close(master)
    assert process.returncode == 0
    assert b"verifying digits" in shown
    assert b"3 of 3 checkpoints are good." in out


def test_every_command_works_with_awkward_characters_in_paths(
    outlast: Call, job: Storage, job_root: Path, weird_root: Path
) -> None:
    shutil.copytree(job_root / "digits", weird_root / "digits")
    place = str(weird_root / "digits")
    plain = {
        verb: outlast(verb, "digits").out
        for verb in ("status", "logs", "history", "checkpoints", "verify")
    }
    for verb, out in plain.items():
        for named in ([place], ["--root", str(weird_root), "digits"]):
            answer = outlast(verb, *named)
            assert answer.code == 0, (verb, answer.err)
            assert answer.out.replace(str(weird_root), str(job_root)) == out
    (listed,) = outlast("list", "--json", "--root", str(weird_root)).json
    assert listed["job"] == "digits"
    for verb, *rest in (
        ["export", str(weird_root / "model.weights.h5")],
        ["copy", str(weird_root / "a copy ☂")],
        ["prune", "--keep", "1"],
        ["stop"],
        ["resume", "--trust"],
    ):
        answer = outlast(verb, place, *rest)
        assert answer.code == 0, (verb, answer.err)
    assert (
        f"2 of 2 jobs in {weird_root} are good."
        in outlast("verify", str(weird_root)).out.splitlines()
    )
    assert checkpoint_names(open_storage(weird_root / "a copy ☂")) == checkpoint_names(job)
    assert len(checkpoint_names(open_storage(place))) == 2


def test_prune_uses_the_rule_of_the_job_and_refuses_an_invalid_one(
    outlast: Call, job: Storage
) -> None:
    assert outlast("prune", "--json", "digits").json["keep"] == "last:3"
    answer = outlast("prune", "--keep", "last:0", "digits")
    assert answer.code == 2
    assert "needs a whole number of at least 1" in answer.err


# --- errors --------------------------------------------------------------------------------------


def test_an_unknown_command_names_similar_ones(outlast: Call) -> None:
    answer = outlast("statsu")
    assert answer.code == 2
    assert "Did you mean status" in answer.err


def test_no_stack_trace_unless_debug(
    outlast: Call, job: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(job, layout.journal_event(3), 0)
    answer = outlast("status", "digits")
    assert (answer.code, answer.err.count("\n")) == (65, 1)
    assert "00000003.json" in answer.err
    traced = outlast("status", "--debug", "digits")
    assert "Traceback (most recent call last)" in traced.err
    assert traced.err.endswith(answer.err)
    monkeypatch.setenv("OUTLAST_DEBUG", "1")
    assert "Traceback" in outlast("status", "digits").err


def test_an_unexpected_error_is_one_line_with_a_hint(
    outlast: Call, job: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(time, "strftime", broken)
    answer = outlast("logs", "digits")
    assert answer.code == 1
    assert answer.err == (
        "outlast: unexpected RuntimeError: two lines (run again with --debug for the stack trace)\n"
    )

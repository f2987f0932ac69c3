"""What may change between two attempts: the script, and the version of Outlast."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from outlast.job import logs
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance.jobs import PATH, PATIENCE, SCRIPTS, outlast, without_time
from tests.acceptance.plain import Make

pytestmark = pytest.mark.acceptance

# The first attempt edits the script and dies; the second, which dies too, and the third run that.
EDITED = """
me = pathlib.Path(__file__)
(here / f"script-{ctx.attempt}").write_bytes(me.read_bytes())
if ctx.attempt == 1:
    step()
    me.write_bytes(me.read_bytes() + b"# edited\\n")
if ctx.attempt < 3:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_edited_script_is_told_once_with_both_hashes(job: Make) -> None:
    plain = job(EDITED)
    assert plain.run() == 0
    assert plain.job.state is State.SUCCEEDED
    told = [row for row in logs.read(plain.storage) if row["event"] == "script_changed"]
    before, now = (
        hashlib.sha256((plain.folder / f"script-{n}").read_bytes()).hexdigest() for n in (1, 3)
    )
    assert [(row["attempt"], row["sha256_before"], row["sha256"]) for row in told] == [
        (2, before, now)
    ]
    assert before != now


# What scripts/versions.py left when it was stopped in its second phase, under Outlast 0.1.0 before
# its release. Whoever changes what a checkpoint holds must be able to go on from it.
OLDER = Path(__file__).parent / "fixtures" / "older-job.tar.gz"


def run_versions(folder: Path) -> None:
    subprocess.run(
        [sys.executable, SCRIPTS / "versions.py", folder],
        env={**os.environ, "PYTHONPATH": PATH},
        check=True,
        timeout=PATIENCE,
    )


def end_of(folder: Path) -> dict[str, Any]:
    """Return all arrays at the end of each phase, and the merged history."""
    storage = open_storage(folder)
    store = CheckpointStore(storage)
    found: dict[str, Any] = {"rows": [without_time(row) for row in HistoryReader(storage).rows()]}
    for phase, checkpoint in store.finished_phases().items():
        for file, arrays in store.load(checkpoint).files.items():
            for name, array in arrays.items():
                # the document also holds the job's own seed
                found[f"{phase}:{file}:{name}"] = None if name == "document" else array.tobytes()
    return found


def test_a_job_that_an_older_version_began_goes_on(tmp_path: Path) -> None:
    with tarfile.open(OLDER) as archive:
        archive.extractall(tmp_path, filter="data")
    older, untouched = tmp_path / "before", tmp_path / "untouched"
    begun = Journal(open_storage(older)).existing_job()
    assert (begun.state, begun.checkpoint) == (State.STOPPED, "01-000000000006.0-0001")
    listed = outlast("list", "--root", tmp_path)
    assert (listed.returncode, "before" in listed.stdout) == (0, True), listed.stderr
    assert outlast("verify", "--root", tmp_path, "before").returncode == 0

    run_versions(older)
    run_versions(untouched)
    assert Journal(open_storage(older)).existing_job().state is State.SUCCEEDED
    resumed = [row for row in logs.read(open_storage(older)) if row["event"] == "resumed"]
    assert [row["step"] for row in resumed] == [8, 6]  # the finished phase, and the other one
    mine, theirs = end_of(older), end_of(untouched)
    assert any(name.startswith("1:model.weights.h5:optimizer/") for name in theirs)
    assert any(name.startswith("0:state.h5:") for name in theirs)
    assert [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)] == []
    assert outlast("verify", "--root", tmp_path, "before").returncode == 0

"""Streams that are closed, full or of another encoding; signals that come until the end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast_checkpoints.storage import open_storage
from tests.acceptance.jobs import OUTLAST, PATH, PATIENCE
from tests.acceptance.plain import TRAINING
from tests.unit.outlast.cli.commands.test_odd_names import make

pytestmark = pytest.mark.acceptance


def shell(folder: Path, *arguments: str, streams: str = "", **env: str) -> tuple[int, str, str]:
    """Run a command line with redirected streams; return its exit code and what it printed."""
    command = f"{shlex.join([*OUTLAST, *arguments])} {streams}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PATH, **env},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def state(folder: Path, name: str) -> State:
    return Journal(open_storage(folder / "outlast-jobs" / name)).existing_job().state


@pytest.mark.parametrize(
    "streams", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1", "| head -c 1"]
)
def test_a_job_runs_to_its_end_whatever_its_streams_are(tmp_path: Path, streams: str) -> None:
    (tmp_path / "hi.py").write_text("for number in range(9): print('hi', number)\n")
    code, _, err = shell(tmp_path, "run", "--name", "a", "hi.py", streams=streams)
    assert code == 0, err
    assert "Error" not in err
    assert state(tmp_path, "a") is State.SUCCEEDED
    output = tmp_path / "outlast-jobs/a/attempts/0001/output.log"
    assert output.read_text().splitlines() == [f"hi {number}" for number in range(9)]


def test_a_detached_job_starts_without_streams(tmp_path: Path) -> None:
    (tmp_path / "hi.py").write_text("print('hi')\n")
    code, *_ = shell(tmp_path, "submit", "--name", "c", "hi.py", streams="<&- >&- 2>&-")
    assert code == 0
    until = time.monotonic() + PATIENCE
    while state(tmp_path, "c") is not State.SUCCEEDED:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_shows_a_job_fails_when_nobody_can_read_it(tmp_path: Path) -> None:
    make(tmp_path / "outlast-jobs", "odd", ["loss", "größe 数"])
    for verb in (["list"], ["history", "odd", "--csv"]):
        code, _, err = shell(tmp_path, *verb, streams=">/dev/full")
        assert code == 1
        assert err.startswith("outlast: ")
        assert "could not be written" in err
        assert shell(tmp_path, *verb, streams=">&-")[0] == 0
        assert shell(tmp_path, *verb, streams="| head -c 1; exit ${PIPESTATUS[0]}")[0] == 0
    for env in (
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ):
        code, out, err = shell(tmp_path, "history", "odd", "--json", **env)
        assert code == 0, err
        assert list(json.loads(out.splitlines()[0])["logs"]) == ["loss", "größe 数"]
        for verb in (["history", "odd"], ["history", "odd", "--csv"], ["verify", "odd"]):
            code, _, err = subprocess_raw(tmp_path, *verb, **env)
            assert code == 0, err


def subprocess_raw(folder: Path, *arguments: str, **env: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [*OUTLAST, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PATH, **env},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def storm(process: subprocess.Popen[bytes], signum: int, ready: Path) -> int:
    """Send a signal until the process has ended, once it is ready; return its exit code."""
    until = time.monotonic() + PATIENCE
    while not ready.exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    while process.poll() is None:
        process.send_signal(signum)
        assert time.monotonic() < until
        time.sleep(0.05)
    return process.returncode


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_that_is_told_to_leave_again_and_again(tmp_path: Path, signum: int) -> None:
    code = f"{TRAINING}(here / 'ready').touch()\ngo_on_for_ever()\n"
    (tmp_path / "train.py").write_text(code)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*OUTLAST, "run", "--name", "r", "train.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": PATH},
            stdout=log,
            stderr=log,
        )
    assert storm(process, signum, tmp_path / "ready") == 75, (tmp_path / "log").read_text()
    assert state(tmp_path, "r") is State.PENDING


BARE = """
import pathlib, sys, time
from outlast.attempt import bare

context = bare.open_bare("outlast-jobs/b")
context.stop.watched = False
pathlib.Path("ready").touch()
time.sleep(600)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_bare_script_that_is_told_to_leave_again_and_again(tmp_path: Path, signum: int) -> None:
    (tmp_path / "bare.py").write_text(BARE)
    process = subprocess.Popen(
        [sys.executable, "bare.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": PATH}
    )
    assert storm(process, signum, tmp_path / "ready") == 75
    assert state(tmp_path, "b") is State.STOPPED

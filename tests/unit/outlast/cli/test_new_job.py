"""What cannot run is refused before a job exists, and the message names the option."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from outlast import engines
from outlast.errors import EngineFailed
from tests.support.command_line import answer

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def outlast(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Call:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("")
    Path("package/inner").mkdir(parents=True)
    Path("package/__init__.py").write_text("raise SystemExit('imported')")
    Path("package/__main__.py").write_text("")

    def call(*arguments: str) -> tuple[int, str]:
        found = answer(capfd, *arguments)
        return found.code, found.out + found.err

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--python", "/nope", "train.py"], "--python: there is no program '/nope'"),
        (["--python", "no-such-python", "train.py"], "--python: there is no program"),
        (["--python", "./train.py", "train.py"], "--python: there is no program"),
        (["-m", "nosuch.module"], "-m: there is no module 'nosuch.module'"),
        (["-m", "package.nosuch"], "-m: there is no module 'package.nosuch'"),
        (["-m", "package.__main__.more"], "-m: there is no module"),
        (["-m", "json"], "-m: there is no module 'json' that python -m could run"),
        (["--keep", "best:m:maxi", "train.py"], "'best:m:maxi' is not best:METRIC"),
        (["--root", "foo://bar", "train.py"], "--root: foo://bar"),
        (["--root", "s3:/bar", "train.py"], "--root: 's3:/bar' is refused"),
        (["nosuch.py"], "SCRIPT: there is no file 'nosuch.py'"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "submit"])
def test_what_cannot_run_makes_no_job(
    outlast: Call, verb: str, arguments: list[str], said: str
) -> None:
    code, text = outlast(verb, *arguments)
    assert code == 2
    assert said in text
    assert sorted(path.name for path in Path().iterdir()) == ["package", "train.py"]


@pytest.mark.parametrize("arguments", [["-m", "package"], ["-m", "json.tool"], ["train.py"]])
def test_what_can_run_is_taken_and_nothing_is_imported(outlast: Call, arguments: list[str]) -> None:
    code, text = outlast("submit", "--dry-run", "--python", "python3", *arguments)
    assert code == 0, text
    code, text = outlast("submit", "--dry-run", *arguments)
    assert code == 0, text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--root", "s3:/x"], "--root: 's3:/x'"),
        (["resume", "--all", "--root", "foo://x"], "--root: foo://x"),
        (["status", "x", "--root", "foo://x"], "--root: foo://x"),
        (["status", "foo://x/y"], "JOB: foo://x/y"),
        (["verify", "--root", "s3:/x"], "--root: 's3:/x'"),
        (["demo", "--output", "/proc/no"], "--output: '/proc/no' cannot be written"),
    ],
)
def test_a_bad_place_is_named_by_its_option(outlast: Call, arguments: list[str], said: str) -> None:
    code, text = outlast(*arguments)
    assert code == 2, text
    assert said in text


def test_a_submission_that_fails_leaves_no_pending_job(outlast: Call) -> None:
    arguments = ["--engine", "slurm", "--name", "a", "--root", "jobs"]
    error = EngineFailed(engine="slurm", action="submit the job", reason="no controller")
    with mock.patch.object(type(engines.get("slurm")), "launch", side_effect=error):
        code, text = outlast("submit", *arguments, "train.py")
        assert "no controller" in text
        assert code == 1
        found = json.loads(outlast("status", "a", "--root", "jobs", "--json")[1])
        assert (found["state"], found["progress"]) == ("stopped", None)
        assert "a submission that failed" in found["description"]
        assert outlast("submit", "--resume-if-exists", *arguments, "train.py")[0] == 1
        assert json.loads(outlast("list", "--root", "jobs", "--json")[1])[0]["state"] == "stopped"

"""A job folder is a program: nothing of it runs before its user has said so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outlast import exit_codes
from outlast.cli import resume_all
from outlast.errors import JobForeign
from outlast.job import spec as specs
from outlast.job import trust
from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from tests.support.command_line import Call


@pytest.fixture(autouse=True)
def trusted_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test be of a user who has trusted nothing."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the jobs that are started, in the foreground or detached; start none."""
    names: list[str] = []

    def supervise(place: resume_all.Place, root: str) -> int:
        names.append(place.name)
        return 0

    monkeypatch.setattr("outlast.cli.summary.supervise", supervise)
    monkeypatch.setattr(resume_all, "hand_over", lambda place: names.append(place.name))
    return names


def put(root: Path, name: str, **more: object) -> Path:
    """Make a job as somebody else does who can write the root."""
    given = {"script": "train.py", "env": {"LD_PRELOAD": "./evil.so"}, "python": "./evil.sh"}
    spec = specs.encode(JobSpec(job=name, **{**given, **more}))  # type: ignore[arg-type]
    open_storage(root / name).create(layout.SPEC, spec)
    return root / name


def test_a_job_from_elsewhere_shows_what_would_run_and_runs_nothing(
    outlast: Call, job_root: Path, started: list[str]
) -> None:
    options = {"image": "evil/miner", "namespace": "finance"}
    put(job_root, "a", cwd="/tmp", args=["--epochs", "3"], engine_options=options)
    code, out, err = outlast("resume", "a")
    assert (code, out, started) == (exit_codes.REJECTED, "", [])
    shown = "evil.sh", "train.py --epochs 3", "/tmp", "LD_PRELOAD", "./evil.so", "image=evil/miner"
    for part in shown:
        assert part in err, part
    assert "outlast resume" in err
    assert "--trust" in err
    assert Journal(open_storage(job_root / "a")).job() is None  # nothing was written


def test_trust_is_remembered_for_exactly_this_spec(
    outlast: Call, job_root: Path, started: list[str]
) -> None:
    folder = put(job_root, "a")
    assert outlast("resume", "a", "--trust")[0] == 0
    assert outlast("resume", "a")[0] == 0
    assert started == ["a", "a"]
    spec = folder / layout.SPEC
    changed = JobSpec(job="a", script="train.py", python="./evil.sh", env={"LD_PRELOAD": "./e.so"})
    spec.write_bytes(specs.encode(changed))
    assert outlast("resume", "a")[0] == exit_codes.REJECTED
    assert started == ["a", "a"]


def test_own_jobs_are_not_asked_about(outlast: Call, job_root: Path, started: list[str]) -> None:
    submit(open_storage(job_root), JobSpec(job="mine", script="train.py"))
    assert outlast("resume", "mine")[0] == 0
    assert started == ["mine"]
    assert trust._file().stat().st_mode & 0o777 == 0o600


def test_all_passes_over_what_is_not_trusted_and_names_it(
    outlast: Call, job_root: Path, started: list[str]
) -> None:
    for name in ("a", "b", "c"):
        submit(open_storage(job_root), JobSpec(job=name, script="train.py"))
    put(job_root, "evil")
    code, _, err = outlast("resume", "--all")
    assert code == exit_codes.FAILED
    assert sorted(started) == ["a", "b", "c"]
    assert "evil" in err
    assert "--trust" in err
    started.clear()
    assert outlast("resume", "--all", "--trust")[0] == 0
    assert "evil" in started


def test_latest_takes_no_job_from_elsewhere(
    outlast: Call, job_root: Path, started: list[str]
) -> None:
    put(job_root, "evil")
    code, _, err = outlast("resume", "--latest")
    assert (code, started) == (0, [])
    assert "evil" in err


def test_run_does_not_go_on_with_a_job_from_elsewhere(
    outlast: Call, job_root: Path, tmp_path: Path, started: list[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    put(job_root, "a", script=str(script))
    code, _, err = outlast("run", "--resume-if-exists", "--name", "a", str(script))
    assert (code, started) == (exit_codes.REJECTED, [])
    assert "evil.so" in err


@pytest.mark.parametrize(
    "command", ["resume a --trust", "stop a", "prune a", "resume --all --trust"]
)
def test_a_job_of_another_user_is_refused_by_name(
    outlast: Call,
    job_root: Path,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    submit(open_storage(job_root), JobSpec(job="a", script="train.py"))
    before = sorted(job_root.rglob("*"))
    owner = os.geteuid()
    if owner == 0:  # root's jobs are trusted, so make it a user's
        for path in (job_root / "a").rglob("*"):
            os.chown(path, 4001, 4001)
        owner = 4001
    as_user(monkeypatch, 4002)
    code, out, err = outlast(*command.split())
    assert code in (exit_codes.REJECTED, exit_codes.FAILED)
    assert f"user {owner}" in out + err or f"({owner})" in out + err
    assert started == []
    assert sorted(job_root.rglob("*")) == before


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int, files: int | None = None) -> None:
    """Be another user, whose new files belong to `files`, or to that user."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(trust, "_owner_of_new_files", lambda storage: files or uid)


def test_a_server_may_give_this_users_files_to_another_one(
    job_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does with root (root_squash)."""
    storage = open_storage(job_root)
    submit(storage, JobSpec(job="a", script="train.py"))
    assert trust._owner_of_new_files(storage.sub("a")) == os.geteuid()
    nobody = os.geteuid() or 65534
    for path in [job_root / "a", *(job_root / "a").rglob("*")]:
        if os.geteuid() == 0:
            os.chown(path, nobody, nobody)
    as_user(monkeypatch, 4002, files=nobody)
    trust.check_owner(storage.sub("a"), "a")
    as_user(monkeypatch, 4002)
    with pytest.raises(JobForeign):
        trust.check_owner(storage.sub("a"), "a")


def test_a_folder_that_somebody_else_has_made_is_not_used(
    outlast: Call, job_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job_root / "digits").mkdir(mode=0o777)
    if os.geteuid() == 0:
        os.chown(job_root / "digits", 4001, 4001)
    as_user(monkeypatch, 4002)
    with pytest.raises(JobForeign, match="digits"):
        submit(open_storage(job_root), JobSpec(job="digits", script="train.py"))
    assert list((job_root / "digits").iterdir()) == []


def test_without_a_writable_home_it_asks_again(
    outlast: Call, job_root: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")
    put(job_root, "a")
    assert outlast("resume", "a", "--trust")[0] == 0
    assert outlast("resume", "a")[0] == exit_codes.REJECTED
    assert started == ["a"]

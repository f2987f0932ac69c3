"""What people do to jobs by hand: deleted folders, full disks, forks, huge output, lost Pythons."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from outlast.cli.commands import logs
from outlast.errors import JobUnknown
from outlast.job.heartbeat import read
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.process_identity import here
from outlast.job.spec import JobSpec
from outlast.supervisor import job_presence, supervisor
from outlast.supervisor.supervisor import Supervisor, submit
from outlast_checkpoints.errors import FormatError, StorageError, StorageFull
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from tests.acceptance.jobs import PATIENCE
from tests.acceptance.plain import Make
from tests.support.command_line import Call
from tests.unit.outlast.cli.conftest import outlast

__all__ = ["outlast"]

pytestmark = pytest.mark.acceptance


def test_a_folder_without_a_job_is_not_suggested(job_root: Path, outlast: Call) -> None:
    (job_root / "many").mkdir(parents=True)
    answer = outlast("status", "many")
    assert answer.code == 4
    assert "Did you mean" not in answer.err
    empty = outlast("verify", str(job_root / "many"), "--json")
    assert (empty.code, empty.json["good"], empty.json["jobs"]) == (0, True, [])
    assert outlast("verify", str(job_root / "nowhere")).code == 4


def test_huge_output_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PIECE", 7)
    said = [b"a\n", b"\n", b"a long line, longer than a piece\r\xff\n", b"exactly\n", b"open"]
    storage = open_storage(tmp_path)
    storage.create(layout.output_log(1), b"".join(said))
    storage.create(layout.output_log(2), b"")

    sizes: list[int] = []

    def read_range(path: str, start: int, end: int | None) -> bytes:
        data = before(path, start, end)
        sizes.append(len(data))
        return data

    before = storage.read_range
    monkeypatch.setattr(storage, "read_range", read_range)

    def lines(attempt: int | None, stops: list[bool]) -> list[bytes]:
        found = logs.output_lines(
            storage, attempt=attempt, stop=lambda: stops.pop(0), sleep=lambda seconds: None
        )
        return list(found)

    assert lines(None, [True]) == said
    assert lines(1, [False, False, True]) == said
    assert max(sizes) == 7


def test_an_event_that_was_cut_short_says_what_to_do(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.create(layout.journal_event(1), b"")
    with pytest.raises(FormatError, match="newest event, you may delete it"):
        Journal(storage).read()


def test_a_full_disk_leaves_no_folder_of_a_job_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("outlast_checkpoints.storage.durable_files.write_temporary", full)
        with pytest.raises(StorageError, match="No space"):
            submit(open_storage(tmp_path), JobSpec(job="d2", script="a.py"))
    assert not (tmp_path / "d2").exists()


def test_a_stop_that_finds_no_room_names_the_signal(
    job_root: Path, outlast: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(open_storage(job_root), JobSpec(job="d", script="a.py"))
    me = here()
    Journal(open_storage(job_root / "d")).claim(me)

    def full(*_: object, **__: object) -> None:
        raise StorageFull(action="create", path="d", reason="No space left on device")

    monkeypatch.setattr(supervisor, "request_stop", full)
    answer = outlast("stop", "d")
    assert answer.code == 74
    assert f"send SIGTERM to {me}" in answer.err


def test_a_supervisor_that_said_nothing_leaves_no_file() -> None:
    code = "import sys; from outlast.supervisor import detached as d; {}d._delete_empty_output()"
    for said, stays in (("", False), ("print('x', file=sys.stderr, flush=True); ", True)):
        with tempfile.NamedTemporaryFile(prefix="outlast-supervisor-", delete=False) as file:
            subprocess.run([sys.executable, "-c", code.format(said)], stderr=file, check=True)
        path = Path(file.name)
        assert path.exists() is stays
        path.unlink(missing_ok=True)


def test_a_fork_of_the_script_says_nothing_in_its_name(job: Make) -> None:
    plain = job(
        "for end in ('raise ValueError(1)', 'sys.exit(3)', 'pass'):\n"
        "    if os.fork() == 0:\n"
        "        exec(end)\n"
        "        sys.exit(0)\n"
        "    os.wait()\n"
        "ctx.status.phase = 0\n"
    )
    assert Supervisor(plain.storage).run().state is State.SUCCEEDED
    told = (plain.folder / "jobs/plain/attempts/0001/log.jsonl").read_text()
    assert told.count("attempt_exited") == 1
    assert "script_failed" not in told
    assert "ValueError: 1" in plain.output()
    beat = read(plain.storage, 1)
    assert beat is not None
    assert (beat.ended, beat.error) == (0, None)


def test_a_python_that_is_gone_is_not_tried_again(job: Make) -> None:
    plain = job("pass", python="/nowhere/bin/python")
    found = Supervisor(plain.storage).run()
    assert (found.state, found.outcome, found.attempt) == (State.FAILED, Outcome.REJECTED, 1)
    assert "/nowhere/bin/python" in found.reason


def test_who_supervises_a_deleted_job_leaves(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_presence, "GONE_AFTER", 1.0)
    plain = job("go_on_for_ever()")
    caught: list[Exception] = []

    def run() -> None:
        try:
            Supervisor(plain.storage).run()
        except JobUnknown as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + PATIENCE
    while (beat := read(plain.storage, 1)) is None or beat.step < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    shutil.rmtree(plain.folder / "jobs/plain", ignore_errors=True)
    thread.join(PATIENCE)
    assert len(caught) == 1
    assert beat.process.gone()

"""The structured log: written, merged, followed, rendered."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from outlast.job import logs
from outlast.job.heartbeat import Status
from outlast.job.logs import LogFile, LogTail, make_logger
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.testing import FaultyStorage
from tests.support.away import Bucket


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "job")
    return open_storage(f"memory://{tmp_path}/job")


def written(storage: Storage, attempt: int, *events: tuple[float, str], stem: str = "log") -> None:
    path = {"log": layout.attempt_log, "supervisor": layout.supervisor_log}[stem](attempt)
    file = LogFile(storage, path)
    for at, event in events:
        file.write({"time": at, "level": "info", "event": event, "attempt": attempt})
    file.close()


def told(rows: object) -> list[str]:
    return [row["event"] for row in rows]  # type: ignore[attr-defined]


def test_a_row_has_the_bound_fields_and_the_position(storage: Storage) -> None:
    status = Status()
    echoed: list[logs.Row] = []
    file = LogFile(storage, layout.attempt_log(1), echo=echoed.append)
    log = make_logger(file, status=status, job="j", attempt=1)
    log.info("first", path=Path("/x"), value=float("nan"), nested={"a": (1, float("inf"))})
    status.phase, status.step = 0, 7
    log.bind(extra=1).warning("second %s", "formatted")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("third")
    file.close()
    first, second, third = logs.read(storage)
    assert list(first)[:5] == ["time", "level", "event", "job", "attempt"]
    assert first["value"] == "nan"
    assert first["nested"] == {"a": [1, "inf"]}
    assert first["path"] == "/x"
    assert "phase" not in first
    assert (second["level"], second["event"]) == ("warning", "second formatted")
    assert (second["phase"], second["step"], second["extra"]) == (0, 7, 1)
    assert (third["level"], third["event"]) == ("error", "third")
    assert "ValueError: boom" in third["exception"]
    assert told(echoed) == ["first", "second formatted", "third"]


def test_supervisor_and_attempts_are_merged_by_time_within_an_attempt(storage: Storage) -> None:
    written(storage, 1, (2.0, "b"), (4.0, "d"))
    written(storage, 1, (1.0, "a"), (3.0, "c"), stem="supervisor")
    written(storage, 2, (0.5, "e"))  # another machine's clock may be behind
    assert told(logs.read(storage)) == ["a", "b", "c", "d", "e"]
    assert told(logs.read(storage, attempt=1)) == ["a", "b", "c", "d"]
    assert told(logs.read(storage, attempt=9)) == []


def test_levels_are_filtered(storage: Storage) -> None:
    file = LogFile(storage, layout.attempt_log(1))
    log = make_logger(file)
    for level in logs.LEVELS:
        getattr(log, level)(level)
    file.close()
    assert told(logs.read(storage, level="debug")) == list(logs.LEVELS)
    assert told(logs.read(storage, level="WARNING")) == ["warning", "error", "critical"]
    with pytest.raises(UsageError, match="loud"):
        list(logs.read(storage, level="loud"))


def test_torn_and_foreign_lines_are_skipped(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    written(storage, 1, (1.0, "good"))
    path = tmp_path / layout.attempt_log(1)
    with path.open("ab") as file:
        file.write(b'{"event": "torn')
    assert told(logs.read(storage)) == ["good"]
    # whoever writes next does not lose its own first line to the torn one
    written(storage, 1, (2.0, "after"))
    with path.open("ab") as file:
        file.write(b'[1]\n\xff\xfe\n{"no": "event"}\n\n{"event": "last"}\n')
    assert told(logs.read(storage)) == ["last", "good", "after"]


def test_a_tail_gives_each_complete_line_once(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    tail = LogTail(storage, 1, "log")
    assert tail.read() == []
    path = tmp_path / layout.attempt_log(1)
    path.parent.mkdir(parents=True)
    with path.open("ab", buffering=0) as file:
        file.write(b'{"event": "a"}\n{"event": ')
        assert told(tail.read()) == ["a"]
        assert tail.read() == []
        file.write(b'"b"}\n')
        assert told(tail.read()) == ["b"]


def test_following_covers_all_attempts_and_misses_nothing_at_the_end(storage: Storage) -> None:
    written(storage, 1, (1.0, "old"))
    looked = threading.Semaphore(0)
    go_on = threading.Semaphore(0)
    stop = threading.Event()
    seen: list[str] = []

    def sleep(seconds: float) -> None:
        looked.release()
        assert go_on.acquire(timeout=60)

    def follow() -> None:
        for row in logs.follow(storage, stop=stop.is_set, sleep=sleep):
            seen.append(row["event"])

    thread = threading.Thread(target=follow)
    thread.start()
    assert looked.acquire(timeout=60)
    assert seen == ["old"]
    written(storage, 2, (1.0, "new attempt"))
    go_on.release()
    assert looked.acquire(timeout=60)
    assert seen == ["old", "new attempt"]
    written(storage, 2, (2.0, "supervisor's"), stem="supervisor")
    written(storage, 3, (3.0, "last words"))
    stop.set()
    go_on.release()
    thread.join(60)
    assert seen == ["old", "new attempt", "supervisor's", "last words"]


def test_lines_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    inner = open_storage(tmp_path)
    storage = FaultyStorage(inner, "append@2:full append@3:full append@5:full")
    file = LogFile(storage, layout.attempt_log(1))
    log = make_logger(file)
    for name in ("a", "b", "c", "d", "e"):
        log.info(name)
    assert told(logs.read(inner)) == ["a", "b", "c", "d"]
    file.close()
    assert told(logs.read(inner)) == ["a", "b", "c", "d", "e"]
    assert file.lost == 0


def test_a_disk_that_stays_full_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    inner = open_storage(tmp_path)
    storage = FaultyStorage(inner, "append@1:full append@2:full append@3:full append@4:full")
    file = LogFile(storage, layout.attempt_log(1))
    log = make_logger(file)
    for name in ("a", "b", "c", "d", "e"):
        log.info(name, words="w" * 400_000)
    file.close()
    assert told(logs.read(inner)) == ["a", "b"]
    assert file.lost == 3


def test_lines_are_written_whole_from_many_threads(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    file = LogFile(storage, layout.attempt_log(1))
    log = make_logger(file)

    def say(name: str) -> None:
        for number in range(50):
            log.info(f"{name}{number}", filler="x" * number)

    threads = [threading.Thread(target=say, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.close()
    lines = (tmp_path / layout.attempt_log(1)).read_bytes().splitlines()
    assert {json.loads(line)["event"] for line in lines} == {
        f"{name}{number}" for name in "abcd" for number in range(50)
    }
    assert len(lines) == 200


def elsewhere(bucket: Bucket) -> list[str]:
    """Return what anybody reads in a log that has segments."""
    tail = LogTail(bucket, 1, "log")
    bucket.away = False
    return told(tail.read())


def test_lines_wait_for_an_unreachable_store_and_are_written_once(tmp_path: Path) -> None:
    bucket = Bucket.at(tmp_path, "create@3:lost")
    file = LogFile(bucket, layout.attempt_log(1))
    file.write({"event": "a"})
    file.flush()
    bucket.away = True
    file.write({"event": "b"})
    file.flush()
    bucket.away = False
    file.write({"event": "c"})
    file.flush()
    file.write({"event": "d"})
    file.flush()  # its answer is lost, but the lines are there
    file.write({"event": "e"})
    file.flush()
    file.close()
    assert elsewhere(bucket) == ["a", "b", "c", "d", "e"]
    assert file.lost == 0


def test_writing_a_line_does_not_wait_for_a_hanging_store(tmp_path: Path) -> None:
    bucket = Bucket.at(tmp_path)
    file = LogFile(bucket, layout.attempt_log(1))
    file.write({"event": "a"})
    bucket.answers.clear()
    flushing = threading.Thread(target=file.flush)
    flushing.start()
    file.write({"event": "b"})
    assert flushing.is_alive()
    bucket.answers.set()
    flushing.join()
    file.close()
    assert elsewhere(bucket) == ["a", "b"]


def test_the_number_of_waiting_lines_is_bounded(tmp_path: Path) -> None:
    bucket = Bucket.at(tmp_path)
    bucket.away = True
    file = LogFile(bucket, layout.attempt_log(1))
    for number in range(100):
        file.write({"event": "x" * 200_000, "number": number})
    assert 50 < file.lost < 100
    bucket.away = False
    file.close()
    assert len(elsewhere(bucket)) == 100 - file.lost


def test_the_numbers_of_an_earlier_process_are_skipped(tmp_path: Path) -> None:
    bucket = Bucket.at(tmp_path)
    for event in ("a", "b"):
        file = LogFile(bucket, layout.attempt_log(1))
        file.write({"event": event})
        file.close()
    assert elsewhere(bucket) == ["a", "b"]


def test_a_line_for_people() -> None:
    row = {
        "time": 0.0,
        "level": "warning",
        "event": "something odd",
        "job": "j",
        "attempt": 2,
        "phase": 1,
        "step": 40,
        "loss": 0.123456789,
        "why": "two words",
        "path": "/a",
        "many": [1, 2],
        "exception": "Traceback ...",
    }
    line = logs.render(row)
    assert "warning" in line
    assert "[2] 1:40 something odd" in line
    assert 'loss=0.123457 why="two words" path=/a many="[1, 2]"' in line
    assert line.endswith("\nTraceback ...")
    assert "\x1b[" not in line
    assert "\x1b[33m" in logs.render(row, colour=True)

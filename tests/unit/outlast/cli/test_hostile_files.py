"""Jobs whose files are links, pipes or endless: no verb follows, waits, or hides the others."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outlast.cli import main
from outlast.job import heartbeat, process_identity
from outlast.job import spec as specs
from outlast.job.events import Ended, Launched, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot

SECRET = "hunter2-in-another-file"
VERBS = ["status J", "logs J", "logs --output J", "history J", "history --csv J", "checkpoints J",
         "verify J", "prune --keep 1 J", "copy J COPY", "stop J", "list", "verify"]  # fmt: skip
WITHIN = 20  # seconds for a verb that must not wait at all
LIMIT = 3 << 30  # bytes of address space


def make(root: Path, name: str) -> Path:
    """Make a job with every kind of file."""
    storage = open_storage(root / name)
    storage.create(layout.SPEC, specs.encode(JobSpec(job=name, script="train.py")))
    journal = Journal(storage)
    journal.append(Submitted())
    journal.claim(process_identity.here())
    journal.append(Launched(attempt=1))
    journal.append(Started(attempt=1))
    history = HistoryWriter(storage, 1)
    row = {"kind": "epoch", "phase": 0, "step": 1, "epoch": 0, "time": 1.0, "logs": {"loss": 1.0}}
    history.append(row)
    mark = history.mark()
    history.close()
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    for step in (1, 2):
        store.save(sample_snapshot(step), reason="step", history=mark)
    heartbeat.HeartbeatWriter(storage, 1, heartbeat.Status(), 60.0).stop(0)
    storage.replace(layout.attempt_log(1), b'{"time": 1.0, "level": "info", "event": "x"}\n')
    storage.replace(layout.output_log(1), b"hello\n")
    journal.append(Ended(attempt=1, outcome=Outcome.CRASHED, reason="", advanced=True, signal=None))
    return root / name


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "jobs"
    child = os.fork()  # the process that had the jobs is gone
    if child == 0:
        make(root, "good")
        make(root, "bad")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return root


def names_of(job: Path) -> list[str]:
    """Return the files of a job, and the folders that hold them."""
    return sorted(str(path.relative_to(job)) for path in job.rglob("*"))


def link_to_file(path: Path, target: Path) -> None:
    path.symlink_to(target / "file")


def link_to_folder(path: Path, target: Path) -> None:
    path.symlink_to(target)


def dangling(path: Path, target: Path) -> None:
    path.symlink_to(target / "nothing")


def fifo(path: Path, target: Path) -> None:
    os.mkfifo(path)


def endless(path: Path, target: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path, target: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.fixture
def bounded() -> Iterator[None]:
    """End a verb that waits."""

    def too_long(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(capsys: pytest.CaptureFixture[str], verb: str, root: Path) -> tuple[int, str]:
    words = verb.replace("J", str(root / "bad")).replace("COPY", str(root.parent / "copy")).split()
    signal.alarm(WITHIN)
    with pytest.raises(SystemExit) as left:
        main([*words, "--root", str(root)])
    signal.alarm(0)
    printed = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, printed.out + printed.err


@pytest.mark.parametrize("plant", [link_to_file, link_to_folder, dangling, fifo, endless, a_socket])
def test_no_verb_follows_waits_or_hides_the_other_job(
    jobs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bounded: None,
    plant: Callable[[Path, Path], None],
) -> None:
    target = tmp_path / "target"
    for name in names_of(jobs / "bad"):
        root = tmp_path / "jobs"
        shutil.copytree(jobs, root)
        target.mkdir()
        for file in ("file", *(Path(one).name for one in names_of(jobs / "bad"))):
            (target / file).write_text(SECRET)
        before = {path: path.read_text() for path in target.iterdir()}
        place = root / "bad" / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        plant(place, target)
        for verb in VERBS:
            code, text = run(capsys, verb, root)
            where = f"{verb} with {name}: {text}"
            assert code in (0, 1, 2, 3, 4, 65, 66, 74, 75), where
            assert SECRET not in text, where
            assert "unexpected" not in text, where
            if verb == "list":
                assert "good" in text, where
        assert {path: path.read_text() for path in target.iterdir()} == before, name
        copied = (path for path in (tmp_path / "copy").rglob("*") if path.is_file())
        assert not any(SECRET.encode() in path.read_bytes() for path in copied), name
        for folder in (root, target, tmp_path / "copy"):
            shutil.rmtree(folder, ignore_errors=True)


SPARSE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from outlast.cli import main
for verb in sys.argv[2:]:
    try:
        main([*verb.split(), "--root", sys.argv[1]])
    except SystemExit as left:
        print("left", left.code, verb)
"""


@pytest.mark.parametrize("name", ["spec.json", "journal/", "heartbeat.json", "manifest.json"])
def test_a_huge_document_is_not_read(jobs: Path, tmp_path: Path, name: str) -> None:
    """Each stands for a document. They have a limit of 16 MiB; this one has 8 GB."""
    root = tmp_path / "jobs"
    shutil.copytree(jobs, root)
    planted = [one for one in names_of(root / "bad") if re.search(name, one)]
    for one in planted:
        if (root / "bad" / one).is_file():
            os.truncate(root / "bad" / one, 8 << 30)
    verbs = [verb.replace("J", "bad").replace("COPY", str(tmp_path / "copy")) for verb in VERBS]
    done = subprocess.run(
        [sys.executable, "-c", SPARSE.format(limit=LIMIT), str(root), *verbs],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.count("left") == len(VERBS), done.stdout + done.stderr
    assert "unexpected" not in done.stdout + done.stderr
    assert "good" in done.stdout
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != LIMIT  # only the child is limited

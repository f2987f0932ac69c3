"""Faults of this machine's file systems: no inodes left, a quota, gone read-only, unreadable."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outlast.job.events import Ended
from outlast_checkpoints.format.layout import CheckpointId
from tests.acceptance.jobs import PATIENCE, TOP, Training, assert_same, gone, outlast
from tests.crash.tracing import traced

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

INODES = 160


class Disk:
    """A file system in a file, with few inodes; an error in it makes the kernel stop writing."""

    def __init__(self, folder: Path, require: Callable[[str], str]) -> None:
        self._mount, self._umount = require("mount"), require("umount")
        self._e2fsck = require("e2fsck")
        self._image = folder / "disk.img"
        self.path = folder / "disk"
        self.path.mkdir()
        make = [require("mke2fs"), "-q", "-t", "ext4", "-N", str(INODES), str(self._image), "24M"]
        subprocess.run(make, check=True)

    def mount(self) -> None:
        options = ["-o", "loop,errors=remount-ro"]
        command = [self._mount, *options, str(self._image), str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = f"no disk image can be mounted here: {done.stderr.strip()}"
            if os.environ.get("OUTLAST_REQUIRE") == "all" and os.geteuid() == 0:
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)

    def fail(self) -> None:
        """Let the kernel find an error: from now on nothing can be written."""
        device = self._device()
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test")

    def repair(self) -> None:
        """Do what an operator does then."""
        self.unmount()
        done = subprocess.run([self._e2fsck, "-fy", self._image], capture_output=True, check=False)
        assert done.returncode in (0, 1), done
        self.mount()

    def unmount(self) -> None:
        if self._device():
            subprocess.run([self._umount, str(self.path)], check=True)

    def _device(self) -> str | None:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            device, place, *_ = line.split()
            if place == str(self.path):
                return Path(device).name
        return None

    def take_all_inodes(self) -> Path:
        """Make empty files until there can be no more."""
        folder = self.path / "files"
        folder.mkdir()
        for number in range(INODES):
            try:
                (folder / str(number)).touch()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return folder
        raise AssertionError("there is no end of inodes")


@pytest.fixture
def disk(tmp_path: Path, require: Callable[[str], str]) -> Iterator[Disk]:
    made = Disk(tmp_path, require)
    made.mount()
    yield made
    made.unmount()


@pytest.fixture
def training(disk: Disk, train: Callable[..., Training]) -> Iterator[Training]:
    """A training whose job is on the disk; its attempts have ended when the disk goes."""
    made = train("cnn", root=disk.path / "jobs", forked=True, options="--save-every epoch")
    yield made
    made.close()


def test_training_survives_missing_inodes_quota_and_a_read_only_disk(
    training: Training,
    disk: Disk,
    untouched: Callable[[str], Training],
    tmp_path: Path,
    require: Callable[[str], str],
) -> None:
    """Each fault for an epoch or two; after the last the job is resumed when it is mended."""

    def until_held(epoch: int) -> None:
        """Let it go on to the end of this epoch, which is not saved yet."""
        training.hold("epoch_end", epoch)
        training.until_held(process, "epoch_end", epoch)

    def until_saved(epoch: int) -> CheckpointId:
        return training.until_saved((epoch + 1) * 32)

    def until_told(text: str) -> None:
        def errors() -> list[str]:
            return [row["error"] for row in training.log(1) if row["event"] == "save_failed"]

        training.until(text, lambda: any(text in error for error in errors()))

    training.hold("epoch_end", 2)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 2)
    until_saved(1)

    files = disk.take_all_inodes()
    until_held(4)
    until_told("No space left on device")
    until_saved(1)
    assert max(training.store.ids()).step < 3 * 32
    shutil.rmtree(files)
    until_held(6)
    until_saved(4)
    until_held(7)
    until_saved(6)

    # No quota can be had on every kernel; strace answers as one that is used up.
    failing = training.folder / "checkpoints" / f"00-{8 * 32:012d}.1-0001" / "model.weights.h5"
    answer, log = "write:error=EDQUOT", tmp_path / "log"
    with traced(require("strace"), process.pid, log, "write", answer, failing) as tracer:
        until_held(8)
        until_told("quota exceeded")
        tracer.send_signal(signal.SIGINT)
    assert not training.store.storage.exists(f"checkpoints/{failing.parent.name}/manifest.json")
    until_held(10)
    saved = until_saved(9)

    disk.fail()
    training.hold("never")
    training.until("what is wrong", lambda: "Read-only file system" in training.output())
    training.until("the end of the attempt", lambda: gone(process))
    assert "Traceback" not in training.output()
    training.kill_supervisor()  # it would wait a minute for the disk before it leaves with 74
    disk.repair()
    assert saved in training.store.ids()
    assert [damage for one in training.store.ids() for damage in training.store.verify(one)] == []
    training.resume()
    training.end()
    assert_same(training, untouched("cnn"))
    ended = [e.event for e in training.journal.read() if isinstance(e.event, Ended)]
    assert ended[-1].exit_code == 0


VERBS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from outlast.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(arguments)
    except SystemExit as left:
        found.append([left.code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def all_of(verbs: list[list[str]], *, without_rights: str | None = None) -> list[Any]:
    """Return exit code, output and errors of command lines; root without its rights, if asked."""
    command = [sys.executable, "-c", VERBS, json.dumps(verbs)]
    if without_rights is not None and os.geteuid() == 0:
        command = [without_rights, "--bounding-set=-all", "--inh-caps=-all", *command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, cwd=TOP, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


HELLO = "print('hello')"


def test_an_unreadable_folder_is_named(tmp_path: Path, require: Callable[[str], str]) -> None:
    """It is named, with the reason; other jobs are shown beside it."""
    script = tmp_path / "train.py"
    script.write_text(HELLO)
    root = tmp_path / "jobs"
    assert outlast("run", "--root", root, "--name", "a", script).returncode == 0
    shutil.copytree(root / "a", root / "b")
    closed = root / "b" / "journal"
    closed.chmod(0)
    try:
        verbs = [
            ["list", "--root", str(root)],
            ["status", "--root", str(root), "b"],
            ["resume", "--root", str(root), "b"],
            ["copy", "--root", str(root), "b", str(tmp_path / "copy")],
            ["verify", str(root)],
            ["submit", "--root", str(closed), str(script)],
        ]
        listed, *others = all_of(verbs, without_rights=require("setpriv"))
        assert listed[0] == 0
        assert "succeeded" in listed[1]
        for (code, out, err), verb in zip(others, verbs[1:], strict=True):
            said = out + err
            assert code == 74 or verb[0] == "verify", (verb, said)
            assert code != 0, (verb, said)
            assert "Permission denied" in said, (verb, said)
            assert str(closed) in said, (verb, said)
            assert "Traceback" not in said, (verb, said)
    finally:
        closed.chmod(0o755)
    assert not (tmp_path / "copy" / "spec.json").exists()


@pytest.mark.parametrize("closed", ["train.py", "."], ids=["file", "folder"])
def test_an_unreadable_script_is_named(
    tmp_path: Path, require: Callable[[str], str], closed: str
) -> None:
    """As in a container, whose user is another than the one that wrote it."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "train.py").write_text(HELLO)
    (folder / closed).chmod(0)
    run = ["run", "--root", str(tmp_path / "jobs"), str(folder / "train.py")]
    try:
        ((code, _, said),) = all_of([run], without_rights=require("setpriv"))
    finally:
        (folder / closed).chmod(0o755)
    assert code == 2
    assert said.startswith(f"outlast: SCRIPT: user {os.geteuid()} cannot read '{folder}/train.py'")
    assert not (tmp_path / "jobs").exists()


def test_a_job_on_a_read_only_file_system(tmp_path: Path, require: Callable[[str], str]) -> None:
    """What only looks works; what has to write says why it cannot."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [require("mount"), "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if os.environ.get("OUTLAST_REQUIRE") == "all" and os.geteuid() == 0:
            pytest.fail(done.stderr, pytrace=False)
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    try:
        script = tmp_path / "train.py"
        script.write_text(HELLO)
        root = folder / "jobs"
        assert outlast("run", "--root", root, "--name", "a", script).returncode == 0
        subprocess.run([mount[0], "-o", "remount,ro", str(folder)], check=True)
        looks = ("list", "status", "logs", "history", "checkpoints", "verify")
        looking = [
            [verb, "--root", str(root), *(["a"] if verb != "list" else [])] for verb in looks
        ]
        looking.append(["copy", "--root", str(root), "a", str(tmp_path / "copy")])
        writing = [
            ["prune", "--root", str(root), "a"],
            ["submit", "--root", str(root), "--name", "b", str(script)],
            ["copy", str(tmp_path / "copy"), str(folder / "again")],
        ]
        found = all_of([*looking, *writing])
        assert [code for code, *_ in found[: len(looking)]] == [0] * len(looking), found
        for code, out, err in found[len(looking) :]:
            assert (code, out) == (74, "")
            assert "Read-only file system" in err
            assert str(folder) in err
    finally:
        subprocess.run([require("umount"), str(folder)], check=True)

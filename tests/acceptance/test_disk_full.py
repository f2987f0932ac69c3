"""A disk that is really full: the training continues or stops by policy, and says so."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outlast.job.events import Ended
from tests.acceptance.jobs import Training, assert_same, gone, outlast

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

SIZE = 8 << 20


@pytest.fixture
def small_disk(tmp_path: Path, require: Callable[[str], str]) -> Iterator[Path]:
    """A file system of some megabytes."""
    mount, umount = require("mount"), require("umount")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [mount, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = f"a small disk cannot be mounted here: {done.stderr.strip()}"
        if os.environ.get("OUTLAST_REQUIRE") == "all" and os.geteuid() == 0:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    yield folder
    subprocess.run([umount, str(folder)], check=True)


class Filler:
    """A file that takes what space is left."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "filler"

    def fill(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        self._path.unlink()


@pytest.fixture
def on_small_disk(
    small_disk: Path, train: Callable[..., Training]
) -> Iterator[Callable[..., Training]]:
    """Return a function as `train`, whose job lives on the small disk."""
    made: list[Training] = []

    def on_small_disk(script: str, **options: str) -> Training:
        made.append(train(script, root=small_disk / "jobs", forked=True, **options))
        return made[-1]

    yield on_small_disk
    for training in made:
        training.close()


def test_training_continues_when_the_disk_is_full(
    on_small_disk: Callable[..., Training], small_disk: Path, untouched: Callable[[str], Training]
) -> None:
    """Three epochs cannot be saved. Nothing is lost of what was, nor of the training."""
    training = on_small_disk("cnn")
    filler = Filler(small_disk)
    # Its output, too, is more than what is left of the last block on the disk.
    (training.control / "talk").touch()
    training.hold("epoch_end", 3)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 3)
    training.until_saved(3 * 32)
    saved = training.store.ids()
    filler.fill()
    training.hold("epoch_end", 7)
    training.until_held(process, "epoch_end", 7)
    still = training.store.ids()
    assert set(still) >= set(saved[-1:])
    assert max(still).step < 5 * 32
    assert [damage for found in still for damage in training.store.verify(found)] == []
    filler.empty()
    training.hold("epoch_end", 9)
    training.until_held(process, "epoch_end", 9)
    training.until_saved(9 * 32)
    # Killed now, it has something to resume from that was saved when there was space again.
    process.kill()
    training.until("its end", lambda: gone(process))
    training.hold("never")
    training.end()
    assert_same(training, untouched("cnn"))
    told = [row for row in training.log(1) if row["event"] == "save_failed"]
    assert told
    assert "No space left" in told[0]["error"]
    assert str(training.folder) in told[0]["error"]
    assert any("training continues" in row.get("hint", "") for row in told)


def test_training_stops_when_the_disk_is_full_if_so_configured(
    on_small_disk: Callable[..., Training], small_disk: Path, untouched: Callable[[str], Training]
) -> None:
    """With on_save_error "stop" the attempt ends with exit code 74 and says why; with space again
    the next one goes on."""
    options = "--save-every 7,epoch --on-save-error stop"
    training = on_small_disk("cnn", options=options)
    filler = Filler(small_disk)
    training.hold("epoch_end", 3)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 3)
    filler.fill()
    training.hold("never")
    training.until("the end of the attempt", lambda: gone(process))
    filler.empty()
    training.end()
    assert_same(training, untouched("cnn"))
    ended = [e.event for e in training.journal.read() if isinstance(e.event, Ended)]
    assert [event.exit_code for event in ended] == [74, 0]
    # How much of the story finds a place on a full disk is a matter of bytes; this needs none.
    assert "storage failed" in training.output() or "No space left" in training.output()


def test_a_job_cannot_start_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """There is no job yet: the command line says what is the matter."""
    Filler(small_disk).fill()
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit('never started')")
    done = outlast("run", "--root", small_disk / "jobs", "--name", "a", script)
    assert done.returncode == 74
    assert "No space left" in done.stderr
    assert str(small_disk) in done.stderr
    assert "Traceback" not in done.stderr

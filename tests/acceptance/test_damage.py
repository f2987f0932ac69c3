"""Whatever happens to the newest checkpoint's files: it is named, and the next older is used."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outlast_checkpoints.errors import CheckpointDamaged
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance.jobs import Training, assert_same, gone, outlast
from tests.crash.example import snapshot
from tests.support.resealed import deadly_hdf5, reseal

FILES = ("manifest.json", "model.weights.h5", "state.h5", "model.json")


@pytest.fixture
def small(job_root: Path) -> Path:
    """A job with three small checkpoints."""
    folder = job_root / "small"
    store = CheckpointStore(open_storage(folder), attempt=1)
    store.begin()
    for step in (1, 2, 3):
        store.save(snapshot(step), reason="step")
    return folder


@pytest.fixture
def trained(untouched: Callable[[str], Training], tmp_path: Path) -> Path:
    """A job that really trained, for this test alone to damage."""
    folder = tmp_path / "trained"
    shutil.copytree(untouched("cnn").folder, folder)
    return folder


class Newest:
    """The newest checkpoint of a job that nobody trains any more."""

    def __init__(self, job: Path) -> None:
        self.storage = open_storage(job)
        *_, self.older, self.id = CheckpointStore(self.storage).ids()
        self.folder = job / "checkpoints" / str(self.id)

    def found(self) -> tuple[CheckpointId, list[tuple[str, str]]]:
        """Return what a resume would use, and which files it says are damaged."""
        latest, damages = CheckpointStore(self.storage).latest()
        assert latest is not None
        return latest.id, [(damage.checkpoint, damage.file) for damage in damages]

    def assert_named(self, file: str, what: str) -> None:
        assert self.found() == (self.older, [(str(self.id), file)]), what

    def assert_good(self) -> None:
        assert self.found() == (self.id, [])


def flips(size: int, everything: bool, seed: int) -> Iterator[tuple[int, int]]:
    """Give (position, bits to flip) in a file of `size` bytes: each byte, or a sample of them.

    The sample holds the first 2048 bytes and the last 64, where HDF5 and JSON are picky.
    """
    rng = random.Random(seed)
    positions = set(range(size))
    if not everything and size > 4000:
        middle = rng.sample(range(2048, size - 64), 400)
        positions = {*range(2048), *range(size - 64, size), *middle}
    for position in sorted(positions):
        yield position, rng.choice([1 << rng.randrange(8), 0xFF])


def flip_each(newest: Newest, file: str, *, everything: bool) -> int:
    """Flip bytes one by one and put them back; return how many."""
    path = newest.folder / file
    content = path.read_bytes()
    count = 0
    with path.open("r+b", buffering=0) as handle:
        for position, bits in flips(len(content), everything, seed=len(content)):
            handle.seek(position)
            handle.write(bytes([content[position] ^ bits]))
            newest.assert_named(file, f"byte {position} of {file} with {bits:#x} flipped")
            handle.seek(position)
            handle.write(content[position : position + 1])
            count += 1
    newest.assert_good()
    return count


@pytest.mark.parametrize("file", FILES)
def test_each_byte_flipped(file: str, small: Path) -> None:
    """Every byte of every file, of a checkpoint small enough for that."""
    count = flip_each(Newest(small), file, everything=True)
    print(f"{file}: each of {count} bytes flipped")
    assert count == (Newest(small).folder / file).stat().st_size


@pytest.mark.acceptance
@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_bytes_of_a_real_checkpoint_flipped(file: str, trained: Path) -> None:
    newest = Newest(trained)
    count = flip_each(newest, file, everything=(newest.folder / file).stat().st_size < 4000)
    print(f"{file}: {count} bytes flipped")
    assert count > 500


@pytest.mark.parametrize("file", FILES)
def test_truncated_or_grown(file: str, small: Path) -> None:
    """Cut off at many lengths, emptied, or with something added."""
    newest = Newest(small)
    path = newest.folder / file
    content = path.read_bytes()
    size = len(content)
    lengths = {*range(0, size, 29), *range(min(size, 16)), *range(max(0, size - 16), size)}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        newest.assert_named(file, f"{file} cut to {length} bytes")
    for extra in (b"\0", b"\n", b" ", content):
        path.write_bytes(content + extra)
        newest.assert_named(file, f"{file} with {len(extra)} bytes more")
    path.write_bytes(content)
    newest.assert_good()
    print(f"{file}: cut to each of {len(lengths)} lengths")


@pytest.mark.parametrize("file", FILES)
def test_deleted_or_replaced(file: str, small: Path) -> None:
    newest = Newest(small)
    path = newest.folder / file
    aside = small / "aside"
    path.rename(aside)
    if file == "manifest.json":
        # Without it nothing was ever committed there: no damage, and nothing to go on from.
        assert newest.found() == (newest.older, [])
        assert CheckpointStore(newest.storage).orphans() == [str(newest.id)]
    else:
        newest.assert_named(file, f"{file} deleted")
    path.mkdir()
    newest.assert_named(file, f"{file} replaced by a folder")
    path.rmdir()
    shutil.copy(newest.folder.parent / str(newest.older) / file, path)
    newest.assert_named(file, f"{file} replaced by that of an older checkpoint")
    path.unlink()
    path.symlink_to("nowhere")
    if file != "manifest.json":
        newest.assert_named(file, f"{file} replaced by a link to nowhere")
    path.unlink()
    aside.rename(path)
    newest.assert_good()


def test_all_damaged(small: Path) -> None:
    """With no good checkpoint left nothing is started over: the training would be thrown away."""
    store = CheckpointStore(open_storage(small), attempt=2)
    for checkpoint in store.ids():
        (small / "checkpoints" / str(checkpoint) / "state.h5").write_bytes(b"")
    with pytest.raises(CheckpointDamaged, match=r"00-000000000003\.0-0001.*state\.h5"):
        store.begin()
    assert not (small / "attempts" / "0002" / "origin.json").exists()


@pytest.mark.acceptance
@pytest.mark.slow
def test_resume_on_a_damaged_newest(
    train: Callable[..., Training], untouched: Callable[[str], Training]
) -> None:
    """A training that loses its newest checkpoint, four times in different ways, ends exactly."""
    training = train("cnn", forked=True)

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)

    def make_deadly(path: Path) -> None:
        """Its hashes are right, and HDF5's library crashes on it."""
        newest = CheckpointId.parse(path.parent.name)
        assert newest is not None
        reseal(open_storage(training.folder), newest, path.name, deadly_hdf5())

    ways = [
        ("model.weights.h5", flip),
        ("state.h5", make_deadly),
        ("model.json", Path.unlink),
        ("manifest.json", flip),
    ]
    expected = []
    for turn, (file, damage) in enumerate(ways):
        epoch = 4 + 4 * turn
        training.hold("epoch_end", epoch)
        training.resume() if turn else training.start()
        process = training.attempt(turn + 1)
        training.until_held(process, "epoch_end", epoch)
        training.kill_supervisor()
        process.kill()
        training.until("its end", lambda process=process: gone(process))
        *_, older, newest = training.store.ids()
        damage(training.folder / "checkpoints" / str(newest) / file)

        told = outlast("verify", "--root", training.root, training.script)
        assert told.returncode == 65, told
        assert str(newest) in told.stdout + told.stderr
        assert file in told.stdout + told.stderr
        assert "Traceback" not in told.stderr

        expected.append((str(newest), file, str(older)))
    training.hold("never")
    training.resume()
    training.end()
    assert_same(training, untouched("cnn"))
    # The log of each attempt that resumed says what it found, and the one it took instead.
    for attempt, (newest, file, older) in enumerate(expected, 2):
        log = training.log(attempt)
        damaged = [(row["checkpoint"], row["file"]) for row in log if "damaged" in row["event"]]
        assert damaged == [(newest, file)]
        assert [row["checkpoint"] for row in log if row["event"] == "resumed"] == [older]

"""Malicious HDF5 files: each one is refused with a clear error and little memory.

Files without an array table that demand memory or depth are read in one process with limits, as the
limited child does. What kills HDF5's library kills that child, and counts as damage.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from outlast_checkpoints.arrays import array_table, hdf5_child, hdf5_file
from outlast_checkpoints.errors import CheckpointDamaged, FormatError, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot
from tests.support import array_mutations
from tests.support.resealed import deadly_hdf5, reseal, stripped, without_table

# Reads every file of a folder, with 1.5 GiB of address space beyond what is taken at the start.
READER = """
import json, resource, sys, time
from pathlib import Path
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.arrays import array_table
from outlast_checkpoints.arrays.hdf5_layout import layout_of
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = taken + (3 << 29)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    try:
        with open(path, "rb") as file:
            table = layout_of(file, path.name)
        told = array_table.problem(table, path.stat().st_size) or "read"
    except FormatError as error:
        told = error.fields["reason"]
    except MemoryError:
        told = "MemoryError"
    found[path.stem] = [told, time.process_time() - began]
print(json.dumps(found))
"""


def plain(path: Path, **arrays: Any) -> bytearray:
    """Write a valid file, to be changed."""
    hdf5_file.write_arrays(path, hdf5_file.ArrayFile(arrays))
    return bytearray(path.read_bytes())


def claim(path: Path, shape: tuple[int, ...], size: int) -> None:
    """Make a small array claim another shape and size."""
    content = plain(path, x=np.arange(64, dtype=np.uint8).reshape(8, 8))
    old = b"".join((8).to_bytes(8, "little") for _ in range(2))
    new = b"".join(number.to_bytes(8, "little") for number in shape)
    assert content.count(old) >= 1
    content = content.replace(old, new)
    layout_size = (64).to_bytes(8, "little")
    with h5py.File(path) as file:
        where = file["x"].id.get_offset().to_bytes(8, "little") + layout_size
    assert content.count(where) == 1
    path.write_bytes(content.replace(where, where[:8] + size.to_bytes(8, "little")))


def thousand_terabytes(path: Path) -> None:
    claim(path, (10**8, 10**7), 10**15)


def overflowing_shape(path: Path) -> None:
    claim(path, (2**32, 2**32), 0)


def overflowing_to_what_is_there(path: Path) -> None:
    claim(path, (2**32 + 8, 2**61), 64)


def beyond_the_end(path: Path) -> None:
    content = plain(path, x=np.arange(1000, dtype=np.uint8))
    with h5py.File(path) as file:
        where = file["x"].id.get_offset().to_bytes(8, "little") + (1000).to_bytes(8, "little")
    path.write_bytes(content.replace(where, (2**40).to_bytes(8, "little") + where[8:]))


def many_arrays_of_the_same_bytes(path: Path) -> None:
    """A file of a few MB that expands to a few GB."""
    size = 1 << 20
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(size, np.uint8)
        for index in range(4000):  # none of them has a place in the file yet
            file.create_dataset(f"y{index}", (size,), "u1")
    with h5py.File(path) as file:
        there = file["x"].id.get_offset().to_bytes(8, "little") + size.to_bytes(8, "little")
    nowhere = b"\xff" * 8 + size.to_bytes(8, "little")
    content = path.read_bytes()
    assert content.count(nowhere) == 4000
    path.write_bytes(content.replace(nowhere, there))


def very_deep(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        group = file
        for _ in range(3000):
            group = group.create_group("g")


def linked_into_itself(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in "abcdefgh":
            group = file.create_group(name)
            for other in "abcdefgh":
                group[other] = file["/"]


def one_text_in_many_attributes(path: Path) -> None:
    """All attributes refer to one string in the file's global heap."""
    text = "x" * (1 << 20)
    with h5py.File(path, "w") as file:
        file.attrs["a"] = text
        for index in range(2000):
            file.create_group(f"g{index}").attrs["a"] = f"{index:05d}"
    content = bytearray(path.read_bytes())
    heaps = {found.start().to_bytes(8, "little") for found in re.finditer(b"GCOL", content)}

    def references(length: int) -> list[int]:
        """Return the references to strings of the given size: length, heap, place in it."""
        pattern = re.escape(length.to_bytes(4, "little")) + b"(?s:(.{8}))"
        return [m.start() for m in re.finditer(pattern, content) if m[1] in heaps]

    (first,) = references(1 << 20)
    others = references(5)
    assert len(others) == 2000
    for at in others:
        content[at : at + 16] = content[first : first + 16]
    path.write_bytes(content)


def huge_attribute(path: Path) -> None:
    """A string of fixed length that claims 2 GB."""
    with h5py.File(path, "w") as file:
        kind = h5py.string_dtype("utf-8", 77)
        file.create_group("g").attrs.create("a", "text", dtype=kind)
    content = path.read_bytes()
    old, new = (77).to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "little")
    assert old in content
    path.write_bytes(content.replace(old, new))


def compressed_bomb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (1 << 33,), "u1", chunks=(1 << 20,), compression="gzip")


def unknown_filter(path: Path) -> None:
    with h5py.File(path, "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((4,))
        creation.set_filter(41234, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
        h5py.h5d.create(
            file.id, b"x", h5py.h5t.STD_U8LE, h5py.h5s.create_simple((8,)), dcpl=creation
        )


def named_type(path: Path) -> None:
    with h5py.File(path, "w") as file:
        kind = h5py.h5t.STD_U8LE.copy()
        kind.commit(file.id, b"kind")
        h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((8,)))
        del file["kind"]  # the dataset goes on using it


def structure_as_bfloat16(path: Path) -> None:
    with h5py.File(path, "w") as file:
        pair = np.zeros(4, [("a", "u1"), ("b", "u1")])
        file.create_dataset("x", data=pair).attrs["dtype"] = "bfloat16"


def references_to_regions(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["good"] = np.ones(4)
        file.create_dataset("x", (2,), h5py.regionref_dtype)[0] = file["good"].regionref[:2]


def growing_lists(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (2,), h5py.vlen_dtype(np.int32))[0] = [1, 2, 3]


HOSTILE: list[Callable[[Path], None]] = [
    thousand_terabytes,
    overflowing_shape,
    overflowing_to_what_is_there,
    beyond_the_end,
    many_arrays_of_the_same_bytes,
    very_deep,
    linked_into_itself,
    one_text_in_many_attributes,
    huge_attribute,
    compressed_bomb,
    unknown_filter,
    named_type,
    structure_as_bfloat16,
    references_to_regions,
    growing_lists,
]


def test_hostile_files_are_refused_within_little_memory_and_time(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for make in HOSTILE:
        make(folder / f"{make.__name__}.h5")
    plain(folder / "good.h5", x=np.arange(5))
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(json.dumps(told, indent=1))
    assert told.pop("good")[0] == "read"
    assert set(told) == {make.__name__ for make in HOSTILE}
    assert [name for name, (what, _) in told.items() if what in ("read", "MemoryError")] == []
    assert [name for name, (_, seconds) in told.items() if seconds > 20] == []


@pytest.fixture
def job(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(open_storage(tmp_path / "job"), attempt=1)
    store.begin()
    store.save(sample_snapshot(1), reason="step")
    return store


@pytest.mark.parametrize("name", ["model.weights.h5", "state.h5"])
@pytest.mark.parametrize("how", ["flipped", "longer", "cut", "another"])
def test_nothing_parses_a_file_whose_hash_is_wrong(
    job: CheckpointStore, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    found = job.ids()[0]
    path = job.storage.local_path(layout.checkpoint_file(found, name))
    assert path is not None
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    elif how == "longer":
        content += b"\0"
    elif how == "cut":
        del content[-1]
    else:
        overflowing_shape(path.with_name("hostile"))
        content = bytearray(path.with_name("hostile").read_bytes().ljust(len(content), b"\0"))
    path.write_bytes(content)
    parsed: list[str] = []
    decode = array_table.decode

    def watched(text: bytes, end: int, name: str) -> Any:
        parsed.append(name)
        return decode(text, end, name)

    monkeypatch.setattr(array_table, "decode", watched)
    reader = CheckpointStore(job.storage)
    with pytest.raises(CheckpointDamaged):
        reader.load(found)
    assert [damage.file for damage in reader.verify(found)] == [name]
    assert reader.latest()[0] is None
    assert name not in parsed


def endless(path: Path) -> None:
    """The size of a text in the global heap, with which HDF5 1.14 never ends."""
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(9.0)
        for index in range(3):
            file.create_group(f"g{index}").attrs["a"] = f"text number {index}"
    content = bytearray(path.read_bytes())
    content[content.index(b"GCOL") + 24] = 255
    path.write_bytes(content)


def test_what_kills_or_stalls_hdf5_is_a_format_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.h5").write_bytes(deadly_hdf5())
    endless(tmp_path / "endless.h5")
    size = (tmp_path / "deadly.h5").stat().st_size
    # With another version of HDF5 it may be refused; it must not end this process.
    with pytest.raises(FormatError, match=r"library was ended by SIG|Unable to"):
        hdf5_child.table_of(tmp_path / "deadly.h5", size, "deadly.h5")
    monkeypatch.setattr(hdf5_child, "SECONDS", 2)
    size = (tmp_path / "endless.h5").stat().st_size
    with pytest.raises(FormatError, match=r"did not come to an end|Unable to"):
        hdf5_child.table_of(tmp_path / "endless.h5", size, "endless.h5")


def test_a_reader_that_others_end_or_that_cannot_start_says_nothing_about_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.h5").write_bytes(b"")
    for number in (signal.SIGTERM, signal.SIGKILL):
        monkeypatch.setattr(hdf5_child, "_asked", lambda file, n=number: (b"", -n))
        with pytest.raises(StorageError, match=f"ended by {number.name}"):
            hdf5_child.table_of(tmp_path / "x.h5", 0, "x.h5")
    monkeypatch.undo()
    for program, said in (
        ("/bin/false", "ended with code 1"),
        ("/no/such/file", "no process could"),
    ):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(StorageError, match=said):
            hdf5_child.table_of(tmp_path / "x.h5", 0, "x.h5")


LIMITED = """
import json, os, platform, resource, signal, socket, sys
from outlast_checkpoints.arrays import hdf5_child
hdf5_child._limit()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
done = []
for what in (
    lambda: open("/etc/passwd"),
    lambda: open(sys.argv[1], "w"),
    lambda: socket.socket(),
    lambda: os.pipe(),
    lambda: os.write(int(sys.argv[2]), b"x"),
    lambda: bytearray(2 << 30),
    *(
        (
            lambda: os.unlink(sys.argv[3]),
            lambda: os.rename(sys.argv[3], sys.argv[1]),
            lambda: os.chmod(sys.argv[3], 0o777),
            lambda: os.kill(os.getppid(), 0),
            lambda: os.execv(sys.executable, ["python"]),
            lambda: os.fork(),
        )
        if platform.machine() in ("x86_64", "aarch64")
        else ()
    ),
):
    try:
        what()
        done.append(True)
    except (OSError, MemoryError):
        done.append(False)
os.write(1, json.dumps(done).encode())
"""


def test_the_child_can_only_read_what_it_was_given(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        done = subprocess.run(
            [
                *(sys.executable, "-c", LIMITED, str(tmp_path / "new"), str(file.fileno())),
                str(tmp_path / "file"),
            ],
            capture_output=True,
            text=True,
            check=True,
            pass_fds=[file.fileno()],
        )
    told = json.loads(done.stdout)
    assert set(told) == {False}
    assert len(told) >= 6
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b""


def tables(path: Path) -> Iterator[bytes]:
    """Yield hostile files that have an array table."""
    whole = bytes(plain(path, x=np.arange(9.0), y=np.ones(3)))
    path.unlink()
    hdf5 = without_table(whole)
    good = msgspec.json.decode(whole[len(hdf5) : -array_table.FRAME])
    x, y = good["arrays"]
    for arrays in (
        [{**x, "shape": [10**9, 10**9]}],
        [{**x, "shape": [2**32, 2**32]}],
        [{**x, "offset": len(hdf5) - 8}],
        [{**x, "offset": -8}],
        [{**x, "dtype": "|O"}],
        [x, {**y, "offset": x["offset"] + 8}],
        [x, {**x, "name": "again"}],
        [x, {**y, "name": "x"}],
        [x, {**y, "name": "x/y"}],
        [{**x, "name": "../x"}, {**y, "name": "/y"}],
        [{**x, "more": 1}],
        [{"name": f"e{i}", "dtype": "<f4", "shape": [0], "offset": 0} for i in range(700_000)],
    ):
        text = msgspec.json.encode({**good, "arrays": arrays})
        yield hdf5 + text + len(text).to_bytes(8, "little") + whole[-16:]
    yield hdf5 + (2**60).to_bytes(8, "little") + whole[-16:]
    yield hdf5 + (5).to_bytes(8, "little") + whole[-16:]


def test_a_hostile_newest_checkpoint_is_named_and_the_older_one_is_used(
    job: CheckpointStore, tmp_path: Path
) -> None:
    older = job.ids()[0]
    job.save(sample_snapshot(2), reason="step")
    newest = job.ids()[-1]
    for content in tables(tmp_path / "x.h5"):
        reseal(job.storage, newest, "state.h5", content)
        reader = CheckpointStore(job.storage)
        damages = reader.verify(newest)
        assert [(one.checkpoint, one.file) for one in damages] == [(str(newest), "state.h5")]
        with pytest.raises(CheckpointDamaged, match=r"state\.h5"):
            reader.load(newest)
    reseal(job.storage, newest, "state.h5", deadly_hdf5())
    resumed = CheckpointStore(job.storage, attempt=2)
    found, damages = resumed.begin()
    assert found is not None
    assert found.checkpoint == str(older)
    assert [(one.checkpoint, one.file) for one in damages] == [(str(newest), "state.h5")]


def test_a_damaged_part_of_hdf5_harms_nobody_who_has_the_table(
    job: CheckpointStore, tmp_path: Path
) -> None:
    """HDF5's own bytes are not read: any of them may change."""
    found = job.ids()[0]
    before = job.load(found)
    path = Path(job.storage.root) / layout.checkpoint_file(found, "state.h5")
    whole = path.read_bytes()
    content = bytearray(whole)
    table = array_table.decode(
        whole[len(without_table(whole)) : -array_table.FRAME], len(whole), "state.h5"
    )
    assert table is not None
    arrays = {i for one in table.arrays for i in range(one.offset, one.offset + one.size)}
    for index in set(range(len(without_table(whole)))) - arrays:
        content[index] ^= 255
    reseal(job.storage, found, "state.h5", bytes(content))
    reader = CheckpointStore(job.storage)
    assert reader.verify(found) == []
    after = reader.load(found).files["state.h5"]
    assert {n: a.tobytes() for n, a in after.items()} == {
        n: a.tobytes() for n, a in before.files["state.h5"].items()
    }


def test_checkpoints_of_an_older_outlast_are_read_through_the_child(job: CheckpointStore) -> None:
    found = job.ids()[0]
    before = job.load(found)
    stripped(job.storage, found)
    reader = CheckpointStore(job.storage)
    assert reader.verify(found) == []
    after = reader.load(found)
    assert after.attributes == before.attributes
    for name, arrays in before.files.items():
        assert sorted(after.files[name]) == sorted(arrays)
        for path, array in arrays.items():
            assert after.files[name][path].dtype == array.dtype
            assert np.array_equal(after.files[name][path], array)


def test_changed_files_end_in_arrays_or_a_format_error() -> None:
    told = array_mutations.read_all(range(2000))
    assert min(told["read"], told["refused"], told["foreign"]) > 100

"""Malicious HDF5 files: each one is refused with a clear error and little memory.

Files that demand memory or depth are read in one process with limits.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from outlast_checkpoints.arrays import hdf5_file
from outlast_checkpoints.errors import CheckpointDamaged
from outlast_checkpoints.format import layout, manifest
from outlast_checkpoints.format.manifest import FileEntry
from outlast_checkpoints.format.sealed_json import checksum
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot

# Reads every file of a folder, with 1.5 GiB of address space beyond what is taken at the start.
READER = """
import json, resource, sys, time
from pathlib import Path
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.arrays.hdf5_file import read_file
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = taken + (3 << 29)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    try:
        read_file(memoryview(bytearray(path.read_bytes())), path.name)
        told = "read"
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
def test_hdf5_never_sees_a_file_whose_hash_is_wrong(
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
    opened: list[str] = []
    real = h5py.File

    def watched(where: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(where).name)
        return real(where, *args, **kwargs)

    monkeypatch.setattr(hdf5_file.h5py, "File", watched)
    reader = CheckpointStore(job.storage)
    with pytest.raises(CheckpointDamaged):
        reader.load(found)
    assert [damage.file for damage in reader.verify(found)] == [name]
    assert reader.latest()[0] is None
    assert name not in opened


def test_hostile_content_with_the_right_hash_is_damage_too(job: CheckpointStore) -> None:
    """An attacker who writes manifests can name any content. Reading it raises an error."""
    found = job.manifest(job.ids()[0])
    path = job.storage.local_path(layout.checkpoint_file(found.id, "state.h5"))
    assert path is not None
    path.unlink()
    many_arrays_of_the_same_bytes(path)
    content = path.read_bytes()
    entry = FileEntry("state.h5", len(content), checksum(content))
    files = tuple(entry if file.name == entry.name else file for file in found.files)
    job.storage.replace(
        layout.manifest(found.id), manifest.encode(msgspec.structs.replace(found, files=files))
    )
    with pytest.raises(CheckpointDamaged, match="claims 1048576 bytes"):
        CheckpointStore(job.storage).load(found.id)

"""Mutations of array files: case by case the same, from a number.

Each case reads a changed file as a resume does. It must end in arrays that lie in the file, or in a
`FormatError`; a file without a table goes to `foreign` instead of the limited child.
"""

from __future__ import annotations

import functools
import json
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlast_checkpoints.arrays import array_reader, array_table, hdf5_child
from outlast_checkpoints.arrays.array_table import ArrayTable
from outlast_checkpoints.arrays.hdf5_file import file_pieces, write_arrays
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.snapshot import ArrayFile
from tests.support.resealed import without_table

SLOW = 5.0  # seconds of a case
_EXPORTED = 8  # one case in so many is also written anew, as `export` does

# What nobody expects in a table.
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**40, 1.5, "", "x",
    "a/b", "/a", "a//b", ".", "..", "\0", "\ud800", "é" * 5000, "x/" * 70 + "y", "<f4", ">f8",
    "|b1", "bfloat16", "|O", "<U4", "|V8", "<M8[s]", "O", "f4,f4", "<f16:63", [], [0], [1],
    [2**40] * 3, [0, 2**62, 2**62], [1] * 33, [-1], [2**32, 2**32], [[1]], {}, {"a": 1},
    {"": {}}, {"group": "a", "name": "b", "text": "c"},
    [{"group": "big", "name": "b", "text": "c"}], [{"group": "", "name": "", "text": ""}],
    [{"group": "", "name": "a", "text": "b\0"}],
]  # fmt: skip


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Return the files that are changed: small, with every kind of array, and with attributes."""
    files = (
        ArrayFile({"x": np.arange(3.0)}),
        ArrayFile(
            {
                f"layers/dense_{i}/vars/{j}": np.full((3, 5), i, "f4")
                for i in range(9)
                for j in "01"
            },
            {"layers": {"name": "é"}, "": {"root": "1"}},
        ),
        ArrayFile(
            {
                **{f"kinds/{name}": np.ones(5, kind) for name, kind in array_table._DTYPES.items()},
                "tree/empty": np.zeros((0, 4)),
                "tree/scalar": np.float32(1),
                "big": np.arange(9000),
            }
        ),
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            write_arrays(Path(folder, str(i)), file)
            found.append(Path(folder, str(i)).read_bytes())
    return tuple(found)


def mutated(case: int) -> bytes:
    """Return the changed file of a case."""
    draw = random.Random(case)
    whole = bytearray(draw.choice(seeds()))
    length = array_table.claimed(bytes(whole), len(whole), "seed")
    assert length is not None
    start, end = len(whole) - length, len(whole) - array_table.FRAME
    match draw.randrange(8):
        case 0 | 1:
            return bytes(_flipped(draw, whole, start, end))
        case 2:
            return bytes(_flipped(draw, whole, end, len(whole)))
        case 3:
            return bytes(_flipped(draw, whole, 0, start))
        case 4:
            return bytes(_spliced(draw, whole))
        case _:
            table = json.loads(bytes(whole[start:end]))
            for _ in range(draw.randint(1, 3)):
                table = _put(draw, table)
            text = json.dumps(table).encode()
            frame = len(text).to_bytes(8, "little") + whole[-16:]
            return bytes(whole[:start] + text + frame)


def _flipped(draw: random.Random, content: bytearray, start: int, end: int) -> bytearray:
    for _ in range(draw.choice((1, 1, 2, 8))):
        content[draw.randrange(start, end)] = draw.choice(
            (0, 1, 32, 127, 128, 255, draw.randrange(256))
        )
    return content


def _spliced(draw: random.Random, content: bytearray) -> bytearray:
    """Cut something out, or put something in, or end early."""
    at = draw.randrange(len(content))
    match draw.randrange(3):
        case 0:
            del content[at : at + draw.choice((1, 8, 24, 300))]
        case 1:
            content[at:at] = draw.randbytes(draw.choice((1, 8, 24, 300)))
        case _:
            del content[at:]
    return content


def _put(draw: random.Random, value: Any) -> Any:
    """Return JSON data with something unexpected somewhere in it."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(VALUES)
    if isinstance(value, dict):
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {**value, draw.choice(("", "x", key * 2)): draw.choice(VALUES)}
        return {**value, key: _put(draw, value[key])}
    at = draw.randrange(len(value))
    if draw.random() < 0.2:  # a second one like another
        return [*value, value[at]]
    return [*value[:at], _put(draw, value[at]), *value[at + 1 :]]


def read(case: int, foreign: Callable[[bytes], ArrayTable]) -> str:
    """Read the file of a case; return "read", "refused" or "foreign". Raises for anything else."""
    data = mutated(case)
    asked: list[int] = []

    def table_of(local: Path, size: int, path: str) -> ArrayTable:
        asked.append(size)
        return foreign(data)

    content = memoryview(bytearray(data))
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5_child, "table_of", table_of)
        try:
            found = array_reader.read_file(content, lambda: nullcontext(Path("nowhere")), "file")
            _check(content, found)
            if case % _EXPORTED == 0:
                assert sum(map(len, file_pieces(found))) > 0
            told = "read"
        except FormatError:
            told = "refused"
    took = time.monotonic() - began
    assert took < SLOW, f"{took:.1f} s"
    return "foreign" if asked else told


def _check(content: memoryview, found: ArrayFile) -> None:
    """Touch every byte of the arrays, which together are no more than the file has."""
    size = 0
    for array in found.arrays.values():
        assert array.nbytes == math.prod(array.shape) * array.dtype.itemsize
        size += array.nbytes
        array.tobytes()
        if array.dtype == bool:
            assert not array.size or array.view(np.uint8).max() <= 1
    assert size <= len(content)


def no_foreign(data: bytes) -> ArrayTable:
    """Refuse a file without a table."""
    raise FormatError(path="file", reason="it has no array table")


def through_hdf5(data: bytes) -> ArrayTable:
    """Ask HDF5's library, in the limited child."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return hdf5_child.table_of(Path(file.name), len(data), "file")


def read_all(cases: Iterable[int]) -> Counter[str]:
    """Read the files of cases without HDF5; return how often each came to what."""
    return Counter(read(case, no_foreign) for case in cases)


def read_without_table(case: int) -> str:
    """Read a changed file that has no table through the limited child, as `read` does."""
    draw = random.Random(case)
    content = bytearray(without_table(draw.choice(seeds())))
    data = bytes(_flipped(draw, content, 0, len(content)))
    began = time.monotonic()
    try:
        table = through_hdf5(data)
        _check(memoryview(data), array_table.taken_from(memoryview(data), table))
        told = "read"
    except FormatError as error:
        reason = str(error.fields["reason"])
        told = reason if reason.startswith("HDF5's library") else "refused"
    assert time.monotonic() - began < hdf5_child.SECONDS + SLOW
    return told

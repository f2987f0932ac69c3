"""Writes and reads arrays without HDF5, which is slow and which most seeds do not need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from outlast_checkpoints.arrays.file_hasher import FileHasher
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.snapshot import ArrayFile


def write_arrays(
    path: Path,
    file: ArrayFile,
    *,
    past_cache: bool,
    release_written: bool,
    hasher: FileHasher,
    follow: Callable[[Path, int], Callable[[int], None] | None] | None,
) -> tuple[int, str]:
    file = file.taken() if release_written else file
    arrays = {name: np.asarray(value) for name, value in sorted(file.arrays.items())}
    head = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    data = json.dumps(head).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())
    with open(path, "xb", buffering=0) as out:
        grown = follow(path, len(data)) if follow else None
        out.write(data)
        if grown:
            grown(len(data))
    hasher.update(data)
    return len(data), hasher.xxh3


def read_file(content: memoryview, fetch: object, path: str) -> ArrayFile:
    head, _, data = bytes(content).partition(b"\n")
    arrays, at = {}, 0
    try:
        for name, (kind, shape) in json.loads(head).items():
            count = int(np.prod(shape, dtype=int))
            arrays[name] = np.frombuffer(data, kind, count, at).reshape(shape)
            at += arrays[name].nbytes
    except ValueError as error:
        raise FormatError(path=path, reason=str(error)) from error
    return ArrayFile(arrays)

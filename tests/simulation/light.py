"""Arrays to bytes and back without HDF5: most seeds have no need of it, and it takes its time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xxhash

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.snapshot import ArrayFile


def write_arrays(path: Path, file: ArrayFile, *, past_cache: bool, let_go: bool) -> tuple[int, str]:
    file = file.taken() if let_go else file
    arrays = {name: np.asarray(value) for name, value in sorted(file.arrays.items())}
    head = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    data = json.dumps(head).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())
    with open(path, "xb") as out:
        out.write(data)
    return len(data), f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"


def read_file(content: memoryview, path: str) -> ArrayFile:
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

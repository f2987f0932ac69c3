"""What somebody who can write a job's folder can do: other content, with the right hashes."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import msgspec
import numpy as np

from outlast_checkpoints.arrays import array_table
from outlast_checkpoints.format import layout, manifest
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import FileEntry
from outlast_checkpoints.format.sealed_json import checksum
from outlast_checkpoints.storage.base import Storage


def reseal(storage: Storage, checkpoint: CheckpointId, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, and its size and hash in the manifest."""
    path = layout.manifest(checkpoint)
    found = manifest.decode(storage.read(path), path)
    entry = FileEntry(name, len(content), checksum(content))
    files = tuple(entry if file.name == name else file for file in found.files)
    storage.replace(layout.checkpoint_file(checkpoint, name), content)
    storage.replace(path, manifest.encode(msgspec.structs.replace(found, files=files)))


def without_table(content: bytes) -> bytes:
    """Return an array file as older versions of Outlast wrote it: HDF5 and nothing behind it."""
    length = array_table.claimed(content, len(content), "file")
    assert length is not None
    return content[:-length]


def stripped(storage: Storage, checkpoint: CheckpointId) -> None:
    """Make all array files of a checkpoint those of an older Outlast."""
    for path in (Path(storage.root) / layout.checkpoint_dir(checkpoint)).glob("*.h5"):
        reseal(storage, checkpoint, path.name, without_table(path.read_bytes()))


def deadly_hdf5() -> bytes:
    """Return a file with a byte in a block of a fractal heap at which HDF5 1.14 ends by SIGSEGV."""
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        for index in range(20):
            file[f"layers/dense_{index}/vars/0"] = np.arange(9.0)
            file["layers"].attrs[f"a{index}"] = "text"
    changed = bytearray(content.getvalue())
    at = changed.rfind(b"FHDB")
    assert at == len(changed) - 512
    changed[at + 185] = 32
    return bytes(changed)

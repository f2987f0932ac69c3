"""A cheap fingerprint of training data: shapes, dtypes and a hash of a few samples.

It detects different data within milliseconds, whatever the size. It does not prove that two data
sets are equal.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import xxhash

ROWS = 32  # samples read from an array
ROW = 1024  # elements read from a sample
SAMPLES = 4096  # elements read from a tensor of a batch
LEAVES = 256  # arrays read from a structure


def of_data(data: Any) -> dict[str, Any] | None:
    """Return the fingerprint of data of any kind, or `None` for no data."""
    if data is None:
        return None
    leaves = [one for one in keras.tree.flatten(data) if one is not None]
    content = xxhash.xxh3_64()
    shapes = []
    for leaf in leaves[:LEAVES]:
        shapes.append(_shape(leaf))
        hash_values(leaf, content)
    return {"kind": " ".join(shapes), "count": len(leaves), "content": content.hexdigest()}


def of_batches(batches: Any) -> str:
    """Return a digest of batches of arrays."""
    content = xxhash.xxh3_64()
    for leaf in keras.tree.flatten(batches)[:LEAVES]:
        hash_values(leaf, content)
    return content.hexdigest()


def of_tensors(batch: Any) -> str:
    """Return a digest of samples of a batch of tensors, within microseconds."""
    content = xxhash.xxh3_64()
    for leaf in tf.nest.flatten(batch, expand_composites=True):
        with suppress(Exception):  # of a type that Python's buffers do not know, such as a string
            values = np.asarray(memoryview(leaf)).reshape(-1)
            content.update(values[:: max(1, values.size // SAMPLES)].tobytes())
    return content.hexdigest()


def hash_values(value: Any, content: Any) -> None:
    """Hash samples of a value: of arrays, plain data, and lists of them. Ignore all else."""
    if isinstance(value, list | tuple):
        for one in value[:LEAVES]:
            hash_values(one, content)
        return
    if isinstance(value, type):
        return
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, bool | int | float | str):
        content.update(_text(value).encode())
        return
    content.update(_shape(value).encode() if hasattr(value, "shape") else b"")
    with suppress(Exception):  # data without rows is identified by its shape
        _hash_rows(value, content)


def _shape(leaf: Any) -> str:
    if isinstance(leaf, tf.data.Dataset):
        return f"Dataset of {leaf.element_spec}"
    if isinstance(leaf, bool | int | float | str):
        return type(leaf).__name__
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None:
        return type(leaf).__name__
    name = getattr(dtype, "name", str(dtype)) if dtype is not None else type(leaf).__name__
    return f"{name}{_sizes(shape)}"


def _sizes(shape: Any) -> tuple[Any, ...]:
    try:
        return tuple(shape)
    except (TypeError, ValueError):  # a tensor of unknown rank
        return ()


def _hash_rows(leaf: Any, content: Any) -> None:
    if isinstance(leaf, tf.data.Dataset) or not hasattr(leaf, "shape"):
        return
    leaf = _without_ops(leaf) if len(leaf.shape) else np.asarray(leaf).reshape(1)
    count = int(leaf.shape[0])
    by_row = getattr(leaf, "iloc", leaf)
    for i in sorted({int(at) for at in np.linspace(0, count - 1, min(count, ROWS))}):
        row = by_row[i]
        if hasattr(row, "detach"):  # a torch tensor
            row = row.detach().cpu()
        if hasattr(row, "toarray"):  # a row of a sparse matrix
            row = row.toarray()
        values = np.asarray(row).reshape(-1)[:ROW]
        if values.dtype == object:
            content.update("".join(_text(one) for one in values.tolist()).encode())
        else:
            content.update(np.ascontiguousarray(values).tobytes())


def _without_ops(leaf: Any) -> Any:
    """Return a tensor as an array in the same memory, so that a row takes no op, if it has one."""
    if not isinstance(leaf, tf.Tensor) or leaf.dtype == tf.string:
        return leaf
    try:
        return np.asarray(memoryview(leaf))
    except (TypeError, ValueError, BufferError, NotImplementedError):  # on a device, or symbolic
        return leaf


def _text(value: Any) -> str:
    """Return a value as a text. Of a file, it is its name and size, wherever its folder is."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str) or "/" not in value:
        return repr(value)
    size: int | None = None
    with suppress(OSError, ValueError):
        size = Path(value).stat().st_size
    return f"{value.rpartition('/')[2]} {size}"

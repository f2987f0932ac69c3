"""`Outsized`: arrays too large to copy, whose batches are gathered ahead of the model."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from keras import tree

from outlast.training.data import gather

SHARE: Final = 0.25  # fraction of the memory that resident arrays may use
_OF_ACCELERATOR: Final = 2**31  # bytes; no API reports an accelerator's free memory before use
_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")


def is_outsized(arrays: Any) -> bool:
    """Return whether a structure of arrays is too large to copy to resident tensors.

    Resident tensors are a copy of the user's arrays. NumPy arrays that exceed `limit`, usually
    memory-mapped files, are not copied.
    """
    parts = [part for part in tree.flatten(arrays) if part is not None]
    if not all(isinstance(part, np.ndarray) and part.dtype != object for part in parts):
        return False
    return bool(sum(part.nbytes for part in parts) > limit())


def limit() -> float:
    """Return the largest size of resident arrays, in bytes."""
    if tf.config.list_physical_devices("GPU"):
        return _OF_ACCELERATOR
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max" means no limit
        memory = min(memory, int(_CGROUP.read_text()))
    return SHARE * memory


class Outsized:
    """Batches of rows of NumPy arrays, equal to the bit to those of resident arrays.

    `arrays` is a structure of arrays. A missing part is None.
    """

    def __init__(self, arrays: Any) -> None:
        self._arrays = tree.lists_to_tuples(arrays)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="outlast-gather")
        self._ahead: tuple[bytes, Future[Any]] | None = None

    def spec(self, size: int | None = None) -> Any:
        """Return the `tf.TypeSpec` structure of a batch of `size` samples; None is any number."""
        return gather.spec_of_rows(self._gather(np.arange(1)), size)

    def batch(self, indices: Any) -> Any:
        """Return the batch of these rows. `indices` is int64 of shape (size,)."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == indices.tobytes():
            return ahead[1].result()
        return self._gather(indices)

    def prepare(self, indices: Any) -> None:
        """Gather the batch that probably comes next, while the model trains."""
        self._ahead = indices.tobytes(), self._reader.submit(self._gather, indices)

    def close(self) -> None:
        """Stop the gathering thread."""
        self._reader.shutdown(cancel_futures=True)

    def _gather(self, indices: Any) -> Any:
        return gather.resident(
            tree.map_structure(lambda a: None if a is None else a[indices], self._arrays)
        )

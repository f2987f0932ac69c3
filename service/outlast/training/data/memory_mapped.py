"""Arrays too large to be copied: batches are gathered from them, ahead of the model."""

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

SHARE: Final = 0.25  # of the memory: more is not copied
_OF_ACCELERATOR: Final = 2**31  # bytes, whose memory no API tells before it is used
_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")


def is_outsized(arrays: Any) -> bool:
    """Whether a structure of arrays is better left where it is.

    Resident tensors are a copy of what the user holds. NumPy arrays of more than a quarter of the
    machine's (or the container's) memory, memory-mapped files for the most part, are not copied.
    """
    parts = [part for part in tree.flatten(arrays) if part is not None]
    if not all(isinstance(part, np.ndarray) and part.dtype != object for part in parts):
        return False
    return bool(sum(part.nbytes for part in parts) > limit())


def limit() -> float:
    """Return how many bytes of arrays are made resident at most."""
    if tf.config.list_physical_devices("GPU"):
        return _OF_ACCELERATOR
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max": as much as there is
        memory = min(memory, int(_CGROUP.read_text()))
    return SHARE * memory


class Outsized:
    """Batches of rows of NumPy arrays. arrays: a structure of them, None where a part is missing.

    What it gives are the tensors that resident arrays would give, to the bit.
    """

    def __init__(self, arrays: Any) -> None:
        self._arrays = tree.lists_to_tuples(arrays)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="outlast-gather")
        self._ahead: tuple[bytes, Future[Any]] | None = None

    def spec(self, size: int | None = None) -> Any:
        """Return the tf.TypeSpec structure of a batch; size None: of any size."""
        return gather.spec_of_rows(self._gather(np.arange(1)), size)

    def batch(self, indices: Any) -> Any:
        """Return the batch of these rows."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == indices.tobytes():
            return ahead[1].result()
        return self._gather(indices)

    def prepare(self, indices: Any) -> None:
        """Gather this batch, which is probably the next one, while the model trains."""
        self._ahead = indices.tobytes(), self._reader.submit(self._gather, indices)

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)

    def _gather(self, indices: Any) -> Any:
        return gather.resident(
            tree.map_structure(lambda a: None if a is None else a[indices], self._arrays)
        )

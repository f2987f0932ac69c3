"""The order of samples in an epoch, a pure function of seed and epoch. A resume needs no state."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Shuffle = bool | Literal["batch"]


def epoch_order(
    samples: int, batch_size: int, shuffle: Shuffle, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Return the sample indices of an epoch in training order, int64 of shape (samples,).

    `shuffle` False keeps the order, and True permutes all samples. "batch" permutes the samples
    within each batch and keeps the order of the batches, as Keras' ArrayDataAdapter does. The
    generator is Philox (Salmon et al., 2011), keyed by seed and epoch. It is counter-based, so no
    state passes from one epoch to the next.
    """
    order = np.arange(samples, dtype=np.int64)
    if not shuffle:
        return order
    # An explicit uint64: numpy would convert a list with a large seed to floats.
    key = np.array([seed % 2**64, epoch], np.uint64)
    # Not Philox(key=key): numpy would draw a seed first, and a resume would draw it once more.
    philox = np.random.Philox(0)
    state = dict(philox.state)
    state["state"]["key"] = key
    philox.state = state
    generator = np.random.Generator(philox)
    if shuffle == "batch":
        for start in range(0, samples, batch_size):
            generator.shuffle(order[start : start + batch_size])
        return order
    return generator.permutation(order)

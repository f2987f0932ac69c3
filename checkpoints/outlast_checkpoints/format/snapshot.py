"""Snapshots: the training state in memory, on its way from the loop to the writer. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from outlast_checkpoints.format.layout import Stage


class Progress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The place in the training at which a snapshot was taken.

    Attributes:
        phase: Index of the `fit` or `Loop` in the script, from 0.
        step: Optimizer updates done in the phase.
        epoch: Epoch of the next batch, from 0.
        batch: Index of the next batch in its epoch, from 0.
        stage: Where between two steps; see `Stage`. Default `Stage.STEP`.
        phase_name: The phase's name, if the script gave it one.
        place: Values of the script's `for` loops around a phase without a name, such as "lr=0.1".
            None outside of loops.
        epochs: The epoch at which the phase ends. None if unknown.
        steps_per_epoch: Batches per epoch. None if unknown.
        seed: Seed of the order of samples in the phase. None if there is none.
    """

    phase: int
    step: int
    epoch: int
    batch: int
    stage: int = Stage.STEP
    phase_name: str | None = None
    place: str | None = None
    epochs: int | None = None
    steps_per_epoch: int | None = None
    seed: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the phase is finished."""
        return self.stage == Stage.END


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """The content of one HDF5 file of a snapshot.

    Attributes:
        arrays: Arrays by dataset path, such as "layers/dense/vars/0". Anything that
            `numpy.asarray` accepts, of any shape, with a numeric or boolean dtype or one of
            `ml_dtypes`. On the CPU `fit` passes views of the model's buffers, so taking a
            snapshot copies nothing.
        group_attributes: Text attributes by group path, then by name. Default: none.
    """

    arrays: Mapping[str, Any]
    group_attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def taken(self) -> ArrayFile:
        """Return the same file and drop this one's references to the arrays."""
        arrays = dict(self.arrays)
        if isinstance(self.arrays, MutableMapping):
            self.arrays.clear()
        return ArrayFile(arrays, self.group_attributes)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The complete training state at one place, not yet committed.

    Example:

        Snapshot(
            Progress(phase=0, step=100, epoch=0, batch=100),
            files={"model.weights.h5": ArrayFile({"layers/dense/vars/0": weights})},
            metrics={"loss": 0.25},
        )

    Attributes:
        progress: The place in the training.
        files: Array files by name. Names end in ".h5".
        documents: Other files by name, as bytes, such as "model.json". Default: none.
        metrics: The newest logs by name, including `val_*`. Retention rules read them. Default:
            none.
        release_written: Release each array as soon as it is written, so that saving needs less
            memory than a second copy of the state. The snapshot can then be written only once,
            even if writing fails. Default False.
    """

    progress: Progress
    files: Mapping[str, ArrayFile]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    release_written: bool = False

    @property
    def size(self) -> int:
        """The size of all arrays in bytes. Arrays without `nbytes` are not counted."""
        arrays = (array for file in self.files.values() for array in file.arrays.values())
        return sum(getattr(array, "nbytes", 0) for array in arrays)

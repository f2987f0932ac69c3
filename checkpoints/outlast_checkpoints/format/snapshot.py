"""What is held in memory between the loop and the writer: frozen values, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from outlast_checkpoints.format.layout import Stage


class Progress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The place in the training that a snapshot was taken at.

    phase: index of the `fit`/`Loop` in the script, from 0. step: steps done in the phase.
    epoch, batch: the next batch to train (batch counts from 0 in its epoch). stage: see `Stage`.
    epochs: the phase's final epoch. steps_per_epoch: None when it is not known.
    seed: the phase's data seed.
    """

    phase: int
    step: int
    epoch: int
    batch: int
    stage: int = Stage.STEP
    phase_name: str | None = None
    epochs: int | None = None
    steps_per_epoch: int | None = None
    seed: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the phase is over."""
        return self.stage == Stage.END


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """Arrays by HDF5 dataset path ("layers/dense/vars/0"), and attributes by group path.

    An array is anything that `numpy.asarray` reads without changing it afterwards; on the CPU
    they are views of held buffers, so that holding costs no copy.
    """

    arrays: Mapping[str, Any]
    group_attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def taken(self) -> ArrayFile:
        """Return the same file, and hold none of its arrays any more."""
        arrays = dict(self.arrays)
        if isinstance(self.arrays, MutableMapping):
            self.arrays.clear()
        return ArrayFile(arrays, self.group_attributes)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The complete training state at one place, not yet committed.

    files: array files by name ("model.weights.h5"). documents: small finished files by name
    ("model.json"). metrics: the newest logs (with val_*), used by retention. let_go: whoever
    writes it lets go of each array as soon as it is written, so that less than a second copy of
    the state is in memory; then it cannot be written again, not even when that failed.
    """

    progress: Progress
    files: Mapping[str, ArrayFile]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    let_go: bool = False

    @property
    def size(self) -> int:
        """Bytes of all arrays that know how many they have, as numpy's do."""
        arrays = (array for file in self.files.values() for array in file.arrays.values())
        return sum(getattr(array, "nbytes", 0) for array in arrays)

"""Scripts of several small phases, and the finished phases of their job."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
from keras import layers

from outlast import fit
from outlast.training.phase import Phase
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.training_harness import Death

ASKED: list[int] = []  # a global of a module of the script, which the hooks of tests fill
RNG = np.random.default_rng(3)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


def net(
    rate: float = 0.1,
    *,
    units: int = 3,
    activation: str = "relu",
    dropout: float = 0.1,
    momentum: float = 0.0,
    loss: Any = "mse",
) -> Any:
    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(units, activation),
            layers.Dropout(dropout),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(rate, momentum=momentum), loss, run_eagerly=True)
    return model


def trained(folder: Path, model: Any = None, **arguments: Any) -> Any:
    given = {"x": X, "y": Y, "epochs": 2, "batch_size": 16, "verbose": 0, "save_every": 1}
    return fit(model or net(), job_dir=folder, **{**given, **arguments})


def script_file(source: str, at: Path) -> Path:
    """Write a script into a file whose name is new for each source, as loops are read once."""
    file = at / f"script_{hashlib.md5(source.encode()).hexdigest()}.py"
    file.write_text(source)
    return file


def run(source: str, at: Path, **names: Any) -> dict[str, Any]:
    """Run a script, or a notebook's cell, in this process; return its global names."""
    file = script_file(source, at)
    names = {"__name__": "__main__", **names}
    exec(compile(source, str(file), "exec"), names)
    return names


def finished(folder: Path) -> list[tuple[int, str | None]]:
    store = CheckpointStore(open_storage(folder))
    return [(p, store.manifest(c).progress.phase_name) for p, c in store.finished_phases().items()]


def dying_in(phase: int, step: int) -> Any:
    record = Phase.record_steps

    def record_and_die(self: Phase, *args: Any) -> None:
        record(self, *args)
        if self.index == phase and self.step >= step:
            raise Death(step)

    return mock.patch.object(Phase, "record_steps", record_and_die)

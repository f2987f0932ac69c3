"""The training of the simulation: its state is a pure function of the step, so any error shows."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot

PHASES = (13, 9)  # steps
EPOCH = 4  # steps
_MASK = 2**64 - 1


def advance(state: int, phase: int, step: int) -> int:
    """Return the state after a step."""
    return (state * 6364136223846793005 + 1442695040888963407 * (phase + 1) + step) & _MASK


@functools.cache
def state_at(phase: int, step: int) -> int:
    """Return the state after so many steps of a phase, of a training that nothing has disturbed."""
    if step == 0:
        return 1 if phase == 0 else state_at(phase - 1, PHASES[phase - 1])
    return advance(state_at(phase, step - 1), phase, step)


def all_steps() -> list[tuple[int, int]]:
    """Return every (phase, step) in order."""
    return [(phase, step) for phase, steps in enumerate(PHASES) for step in range(1, steps + 1)]


def snapshot(phase: int, step: int, stage: Stage, state: int) -> Snapshot:
    """Return the training at a place. Of its arrays one changes only now and then."""
    weights = {
        "layers/dense/vars/0": np.array([state, step], np.uint64),
        "layers/base/vars/0": np.full(16, step // 6, np.uint32),
    }
    return Snapshot(
        Progress(phase=phase, step=step, epoch=step // EPOCH, batch=step % EPOCH, stage=stage),
        files={
            "model.weights.h5": ArrayFile(weights),
            "state.h5": ArrayFile({"rng": np.array([state ^ _MASK], np.uint64)}),
        },
        documents={"model.json": b'{"name": "simulated"}'},
        metrics={"loss": float(state % 1000)},
    )


def check_loaded(loaded: Any, checkpoint: CheckpointId) -> int:
    """Return the state of what was loaded; it has to be that of the place it was saved at."""
    expected = snapshot(
        checkpoint.phase, checkpoint.step, checkpoint.stage, state_at(*checkpoint.place[:2])
    )
    for name, file in expected.files.items():
        assert loaded.files[name].keys() == file.arrays.keys(), (checkpoint, name)
        for path, array in file.arrays.items():
            assert loaded.files[name][path].tobytes() == array.tobytes(), (checkpoint, name, path)
    assert loaded.documents == expected.documents
    return int(loaded.files["model.weights.h5"]["layers/dense/vars/0"][0])


def row(phase: int, step: int, state: int, attempt: int) -> dict[str, Any]:
    """Return the row of history of a step."""
    logs = {"loss": state % 1000}
    return {
        "kind": "step",
        "phase": phase,
        "step": step,
        "epoch": (step - 1) // EPOCH,
        "batch": (step - 1) % EPOCH,
        "logs": logs,
        "by": attempt,
    }

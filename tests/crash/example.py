"""A tiny training state that differs at each step and is known to the tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot


def arrays(step: int, *, frozen: bool = False) -> dict[str, dict[str, Any]]:
    """Return the arrays of a step by file and name. frozen: add 1 MiB that never changes."""
    rng = np.random.default_rng(step)
    weights = {
        "layers/dense/vars/0": rng.normal(size=(40, 30)).astype("float32"),
        "layers/dense/vars/1": rng.normal(size=30).astype("float32"),
        "optimizer/vars/0": np.array(step, "int64"),
    }
    if frozen:
        weights["layers/frozen/vars/0"] = np.arange(1 << 18, dtype="float32")
    state = {"document": rng.integers(0, 255, 500, "uint8"), "variables/000000": rng.normal(size=7)}
    return {"model.weights.h5": weights, "state.h5": state}


def document(step: int) -> bytes:
    return b'{"config": {"step": %d}}' % step


def snapshot(step: int, *, frozen: bool = False) -> Snapshot:
    """Return the state after `step` steps."""
    files = {name: ArrayFile(content) for name, content in arrays(step, frozen=frozen).items()}
    return Snapshot(
        progress=Progress(phase=0, step=step, epoch=0, batch=step),
        files=files,
        documents={"model.json": document(step)},
        metrics={"loss": 1.0 / step},
    )


def row(step: int) -> dict[str, Any]:
    """Return the history row of a step."""
    return {
        "kind": "step",
        "phase": 0,
        "step": step,
        "epoch": 0,
        "batch": step - 1,
        "time": 0.0,
        "logs": {"loss": 1.0 / step},
    }

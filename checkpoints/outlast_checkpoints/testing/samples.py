"""Small snapshots for tests, reproducible from a few numbers."""

from __future__ import annotations

from collections.abc import Mapping

from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot


def sample_snapshot(
    step: int,
    *,
    phase: int = 0,
    stage: int = Stage.STEP,
    metrics: Mapping[str, float] | None = None,
    salt: int = 0,
    numbers: int = 64,
    backbone: int | None = None,
) -> Snapshot:
    """Return a small snapshot whose content depends only on the arguments.

    salt: makes the content differ at the same place. numbers: rows of the kernel. backbone: adds a
    1 MiB array that depends on this number alone, like a frozen layer's.
    """
    import numpy as np

    generator = np.random.default_rng([phase, step, int(stage), salt])
    weights = {
        "layers/dense/vars/0": generator.standard_normal((numbers, 2), dtype=np.float32),
        "layers/dense/vars/1": np.float32(step),
        "optimizer/vars/0": np.int64(step),
    }
    if backbone is not None:
        weights["layers/base/vars/0"] = np.full(1 << 18, backbone, np.float32)
    state = {"rng/key": generator.integers(0, 2**63, 4), "empty": np.zeros((0, 3))}
    return Snapshot(
        Progress(phase=phase, step=step, epoch=0, batch=step, stage=int(stage)),
        files={
            "model.weights.h5": ArrayFile(weights),
            "state.h5": ArrayFile(state, {"rng": {"kind": "philox"}}),
        },
        documents={"model.json": b'{"name": "sample"}'},
        metrics={} if metrics is None else metrics,
    )

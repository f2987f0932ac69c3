"""The hashes that the demo compares see every byte that counts, and no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlast.demo.digests import digests
from outlast_checkpoints.errors import NoCheckpoint
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore

Training = dict[str, Any]


def training() -> Training:
    return {
        "weights": {"layers/dense/vars/0": np.arange(4.0)},
        "optimizer": {"optimizer/vars/0": np.arange(3.0)},
        "state": {"variables/0": np.arange(2, dtype="uint32")},
        "row": {
            "kind": "step", "phase": 0, "step": 1, "epoch": 0, "batch": 0, "time": 1.0,
            "logs": {"loss": 0.5},
        },
    }  # fmt: skip


def train(folder: Path, made: Training) -> Storage:
    storage = open_storage(folder)
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    history = HistoryWriter(storage, 1)
    history.append(made["row"])
    history.close()
    files = {
        "model.weights.h5": ArrayFile({**made["weights"], **made["optimizer"]}),
        "state.h5": ArrayFile(made["state"]),
    }
    store.save(Snapshot(Progress(phase=0, step=1, epoch=0, batch=1), files), reason="step")
    return storage


def one_bit(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    data = bytearray(array.tobytes())
    data[-1] ^= 1
    return np.frombuffer(bytes(data), array.dtype)


def edit(part: str, change: Callable[[Any], Any]) -> Callable[[Training], None]:
    def apply(made: Training) -> None:
        made[part] = {name: change(array) for name, array in made[part].items()}

    return apply


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda made: None, []),
        (lambda made: made["row"].update(time=2.0), []),
        (edit("weights", one_bit), ["weights"]),
        (edit("optimizer", one_bit), ["optimizer"]),
        (edit("state", one_bit), ["other state"]),
        (edit("weights", lambda array: array.reshape(2, 2)), ["weights"]),
        (edit("state", lambda array: array.astype("int32")), ["other state"]),
        (lambda made: made["state"].update(more=np.zeros(0)), ["other state"]),
        (lambda made: made["row"]["logs"].update(loss=0.5000000000000001), ["history"]),
        (lambda made: made["row"].update(step=2), ["history"]),
    ],
)
def test_a_difference_is_found_in_its_part(
    tmp_path: Path, change: Callable[[Training], None], differs: list[str]
) -> None:
    changed = training()
    change(changed)
    one = digests(train(tmp_path / "one", training()))
    other = digests(train(tmp_path / "other", changed))
    found = [a.part for a, b in zip(one, other, strict=True) if a.hash != b.hash]
    assert found == differs


def test_without_a_checkpoint_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint):
        digests(open_storage(tmp_path))

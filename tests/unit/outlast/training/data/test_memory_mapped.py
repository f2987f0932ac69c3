"""Arrays that are too large to copy train as resident ones do, equal to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from outlast.training.data import memory_mapped
from outlast.training.data.memory_mapped import Outsized, is_outsized
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    steps_per_call,
    train,
)
from tests.support.training_zoo import ARRAYS, MLP, SAMPLES, X, Y, model_of


def mapped(folder: Path) -> Any:
    """Return the samples as a memory-mapped file, in float64 as files often are."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "x.npy", X.astype("float64"))
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit, so that these arrays are too large to copy."""
    monkeypatch.setattr(memory_mapped, "limit", lambda: 100)


def script(folder: Path, **changes: Any) -> Script:
    arguments = {**ARRAYS, "x": mapped(folder), "sample_weight": np.ones(SAMPLES, "float32")}
    return Script(model_of(*MLP), {**arguments, "epochs": 3, **changes})


def test_they_train_as_with_keras(tmp_path: Path, small: None) -> None:
    one = train(script(tmp_path), tmp_path / "job")
    assert one.state == keras_fit(script(tmp_path)).state


def test_they_train_and_resume_as_resident_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = script(tmp_path, shuffle=True, save_every=2)
    resident = train(shuffled, tmp_path / "resident")
    with monkeypatch.context() as patched:
        patched.setattr(memory_mapped, "limit", lambda: 100)
        with steps_per_call(lambda step: 3) as taken, dying_at(5), pytest.raises(Death):
            train(shuffled, tmp_path / "touched")
        assert max(taken) == 2  # up to the next save
        with dying_at(8), pytest.raises(Death):
            train(shuffled, tmp_path / "touched")
    # On a larger machine the same job goes on with resident arrays.
    assert_same_end(train(shuffled, tmp_path / "touched"), resident)


def test_xla_trains_each_step(tmp_path: Path, small: None) -> None:
    by_step = train(script(tmp_path, jit_compile=True), tmp_path / "job")
    assert by_step.state == keras_fit(script(tmp_path).with_build(model_of(*MLP, jit=True))).state


def test_batches_gathered_ahead_are_the_requested_ones() -> None:
    arrays = {"a": np.arange(20.0), "b": None}
    gathered = Outsized((arrays, np.arange(20)))
    gathered.prepare(np.array([3, 4]))
    for indices in ([3, 4], [5, 1], [5, 1]):
        (batch, target) = gathered.batch(np.array(indices))
        assert batch["a"].numpy().tolist() == indices
        assert batch["a"].dtype == tf.float32
        assert batch["b"] is None
        assert target.numpy().tolist() == indices
        gathered.prepare(np.array([9, 9]))
    gathered.close()


def test_only_arrays_that_are_large_for_the_machine_are_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not is_outsized((X, Y))
    assert memory_mapped.limit() > 2**26
    monkeypatch.setattr(memory_mapped, "limit", lambda: X.nbytes + Y.nbytes)
    assert not is_outsized((X, Y, None))
    assert is_outsized((X, (Y, Y)))
    assert not is_outsized((tf.constant(X), Y, Y))  # a tensor is there already

"""Fine-tuning: a frozen backbone is saved once, and resumes stay exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from outlast import fit
from outlast.cli import main
from outlast.cli.job_address import find_job
from outlast.cli.summary import summary
from outlast_checkpoints.format.layout import WEIGHTS_FILE, Stage
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    begin_process,
    dying_at,
    end_of,
    process,
    train,
)

RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 600)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")
BACKBONE = 600 * 512 * 4
PART = "model.weights.frozen.h5"


def tuned() -> Any:
    """A frozen backbone of 1.2 MB, and a head of some KiB."""
    backbone = layers.Dense(512, activation="tanh", name="backbone", trainable=False)
    model = keras.Sequential([layers.Input((600,)), backbone, layers.Dense(2, name="head")])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


SCRIPT = Script(
    tuned,
    {"x": X, "y": Y, "batch_size": 4, "epochs": 2, "save_every": 1, "keep": "all", "seed": 5},
)


def written(folder: Path) -> dict[str, int]:
    """Return the number of bytes that each checkpoint wrote to disk, in order."""
    known: set[int] = set()
    brought: dict[str, int] = {}
    for checkpoint in CheckpointStore(open_storage(folder)).ids():
        stats = [path.stat() for path in (folder / "checkpoints" / str(checkpoint)).iterdir()]
        brought[str(checkpoint)] = sum(s.st_size for s in stats if s.st_ino not in known)
        known |= {s.st_ino for s in stats}
    return brought


def test_a_frozen_backbone_is_written_once_and_resumes_exactly(tmp_path: Path) -> None:
    untouched = train(SCRIPT, tmp_path / "untouched")
    folder = tmp_path / "job"
    for step in (4, 5, 9):
        with pytest.raises(Death), dying_at(step):
            train(SCRIPT, folder)
    assert_same_end(untouched, train(SCRIPT, folder))

    store = CheckpointStore(open_storage(folder))
    assert [damage for found in store.ids() for damage in store.verify(found)] == []
    sizes = {str(found): store.manifest(found).size for found in store.ids()}
    for attempt in (1, 3, 4):  # attempt 2 died before it had saved three times
        brought = {name: size for name, size in written(folder).items() if name[-1] == str(attempt)}
        first, second, *later = [size for name, size in brought.items() if ".2-" not in name]
        assert min(first, second) > BACKBONE
        # What is left is the head, its two slots in Adam, and what a checkpoint is besides.
        assert later
        assert max(later) < BACKBONE // 10, brought
    end = max(store.ids())
    assert end.stage == Stage.END
    assert written(folder)[str(end)] > sizes[str(end)]  # whole: its files and its manifest


def test_plain_keras_loads_the_final_checkpoint_directly_and_others_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = train(SCRIPT, tmp_path / "job")
    store = CheckpointStore(open_storage(tmp_path / "job"))
    last, split = store.ids()[-1], store.ids()[5]
    assert PART in [entry.name for entry in store.manifest(split).files]

    def load(path: Path) -> Any:
        begin_process(seed=1)
        model = tuned()
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        return model

    loaded = load(tmp_path / "job" / "checkpoints" / str(last) / WEIGHTS_FILE)
    for mine, his in zip(loaded.weights, end.model.weights, strict=True):
        assert np.array_equal(mine, his), mine.path
    # The summary of a job names only what works.
    root = tmp_path.as_posix()
    assert "load_weights" in summary(find_job(root, "job"), root)
    store.delete(last)
    told = summary(find_job(root, "job"), root)
    assert "load_weights" not in told
    assert "outlast export" in told
    # Never a model whose backbone is silently somebody else's.
    with pytest.raises(ValueError, match="backbone"):
        load(tmp_path / "job" / "checkpoints" / str(split) / WEIGHTS_FILE)
    exported = tmp_path / "exported.weights.h5"
    monkeypatch.setenv("OUTLAST_ROOT", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        main(["export", "job", str(exported), "--checkpoint", str(split)])
    assert left.value.code == 0
    model = load(exported)
    held = store.load(split).files[WEIGHTS_FILE]
    assert int(model.optimizer.iterations) == split.step
    for layer in ("backbone", "head"):
        kernel = np.asarray(model.get_layer(layer).kernel)
        assert any(np.array_equal(kernel, array) for array in held.values()), layer


def test_a_backbone_that_is_unfrozen_in_the_second_phase(tmp_path: Path) -> None:
    arguments = {**SCRIPT.arguments, "verbose": 0, "epochs": 1, "batch_size": 8}

    def both(folder: Path) -> Any:
        begin_process()
        model = tuned()
        with process(folder):
            fit(model, job_dir=folder, **arguments)
            model.get_layer("backbone").trainable = True
            model.compile(keras.optimizers.Adam(0.001), "mse")
            history = fit(model, job_dir=folder, **{**arguments, "epochs": 2})
            return end_of(model, history, [])

    untouched = both(tmp_path / "untouched")
    folder = tmp_path / "job"
    for step in (2, 5):  # a phase counts its own steps, of which the first one has 3
        with pytest.raises(Death), dying_at(step):
            both(folder)
    assert_same_end(untouched, both(folder), rows=False)
    store = CheckpointStore(open_storage(folder))
    assert [damage for found in store.ids() for damage in store.verify(found)] == []
    parts = {
        phase: [PART in [e.name for e in store.manifest(i).files] for i in store.ids()
                if i.phase == phase]
        for phase in (0, 1)
    }  # fmt: skip
    assert any(parts[0])
    assert not any(parts[1])

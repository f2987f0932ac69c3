"""The command line over a real training that is killed on the way: what it shows and exports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from outlast.demo.killer import kill_next
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance.jobs import PATH

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

OUTLAST = [sys.executable, "-m", "outlast"]
STEPS = 240  # 240 samples less a fifth, 24 a batch, 30 epochs

TRAIN = """
import time
import keras
import numpy as np
from outlast import fit

rng = np.random.default_rng(0)
x = rng.normal(size=(240, 6)).astype("float32")
y = x.sum(axis=1, keepdims=True)
model = keras.Sequential([
    keras.Input((6,)),
    keras.layers.Dense(8, activation="relu"),
    keras.layers.BatchNormalization(),
    keras.layers.Dropout(0.1),
    keras.layers.Dense(1),
])
model.compile("adam", "mse", metrics=["mae"])
# slow enough to be met on its way
slow = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: time.sleep(0.1))
fit(model, x, y, batch_size=24, epochs=30, validation_split=0.2, callbacks=[slow], verbose=0)
"""


def outlast(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*OUTLAST, *arguments], capture_output=True, text=True, check=True, timeout=300
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that was killed once; "followed" beside it is its `history -f`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.py").write_text(TRAIN)
    environment = {**os.environ, "PYTHONPATH": PATH, "OUTLAST_ROOT": str(folder / "jobs")}
    job = folder / "jobs" / "small"
    run = [*OUTLAST, "run", "--name", "small", "--seed", "3", "--save-every", "10",
           "--keep", "last:5", "--heartbeat-every", "0.1s", "--backoff", "0.1s",
           str(folder / "train.py")]  # fmt: skip
    with (
        open(folder / "words", "wb") as words,
        subprocess.Popen(run, env=environment, stdout=words, stderr=words) as process,
        open(folder / "followed", "wb") as followed,
    ):
        killed = kill_next(open_storage(job), 0.4, 0, lambda: process.poll() is None)
        follow = [*OUTLAST, "history", "-f", "--json", "--steps", "small"]
        with subprocess.Popen(follow, env=environment, stdout=followed) as follower:
            assert process.wait(300) == 0, (folder / "words").read_text()
            assert follower.wait(60) == 0
    assert killed is not None
    return job


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_summary_reports_the_kill(trained: Path) -> None:
    words = (trained.parents[1] / "words").read_text()
    assert "attempts    2, 1 restart (1 killed, 1 completed)" in words
    assert "attempt 2 resumed from " in words
    assert f"checkpoints/00-{STEPS:012d}.2-0002 (step {STEPS})" in words


def test_each_step_is_shown_once(trained: Path) -> None:
    found = rows(outlast("history", "--json", "--steps", str(trained)).stdout)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    epochs = rows(outlast("history", "--json", "--epochs", str(trained)).stdout)
    assert [row["epoch"] for row in epochs] == list(range(30))
    assert set(epochs[0]["logs"]) == {"loss", "mae", "val_loss", "val_mae"}


def test_each_step_is_followed_once_over_the_restart(trained: Path) -> None:
    found = rows((trained.parents[1] / "followed").read_text())
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))


def test_everything_verifies(trained: Path) -> None:
    found = json.loads(outlast("verify", "--json", str(trained)).stdout)
    assert found["good"] is True
    assert len(found["checkpoints"]) >= 5


def test_the_status_is_final(trained: Path) -> None:
    found = json.loads(outlast("status", "--json", str(trained)).stdout)
    progress = found["progress"]
    assert (progress["step"], progress["total_steps"], progress["epochs"]) == (STEPS, STEPS, 30)
    assert found["last_checkpoint"]["step"] == STEPS


def test_the_picture_marks_the_restart(trained: Path, tmp_path: Path) -> None:
    told = outlast("history", "--plot", str(tmp_path / "a.png"), str(trained)).stdout
    assert "loss, mae; 1 restarts." in told


def final_weights(trained: Path) -> dict[str, np.ndarray[Any, Any]]:
    store = CheckpointStore(open_storage(trained))
    return store.load(store.ids()[-1]).files[layout.WEIGHTS_FILE]


def weights_in(model: keras.Model) -> list[bytes]:
    return [np.asarray(value).tobytes() for value in model.weights]


def test_a_whole_model_loads_with_plain_keras(trained: Path, tmp_path: Path) -> None:
    dest = tmp_path / "model.keras"
    outlast("export", str(trained), str(dest))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = keras.saving.load_model(dest)
    stored = final_weights(trained)
    kept = [array.tobytes() for name, array in stored.items() if name.startswith("layers/")]
    assert sorted(weights_in(model)) == sorted(kept)
    assert int(model.optimizer.iterations) == STEPS
    model.fit(np.ones((4, 6), "float32"), np.ones((4, 1), "float32"), verbose=0)


def test_weights_load_into_the_model_as_the_script_builds_it(trained: Path, tmp_path: Path) -> None:
    whole, best, last = (tmp_path / name for name in ("a.keras", "b.weights.h5", "c.weights.h5"))
    outlast("export", str(trained), str(whole))
    outlast("export", str(trained), str(best), "--checkpoint", "best:val_loss")
    outlast("export", str(trained), str(last))
    model = keras.saving.load_model(whole)
    at_the_end = weights_in(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_weights([np.zeros(weight.shape) for weight in model.weights])
        model.load_weights(best)
        assert any(np.asarray(weight).any() for weight in model.weights)
        model.load_weights(last)
    assert weights_in(model) == at_the_end

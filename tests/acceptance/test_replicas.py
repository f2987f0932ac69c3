"""`outlast run --replicas 2` over a script that names no strategy, killed and resumed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.jobs import OUTLAST, PATH, PATIENCE, outlast

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

TRAIN = """
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
import keras
import numpy as np
import tensorflow as tf
from outlast import fit

rng = np.random.default_rng(0)
x = tf.constant(rng.normal(size=(90, 6)).astype("float32"))  # TensorFlow starts before the model
y = tf.reduce_sum(x, axis=1, keepdims=True)
model = keras.Sequential([
    keras.Input((6,)),
    keras.layers.Dense(8, activation="relu"),
    keras.layers.BatchNormalization(),
    keras.layers.Dropout(0.1),
    keras.layers.Dense(1),
])
model.compile("adam", "mse", metrics=["mae"])

class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        mark = Path("killed")
        if "kill" in sys.argv and self.model.optimizer.iterations == 9 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

history = fit(model, x, y, batch_size=20, epochs=3, validation_split=0.2, callbacks=[Kill()],
              verbose=0)
digest = hashlib.sha256()
for variable in [*model.variables, *model.optimizer.variables]:
    for copy in variable.value.values:
        digest.update(copy.numpy().tobytes())
moments = model.layers[1].moving_mean.value.values
Path("end.json").write_text(json.dumps({
    "replicas": model.distribute_strategy.num_replicas_in_sync,
    "devices": [str(copy.device)[-5:] for copy in moments],
    "moments_differ": moments[0].numpy().tobytes() != moments[1].numpy().tobytes(),
    "digest": digest.hexdigest(),
    "history": history.history,
}))
"""


def trained(folder: Path, *arguments: str) -> dict[str, Any]:
    """Return the end of the script, run as a job in the folder."""
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    command = ["run", "--root", "jobs", "--name", "job", "--seed", "5", "--replicas", "2",
               "--save-every", "2", "--backoff", "0", "train.py", *arguments]  # fmt: skip
    run = subprocess.run(
        [*OUTLAST, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, Any] = json.loads((folder / "end.json").read_text())
    return found


def test_a_job_of_two_replicas_is_killed_and_ends_as_if_it_were_not(tmp_path: Path) -> None:
    untouched = trained(tmp_path / "untouched")
    assert untouched["replicas"] == 2
    assert untouched["devices"] == ["CPU:0", "CPU:1"]
    assert untouched["moments_differ"]
    killed = trained(tmp_path / "killed", "kill")
    assert (tmp_path / "killed/killed").exists()
    assert killed == untouched
    refused = outlast("run", "--root", tmp_path / "killed/jobs", "--name", "job", "--replicas", "4",
                      "--resume-if-exists", "train.py", "kill",
                      cwd=tmp_path / "killed")  # fmt: skip
    assert refused.returncode == 2
    assert "--replicas: it is 4 here, and 2 in job job" in refused.stderr

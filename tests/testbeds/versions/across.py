"""A training that dies under one version of Keras or Python and ends under another.

    python across.py write FOLDER     trains until it is killed, from within, after some saves
    python across.py resume FOLDER    goes on to the end; prints from which step, and between which
                                      versions

Both exit with 0 when all is as it should be: every step trained once, in order, over both.
`make test-versions` runs each with an interpreter of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from outlast import fit
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore

EPOCHS, STEPS, KILLED_AT = 6, 10, 37
DEAD = 9
HERE = {
    "python": "{}.{}".format(*sys.version_info),
    "keras": keras.__version__,
    "tensorflow": tf.__version__,
    "numpy": np.__version__,
}


class Block(layers.Layer):
    """Keras before 3.15 leaves a list of lists out of its weights files."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [[layers.Dense(8)], [layers.Dense(8, activation="relu")]]

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part[0](x)
        return x


class Killed(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen += 1
        if self.seen == KILLED_AT:
            os._exit(DEAD)


def train(folder: Path, *callbacks: Any) -> None:
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(STEPS * 10, 6)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("int64")
    entry = layers.Input((6,))
    hidden = layers.Dropout(0.2)(layers.BatchNormalization()(Block()(entry)))
    model = keras.Model(entry, layers.Dense(2)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(0.01, use_ema=True), loss, metrics=["accuracy"])
    own = [
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1),
        keras.callbacks.ModelCheckpoint(str(folder / "best.keras"), save_best_only=True),
        keras.callbacks.CSVLogger(str(folder / "log.csv")),
    ]
    fit(
        model, x, y, batch_size=8, epochs=EPOCHS, validation_split=0.2,
        verbose=0, callbacks=[*own, *callbacks], job_dir=folder / "job", save_every=5,
    )  # fmt: skip


def write(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier time
    folder.mkdir(parents=True)
    code = subprocess.run([sys.executable, __file__, "die", str(folder)], check=False).returncode
    if code != DEAD:
        sys.exit(f"it exited with {code} before it was killed")
    (folder / "written.json").write_text(json.dumps(HERE))


def resume(folder: Path) -> None:
    train(folder)
    written = json.loads((folder / "written.json").read_text())
    rows = list(HistoryReader(open_storage(folder / "job")).rows())
    steps = [row["step"] for row in rows if row["kind"] == "step"]
    if steps != list(range(1, EPOCHS * STEPS + 1)):
        sys.exit(f"the steps of the history are {steps}")
    log = "".join(path.read_text() for path in sorted((folder / "job").rglob("*.jsonl")))
    came_back = [json.loads(line) for line in log.splitlines() if '"resumed"' in line]
    if len(came_back) != 1 or not 0 < came_back[0]["step"] < KILLED_AT:
        sys.exit(f"it did not go on from a checkpoint: {came_back}")
    if ('"versions_changed"' in log) is not (written != HERE):
        sys.exit("the log does not say whether the versions have changed")
    print(
        f"{written} -> {HERE}: resumed at step {came_back[0]['step']}, ended at {steps[-1]}, "
        f"weights {digest(folder / 'job')}"
    )


def digest(job: Path) -> str:
    """Return a hash of all arrays at the end."""
    store = CheckpointStore(open_storage(job))
    found = hashlib.sha256()
    for file, arrays in sorted(store.load(store.ids()[-1]).files.items()):
        for name, array in sorted(arrays.items()):
            if file == "model.weights.h5":
                found.update(name.encode() + array.tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2])
    if verb == "die":
        train(folder, Killed())
    else:
        {"write": write, "resume": resume}[verb](folder)

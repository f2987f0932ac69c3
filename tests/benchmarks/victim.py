"""A training that runs until it is killed.

`python tests/benchmarks/victim.py NETWORK [ours | keras | keras-backup] FOLDER`: NETWORK is one of
loop.py's. "ours" is a job (of its own in FOLDER, where `outlast run` did not start it); "keras" is
Keras' fit, "keras-backup" the same with BackupAndRestore every 10 batches; both note in
FOLDER/place when they started, when their first step was done, and where in the data they are.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.loop import build, shapes

STEPS = {"mlp": 400, "dense": 100}  # of an epoch
BATCH = {"mlp": 32, "dense": 64}
EPOCHS = 1_000_000
PLACE = struct.Struct("<dqd")  # of the first step: unix seconds; steps into the data; of the last


def note_place(file: Path, steps: int) -> Any:
    """Return a callback that records its progress in `file`, in memory that survives a kill."""
    import keras

    file.write_bytes(PLACE.pack(0.0, 0, 0.0))
    with file.open("r+b") as opened:
        memory = mmap.mmap(opened.fileno(), PLACE.size)

    class Place(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._before = epoch * steps

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = time.time()
            first = PLACE.unpack_from(memory)[0] or now
            PLACE.pack_into(memory, 0, first, self._before + batch + 1, now)

    return Place()


def main(network: str, how: str, folder: str) -> None:
    import keras
    import numpy as np

    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    samples = STEPS[network] * BATCH[network]
    x = random.normal(size=(samples, *shapes(network))).astype("float32")
    y = random.integers(0, 10, samples)
    model = build(network)
    options: dict[str, Any] = {"batch_size": BATCH[network], "epochs": EPOCHS, "verbose": 0}
    if how == "ours":
        from outlast import fit

        fit(model, x, y, job_dir=f"{folder}/job", **options)
        return
    callbacks = [note_place(Path(folder, "place"), STEPS[network])]
    if how == "keras-backup":
        backup = keras.callbacks.BackupAndRestore(f"{folder}/backup", save_freq=10)
        callbacks.insert(0, backup)
    model.fit(x, y, callbacks=callbacks, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])

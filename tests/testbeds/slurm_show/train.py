"""The training of `make slurm-show`: the demo's script, no faster than so many seconds a step.

python train.py EPOCHS SECONDS_PER_STEP
"""

import runpy
import sys
import time
from pathlib import Path

import keras

import outlast

epochs, pace = int(sys.argv[1]), float(sys.argv[2])
train = outlast.fit
last = time.monotonic()


def keep_pace(batch, logs=None):  # type: ignore[no-untyped-def]
    """Wait until the step has taken its time."""
    global last
    time.sleep(max(0.0, last + pace - time.monotonic()))
    last = time.monotonic()


def fit(*args, **options):  # type: ignore[no-untyped-def]
    """Train for EPOCHS epochs, slowly and silently."""
    callbacks = [
        keras.callbacks.LambdaCallback(on_train_batch_end=keep_pace),
        keras.callbacks.ReduceLROnPlateau(patience=5),
    ]
    return train(*args, **{**options, "epochs": epochs, "callbacks": callbacks, "verbose": 0})


outlast.fit = fit
runpy.run_path(str(Path(outlast.__file__).with_name("demo") / "digits.py"))

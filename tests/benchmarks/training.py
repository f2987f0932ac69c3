"""How fast `fit` is beside Keras' own, and what saving costs: `make bench`.

Each variant trains the same network in a process of its own. Ratios on one machine are what counts;
a busy machine spoils them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# name -> save_every, or None for Keras' own fit
VARIANTS = {"model.fit": None, "fit, no saves": "never", "fit, every 100 steps": "100"}
ROUNDS = 3
SAMPLES, BATCH, EPOCHS = 32_000, 32, 4


def train(save_every: str | None, folder: str) -> dict[str, Any]:
    """Train once; return steps a second (first epoch left out) and milliseconds held by saves."""
    import keras
    import numpy as np

    from service import fit

    keras.utils.set_random_seed(1)
    generator = np.random.default_rng(1)
    x = generator.normal(size=(SAMPLES, 784)).astype("float32")
    y = generator.integers(0, 10, SAMPLES)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    ends: list[float] = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    arguments: dict[str, Any] = {"batch_size": BATCH, "epochs": EPOCHS, "verbose": 0}
    if save_every is None:
        model.fit(x, y, callbacks=[watch], **arguments)
        return {"rate": _rate(ends), "held": []}
    fit(model, x, y, callbacks=[watch], job_dir=folder, save_every=save_every, **arguments)
    log = Path(folder, "attempts/0001/log.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, log) if row["event"] == "snapshot_held"]
    return {"rate": _rate(ends), "held": [row["ms"] for row in rows]}


def _rate(ends: list[float]) -> float:
    return (EPOCHS - 1) * (SAMPLES / BATCH) / (ends[-1] - ends[0])


def main() -> None:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name in VARIANTS:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, name, f"{folder}/job"]
                done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found[name].append(json.loads(done.stdout))
    keras_rate = max(run["rate"] for run in found["model.fit"])
    print(f"{'':24}{'steps/s':>10}{'x model.fit':>13}{'longest hold':>14}")
    for name, runs in found.items():
        rate = max(run["rate"] for run in runs)
        held = [ms for run in runs for ms in run["held"]]
        hold = f"{max(held):.1f} ms" if held else "-"
        print(f"{name:24}{rate:>10.0f}{rate / keras_rate:>13.2f}{hold:>14}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(train(VARIANTS[sys.argv[1]], sys.argv[2])))
    else:
        main()

"""Shared by the training scripts: data, result, and points where a test can hold them."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

FOLDER = Path(sys.argv[1])


class Moments(keras.callbacks.Callback):
    """Holds the training at the moment that the file "hold" names, until that file changes.

    "validation 7 123" is: between two batches of validation, in epoch 7 or any later one, in any
    process but 123.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        if (FOLDER / "talk").exists():
            print("Words, words, words. " * 500)
        self._at("epoch_begin")

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self._at("validation")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._at("epoch_end")

    def on_train_end(self, logs: Any = None) -> None:
        self._at("train_end")

    def _at(self, moment: str) -> None:
        told = (FOLDER / "hold").read_text()
        wanted, epoch, but = told.split()
        if wanted != moment or self.epoch < int(epoch) or int(but) == os.getpid():
            return
        new = FOLDER / "held.new"
        new.write_text(f"{os.getpid()} {moment} {self.epoch}")
        new.replace(FOLDER / "held")
        while (FOLDER / "hold").read_text() == told:
            time.sleep(0.002)


def digits() -> tuple[Any, Any, Any, Any]:
    """Return training images and labels, validation images and labels: 8 x 8, from 0 to 1."""
    with np.load(FOLDER / "digits.npz") as stored:
        x, y = stored["x"], stored["y"]
    return x[:1000], y[:1000], x[1000:1300], y[1000:1300]


def stop_late() -> list[Any]:
    """Callbacks that change the rate now and then and end the training after some 25 epochs."""
    return [
        keras.callbacks.ReduceLROnPlateau(
            monitor="val_loss", factor=0.8, patience=2, min_delta=0.01, cooldown=1
        ),
        keras.callbacks.EarlyStopping(
            monitor="val_loss",
            patience=2,
            min_delta=0.2,
            start_from_epoch=24,
            restore_best_weights=True,
        ),
    ]


def write_history(history: keras.callbacks.History) -> None:
    """Leave the History that `fit` returned where the test finds it."""
    found = {"history": history.history, "epoch": history.epoch, "params": history.params}
    (FOLDER / "history.json").write_text(json.dumps(found, indent=1))

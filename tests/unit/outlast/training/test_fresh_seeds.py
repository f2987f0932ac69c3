"""Unseeded generators of NumPy go on after a resume, and Outlast draws no seeds itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from outlast.attempt import fresh_seeds
from tests.support.phase_scripts import dying_in, net, trained
from tests.support.training_harness import Death, begin_process, process


class Noise(keras.callbacks.Callback):
    """Draws from a new generator in each epoch, and keeps one."""

    def __init__(self) -> None:
        super().__init__()
        self.own = np.random.RandomState(3)
        self.drawn: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.drawn += [float(self.own.rand()), float(np.random.default_rng().random())]


def run(folder: Path) -> tuple[list[float], int | None]:
    begin_process()
    fresh_seeds.begin(7)
    with process(folder):
        first, second = Noise(), Noise()
        trained(folder, net(), epochs=3, callbacks=[first])
        trained(folder, net(), epochs=3, callbacks=[second])
    return first.drawn + second.drawn + [
        float(np.random.default_rng().random())
    ], fresh_seeds.drawn()


def test_new_generators_go_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bit_generator = importlib.import_module("numpy.random.bit_generator")
    monkeypatch.setattr(bit_generator, "randbits", bit_generator.randbits)
    monkeypatch.setattr(fresh_seeds, "_sequence", None)
    whole = run(tmp_path / "whole")
    # Two callbacks, each with a RandomState and three new generators, and the last one.
    assert (len(whole[0]), whole[1]) == (13, 2 + 6 + 1)
    for phase, step in ((0, 3), (0, 5), (1, 1), (1, 4)):
        with pytest.raises(Death), dying_in(phase, step):
            run(tmp_path / "killed")
    assert run(tmp_path / "killed") == whole

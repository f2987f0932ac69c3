"""The batch loop: the only room that imports Keras and TensorFlow."""

from __future__ import annotations

from service.training.fit import fit
from service.training.loop import Loop

__all__ = ["Loop", "fit"]

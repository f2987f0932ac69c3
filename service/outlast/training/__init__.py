"""The batch loop: the only room that imports Keras and TensorFlow."""

from __future__ import annotations

from outlast.training.fit import fit
from outlast.training.loop import Loop

__all__ = ["Loop", "fit"]

"""The batch loop: the only room that imports Keras and TensorFlow."""

from __future__ import annotations

from outlast.training.keras_internals.versions import require_supported

require_supported()  # before anything of theirs is used that another version may lack

from outlast.training.fit import fit  # noqa: E402
from outlast.training.loop import Loop  # noqa: E402

__all__ = ["Loop", "fit"]

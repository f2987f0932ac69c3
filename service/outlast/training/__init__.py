"""Training: `fit`, `Loop` and the batch loop. Only this room imports Keras and TensorFlow."""

from __future__ import annotations

from outlast.training.keras_internals.versions import require_supported

require_supported()  # before an import that fails with an unsupported version

from outlast.training.fit import fit  # noqa: E402
from outlast.training.loop import Loop  # noqa: E402

__all__ = ["Loop", "fit"]

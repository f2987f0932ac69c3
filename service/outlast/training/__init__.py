"""Training: `fit`, `Loop` and the batch loop. Only this room imports Keras and TensorFlow."""

from __future__ import annotations

from outlast.training.keras_internals.versions import require_supported

require_supported()  # before an import that fails with an unsupported version

from outlast.training.fit import fit  # noqa: E402
from outlast.training.keras_internals import random_streams  # noqa: E402
from outlast.training.loop import Loop  # noqa: E402
from outlast.training.phase_choice import watch_turns  # noqa: E402
from outlast.training.replicas.job_strategy import use_replicas  # noqa: E402

random_streams.install()  # before the script traces a function

__all__ = ["Loop", "fit", "use_replicas", "watch_turns"]

"""Saves while fine-tuning a model of 25 million parameters with a frozen backbone.

`python tests/benchmarks/frozen.py [--json] [--pairs N]`. Two of the model's four layers are frozen,
which have most of its weights; a save falls every 10 of 60 steps. Bytes are counted on the disk, of
files that no checkpoint before had. The peer is Keras' `save_weights`, which writes them all.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.command_line import HOW_MANY_PAIRS, main
from tests.benchmarks.figure import PAIRS, Figure, Spread, compared
from tests.benchmarks.killed import rows_of
from tests.benchmarks.loop import build
from tests.benchmarks.saving import BATCH, MB, data
from tests.benchmarks.worker import several

STEPS, SAVE_EVERY = 60, "10"
FROZEN_LAYERS = 2
Found = dict[str, Any]


def fine_tuned(layers: int) -> Found:
    """Train with `layers` frozen layers; return MB and seconds of saves, and MB of state."""
    from outlast import fit
    from outlast.attempt import bare, context

    x, y = data(steps=STEPS)
    model = build("dense")
    for layer in model.layers[:layers]:
        layer.trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as folder:
        fit(model, x, y, epochs=1, batch_size=BATCH["dense"], verbose=0, job_dir=f"{folder}/job",
            save_every=SAVE_EVERY, keep="all")  # fmt: skip
        attempt = context.current()
        assert attempt is not None
        bare.close_bare(attempt)
        log = rows_of(Path(folder, "job/attempts/0001/log.jsonl"))
        new = _new_bytes(Path(folder, "job/checkpoints"))
        weights = Path(folder, "model.weights.h5")
        model.save_weights(weights)
        state = weights.stat().st_size
    # The first two show what does not change; the last, at the end, is whole by intent.
    regular = [row for row in log if row["event"] == "saved" and row["reason"] == "step"][2:]
    return {
        "written": statistics.median(new[row["checkpoint"]] for row in regular) / MB,
        "seconds": statistics.median(row["seconds"] for row in regular),
        "state": state / MB,
        "trained": _trained(model) / MB,
    }


def _new_bytes(checkpoints: Path) -> dict[str, int]:
    """Return for each checkpoint the bytes of files that no earlier checkpoint has."""
    seen: set[int] = set()
    new = {}
    for folder in sorted(checkpoints.iterdir()):
        files = [path.stat() for path in folder.iterdir()]
        new[folder.name] = sum(one.st_size for one in files if one.st_ino not in seen)
        seen.update(one.st_ino for one in files)
    return new


def _trained(model: Any) -> int:
    """Return the bytes that training changes: trained weights and optimizer slots."""
    variables = [*model.trainable_variables, *model.optimizer.variables]
    return sum(variable.value.numpy().nbytes for variable in variables)


MEASURES = {
    "frozen": lambda: fine_tuned(FROZEN_LAYERS),
    "all trained": lambda: fine_tuned(0),
}


def run(*, pairs: int = PAIRS) -> list[Figure]:
    """Measure trainings with and without frozen layers, alternately."""
    found = several(__file__, list(MEASURES), pairs)
    frozen, whole = found["frozen"], found["all trained"]
    share = frozen[0]["trained"] / frozen[0]["state"]
    written, state = [one["written"] for one in frozen], [one["state"] for one in frozen]
    in_all = Spread.of([one["written"] / one["state"] for one in whole])
    return [
        compared(
            "bytes of a save, backbone frozen",
            "MB",
            written,
            state,
            "Keras save_weights",
            bar=f"<= {share:.3f} x, the share that is trained, and 1 %",
            holds=statistics.median(written) <= 1.01 * share * statistics.median(state),
            detail=f"with nothing frozen {in_all} x",
        ),
        compared(
            "seconds of such a save, beside training",
            "s",
            [one["seconds"] for one in frozen],
            [one["seconds"] for one in whole],
            "with nothing frozen",
        ),
    ]


if __name__ == "__main__":
    main(__doc__, run, {"--pairs": HOW_MANY_PAIRS}, worker=lambda name: MEASURES[name])

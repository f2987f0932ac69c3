"""The cost of saving 300 MB of state: time of the training loop, and memory.

`python tests/benchmarks/saving.py [--json] [--pairs N]`. The peers are Keras' `save_weights` in the
loop and, where it is installed (the extra `bench`), Orbax' AsyncCheckpointer. A training has two
epochs of 20 steps; the second is looked at. In it two saves fall, the last at its end.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.command_line import HOW_MANY_PAIRS, main
from tests.benchmarks.figure import PAIRS, Figure, Spread, compared, in_turn
from tests.benchmarks.killed import rows_of
from tests.benchmarks.loop import build, shapes
from tests.benchmarks.worker import once, several

STEPS = 20
MANY_STEPS = 100  # with a save every 10
TWO_SAVES = "15"  # at steps 15 and 30, and at the end, 40: two after the first epoch
MB = 1e6
# Alike in size: of few large variables, and of hundreds.
SAMPLES = {"dense": shapes("dense"), "resnet50": (32, 32, 3)}
BATCH = {"dense": 64, "resnet50": 8}
Found = dict[str, Any]


def model_of(network: str) -> Any:
    """Return a compiled model: 25 million parameters, 290 or 283 MB with Adam's slots."""
    import keras

    if network != "resnet50":
        return build(network)
    model = keras.applications.ResNet50(weights=None, input_shape=SAMPLES[network], classes=10)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(network: str = "dense", *, steps: int = STEPS) -> tuple[Any, Any]:
    """Return the samples and labels of an epoch."""
    import keras
    import numpy as np

    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    samples = BATCH[network] * steps
    x = random.normal(size=(samples, *SAMPLES[network])).astype("float32")
    return x, random.integers(0, 10, samples)


class Clock:
    """Records when the first epoch and the training ended, by per-epoch callbacks."""

    def __init__(self, first_ended: Callable[[], object] = lambda: None) -> None:
        import keras

        self.begin = self.end = 0.0

        def on_epoch_end(epoch: int, logs: Any = None) -> None:
            if epoch == 0:
                first_ended()
                self.begin = time.time()

        def on_train_end(logs: Any = None) -> None:
            self.end = time.time()

        calls = {"on_epoch_end": on_epoch_end, "on_train_end": on_train_end}
        self.callback = keras.callbacks.LambdaCallback(**calls)


def by_fit(
    save_every: str, network: str = "dense", *, epochs: int = 2, first_ended: Any = lambda: None
) -> Found:
    """Train as a job; return the figures from its clock, log and history."""
    from outlast import fit
    from outlast.attempt import bare, context

    clock = Clock(first_ended)
    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as folder:
        options: dict[str, Any] = {"job_dir": f"{folder}/job", "save_every": save_every}
        fit(model_of(network), *data(network), epochs=epochs, batch_size=BATCH[network], verbose=0,
            callbacks=[clock.callback], **options)  # fmt: skip
        durable = time.time()
        attempt = context.current()
        assert attempt is not None
        bare.close_bare(attempt)
        log = rows_of(Path(folder, "job/attempts/0001/log.jsonl"))
        rows = rows_of(Path(folder, "job/attempts/0001/history.jsonl"))
    times = [r["time"] for r in rows if r["kind"] == "step" and r["time"] > clock.begin]
    held = [row for row in log if row["event"] == "snapshot_held"]
    return {
        "held": [row["ms"] for row in held if row["time"] > clock.begin],
        "steps": [row["step"] for row in held],
        "at_most_in_flight": _in_flight(log),
        "gap": _longest_gap(times),
        "trained": clock.end - clock.begin,
        "durable": durable - clock.begin,
    }


def by_keras(
    save: Callable[[Any, str], None],
    wait: Callable[[], None] = lambda: None,
    network: str = "dense",
) -> Found:
    """Train with Keras' fit and a callback that saves as often; return the times."""
    import keras

    clock = Clock()
    times: list[float] = []
    held: list[float] = []
    model = model_of(network)
    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as folder:

        class Saves(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                step = int(self.model.optimizer.iterations.numpy())
                if step % 10 == 0:
                    start = time.perf_counter()
                    save(self.model, f"{folder}/{step}")
                    held.append((time.perf_counter() - start) * 1e3)
                times.append(time.time())

        callbacks = [Saves(), clock.callback]
        model.fit(
            *data(network), epochs=2, batch_size=BATCH[network], verbose=0, callbacks=callbacks
        )
        wait()
    return {
        "held": held[2:],
        "gap": _longest_gap([t for t in times if t > clock.begin]),
        "trained": clock.end - clock.begin,
    }


def _in_flight(log: list[Found]) -> int:
    """Return the largest number of unfinished saves at a time, from the order of events.

    The last is left out: no step follows it, so it holds nothing that the model does not.
    """
    most = now = 0
    last = max(i for i, row in enumerate(log) if row["event"] == "snapshot_held")
    for row in log[:last]:
        now += {"snapshot_held": 1, "saved": -1, "save_failed": -1}.get(row["event"], 0)
        most = max(most, now)
    return most


def _longest_gap(times: list[float]) -> float:
    """Return by how many ms the longest step time exceeds the median."""
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return (max(gaps) - statistics.median(gaps)) * 1e3


def _save_weights(model: Any, path: str) -> None:
    model.save_weights(f"{path}.weights.h5")


class _Orbax:
    """Saves with Orbax in the background: the training waits only for the copy."""

    def __init__(self) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())

    def __call__(self, model: Any, path: str) -> None:
        variables = [*model.variables, *model.optimizer.variables]
        state = {f"{i:04d}": v.numpy() for i, v in enumerate(variables)}
        self._saver.save(path, args=self._ocp.args.StandardSave(state))

    def wait(self) -> None:
        self._saver.wait_until_finished()


def by_orbax() -> Callable[[], Found]:
    saves = _Orbax()
    return lambda: by_keras(saves, saves.wait)


def many_saves(save_every: str) -> Found:
    """Train for long; return the peak resident memory after the first epoch, in MB."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    found = by_fit(
        save_every, epochs=1 + MANY_STEPS // STEPS, first_ended=lambda: forget.write_text("5")
    )
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return {**found, "peak": int(peak.split()[1]) * 1024 / MB}


MEASURES: dict[str, Callable[[], Callable[[], Found]]] = {
    "ours": lambda: lambda: by_fit(TWO_SAVES),
    "ours, no saves": lambda: lambda: by_fit("never"),
    "save_weights": lambda: lambda: by_keras(_save_weights),
    "orbax": by_orbax,
    "resnet50": lambda: lambda: by_fit(TWO_SAVES, "resnet50"),
    "resnet50, save_weights": lambda: lambda: by_keras(_save_weights, network="resnet50"),
    "many": lambda: lambda: many_saves("10"),
    "many, none": lambda: lambda: many_saves("never"),
}


def run(*, pairs: int = PAIRS) -> list[Figure]:
    """Measure the stall, the total and the memory."""
    names = ["ours", "ours, no saves", "save_weights", "resnet50", "resnet50, save_weights"]
    if find_spec("orbax") is not None:
        names.append("orbax")
    else:
        print("orbax-checkpoint (extra bench) is not installed: no row of it", file=sys.stderr)
    found = several(__file__, names, pairs)
    return [*_stalls(found), _total(found), _memory(pairs)]


def _stalls(found: dict[str, list[Found]]) -> list[Figure]:
    figures = []
    for ours, peer, told, of in (
        ("ours", "save_weights", "Keras save_weights", ""),
        ("ours", "orbax", "Orbax async", ""),
        ("resnet50", "resnet50, save_weights", "Keras save_weights", "ResNet50, 752 variables, "),
    ):
        if peer in found:
            held = [max(one["held"]) for one in found[ours]]
            other = [max(one["held"]) for one in found[peer]]
            name = f"longest hold of the loop for a save, {of}{told}"
            bar, holds = "<= 5 ms", Spread.of(held).median <= 5
            figures.append(compared(name, "ms", held, other, told, bar=bar, holds=holds))
    gaps = [[one["gap"] for one in found[name]] for name in ("ours", "save_weights")]
    nothing = Spread.of([one["gap"] for one in found["ours, no saves"]])
    figures.append(
        compared(
            "longest step less the median",
            "ms",
            *gaps,
            "Keras save_weights",
            detail=f"without any save {nothing}",
        )
    )
    return figures


def _total(found: dict[str, list[Found]]) -> Figure:
    mine = [one["durable"] for one in found["ours"]]
    none = [one["trained"] for one in found["ours, no saves"]]
    ratio = Spread.of([a / b for a, b in zip(mine, none, strict=True)]).median
    theirs = Spread.of([one["trained"] for one in found["save_weights"]])
    return compared(
        f"{STEPS} steps with two durable saves",
        "s",
        mine,
        none,
        "the same without",
        bar="<= 1.2 x",
        holds=ratio <= 1.2,
        detail=f"Keras with two save_weights, not synced: {theirs}",
    )


def _memory(pairs: int) -> Figure:
    """Measure each training in a separate process; the peak counts from the second epoch on."""
    runs: list[Found] = []

    def ours() -> float:
        runs.append(once(__file__, "many"))
        return float(runs[-1]["peak"])

    mine, none = in_turn(ours, lambda: float(once(__file__, "many, none")["peak"]), pairs)
    state = _state_size()
    copies = [(a - b) / state for a, b in zip(mine, none, strict=True)]
    last = runs[-1]
    late = [step % 10 for step in last["steps"][1:-1]]
    return Figure(
        f"extra memory, a save every 10 of {MANY_STEPS} steps",
        f"copies of the {state:.0f} MB of state",
        Spread.of(copies),
        bar="<= 1",
        holds=Spread.of(copies).median <= 1.05,
        detail=f"peak {Spread.of(mine)} MB, without saves {Spread.of(none)} MB; {len(late)} saves, "
        f"{sum(map(bool, late))} of them waited for the one before, at most {max(late)} steps; "
        f"in flight at most {max(one['at_most_in_flight'] for one in runs)}",
    )


def _state_size() -> float:
    """Return the size of weights and Adam's two slots, MB, from the layers' units."""
    units = [*shapes("dense"), 4096, 4096, 1024, 10]
    weights = sum((a + 1) * b for a, b in itertools.pairwise(units))
    return 3 * 4 * weights / MB


if __name__ == "__main__":
    main(__doc__, run, {"--pairs": HOW_MANY_PAIRS}, worker=lambda name: MEASURES[name]())

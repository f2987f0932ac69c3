"""Steps per second of `fit` and of Keras, with a history of every step and regular checkpoints.

`python tests/benchmarks/loop.py [--json] [CASE …]`. Ours and the peer's train in processes of their
own, which take turns; the first epoch, in which both compile, is not measured. The bar is a Keras
fit that keeps no step's logs and saves nothing. Beside it stands one that does both, as often as
ours, by BackupAndRestore (which writes over its one file and does not sync it).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.command_line import HOW_MANY_PAIRS, main
from tests.benchmarks.figure import PAIRS, Figure, Spread, compared
from tests.benchmarks.worker import several

SAVE_EVERY = 100
SAME_DUTIES = "model.fit, BackupAndRestore, each step's logs"


@dataclass(frozen=True)
class Case:
    """A training. network: see `networks`. steps: per epoch. ours, peer: what trains it."""

    name: str
    network: str
    steps: int
    bar: float
    epochs: int = 4
    batch: int = 32
    ours: str = "fit"
    peer: str = "model.fit"
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("MLP 784-128-10", "mlp", 800, 2.5),
    Case("small CNN", "cnn", 150, 1.7),
    Case("LSTM", "lstm", 200, 1.3),
    Case("25M parameters", "dense", 10, 1.05, epochs=3, batch=64),
    Case("MLP on tf.data", "mlp", 800, 1.0, ours="fit, tf.data", peer="model.fit, tf.data"),
    Case("MLP against train_on_batch", "mlp", 800, 1.0, peer="train_on_batch, float sums"),
    Case("MLP, XLA", "mlp", 800, 6.0, epochs=6, options={"jit_compile": True}),
    Case("LSTM, XLA", "lstm", 200, 4.0, epochs=6, options={"jit_compile": True}),
    Case('small CNN, jit_compile="auto"', "cnn", 150, 1.7, options={"jit_compile": "auto"}),
]


def shapes(network: str) -> tuple[int, ...]:
    """Return the shape of a sample."""
    return {"mlp": (784,), "dense": (784,), "cnn": (28, 28, 1), "lstm": (28, 28)}[network]


def build(network: str) -> Any:
    """Return a model, compiled with Adam and accuracy."""
    import keras
    from keras import layers

    parts: dict[str, list[Any]] = {
        "mlp": [layers.Dense(128, "relu")],
        "dense": [layers.Dense(units, "relu") for units in (4096, 4096, 1024)],
        "cnn": [
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
        ],
        "lstm": [layers.LSTM(32)],
    }
    model = keras.Sequential(
        [keras.Input(shapes(network)), *parts[network], layers.Dense(10, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(case: Case, how: str) -> float:
    """Train once from the beginning; return steps per second from the second epoch on."""
    import keras
    import numpy as np

    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    samples = case.batch * case.steps
    x = random.normal(size=(samples, *shapes(case.network))).astype("float32")
    y = random.integers(0, 10, samples)
    model = build(case.network)
    ends: list[float] = []
    RUNS[how](case, model, x, y, lambda: ends.append(time.perf_counter()))
    return (case.epochs - 1) * case.steps / (ends[-1] - ends[0])


def _watch(ended: Callable[[], None]) -> list[Any]:
    import keras

    return [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ended())]


def _batched(case: Case, x: Any, y: Any) -> Any:
    import tensorflow as tf

    slices = tf.data.Dataset.from_tensor_slices((x, y))
    return slices.batch(case.batch).prefetch(tf.data.AUTOTUNE)


def _fit(case: Case, model: Any, *data: Any, ended: Callable[[], None], **options: Any) -> None:
    from outlast import fit
    from outlast.attempt import bare, context

    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as folder:
        fit(
            model,
            *data,
            epochs=case.epochs,
            verbose=0,
            callbacks=_watch(ended),
            job_dir=f"{folder}/job",
            save_every=SAVE_EVERY,
            **case.options,
            **options,
        )
        attempt = context.current()
        assert attempt is not None
        bare.close_bare(attempt)


def _by_fit(case: Case, model: Any, x: Any, y: Any, ended: Callable[[], None]) -> None:
    _fit(case, model, x, y, ended=ended, batch_size=case.batch)


def _by_fit_on_tfdata(case: Case, model: Any, x: Any, y: Any, ended: Callable[[], None]) -> None:
    _fit(case, model, _batched(case, x, y), ended=ended, shuffle=False)


def _keras_fit(
    case: Case, model: Any, *data: Any, ended: Callable[[], None], more: Any = (), **options: Any
) -> None:
    callbacks = [*more, *_watch(ended)]
    model.fit(*data, epochs=case.epochs, verbose=0, callbacks=callbacks, **options)


def _by_keras(case: Case, model: Any, x: Any, y: Any, ended: Callable[[], None]) -> None:
    _keras_fit(case, model, x, y, ended=ended, batch_size=case.batch)


def _by_keras_with_our_duties(
    case: Case, model: Any, x: Any, y: Any, ended: Callable[[], None]
) -> None:
    import keras

    rows = []
    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as folder:
        duties = [
            keras.callbacks.BackupAndRestore(f"{folder}/backup", save_freq=SAVE_EVERY),
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: rows.append(logs)
            ),
        ]
        _keras_fit(case, model, x, y, ended=ended, more=duties, batch_size=case.batch)


def _by_keras_on_tfdata(case: Case, model: Any, x: Any, y: Any, ended: Callable[[], None]) -> None:
    _keras_fit(case, model, _batched(case, x, y), ended=ended, shuffle=False)


def _by_train_on_batch(case: Case, model: Any, x: Any, y: Any, ended: Callable[[], None]) -> None:
    """The common hand-written loop: sums of floats, divided at the end of the epoch."""
    for _ in range(case.epochs):
        loss = accuracy = 0.0
        for batch in range(case.steps):
            part = slice(batch * case.batch, (batch + 1) * case.batch)
            found = model.train_on_batch(x[part], y[part])
            loss += float(found[0])
            accuracy += float(found[1])
        loss, accuracy = loss / case.steps, accuracy / case.steps
        ended()


RUNS: dict[str, Callable[..., None]] = {
    "fit": _by_fit,
    "fit, tf.data": _by_fit_on_tfdata,
    "model.fit": _by_keras,
    "model.fit, tf.data": _by_keras_on_tfdata,
    SAME_DUTIES: _by_keras_with_our_duties,
    "train_on_batch, float sums": _by_train_on_batch,
}


def run(cases: list[str] | None = None, *, pairs: int = PAIRS) -> list[Figure]:
    """Measure the cases of these names, or all."""
    return [_figure(case, pairs) for case in CASES if not cases or case.name in cases]


def _figure(case: Case, pairs: int) -> Figure:
    others = [SAME_DUTIES] if case.peer == "model.fit" else []
    found = several(__file__, [case.ours, case.peer, *others], pairs, case.name)
    mine, theirs = found[case.ours], found[case.peer]
    ratio = Spread.of([one / other for one, other in zip(mine, theirs, strict=True)]).median
    detail = ""
    if others:
        beside = compared("", "", mine, found[SAME_DUTIES], SAME_DUTIES)
        detail = f"{beside.ratio} x of {SAME_DUTIES}, {beside.peer}"
    return compared(
        case.name,
        "steps/s",
        mine,
        theirs,
        case.peer,
        bar=f">= {case.bar:g} x",
        holds=ratio >= case.bar,
        detail=detail,
    )


def training_of(case: str, trainer: str) -> Callable[[], float]:
    """Return what trains a case, for a worker."""
    named = next(one for one in CASES if one.name == case)
    return lambda: train(named, trainer)


if __name__ == "__main__":
    cases = {"nargs": "*", "metavar": "CASE"}
    main(__doc__, run, {"cases": cases, "--pairs": HOW_MANY_PAIRS}, worker=training_of)

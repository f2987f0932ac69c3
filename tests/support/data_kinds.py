"""One small training for every kind of data that `fit` accepts, built again for each process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorflow as tf

from tests.support.data_models import (
    classifier,
    listed_inputs,
    nested_inputs,
    optional_input,
    plain_model,
    ragged_inputs,
    temporal,
    two_inputs,
    without_targets,
)
from tests.support.data_samples import (
    BATCH,
    CLASSES,
    EPOCHS,
    SAMPLES,
    TARGETS,
    TIMES,
    Adapter,
    Batches,
    Endless,
    Parts,
    Reshuffled,
    W,
    WithGetState,
    WithStateDict,
    X,
    Y,
    augmented,
    dicts,
    doubled_in_python,
    endless,
    finite,
    frames,
    from_generator,
    grain_dataset,
    grain_loader,
    grain_noisy,
    grain_windowed,
    inputs_only,
    interleaved,
    labelled,
    nested_arrays,
    noisy,
    of_parts,
    of_scipy,
    of_tensorflow,
    passes,
    ragged,
    slices,
    sparse,
    sparse_batches,
    torch_loader,
    torch_noisy,
    torch_seeded,
    torch_stream,
    weighted,
    without_b,
)
from tests.support.training_harness import Script


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    make: returns the arguments of `fit`, all made anew. way: how the log says that a resume found
    its batch. build: returns the model. dropout: False where Keras' own failing step, the one that
    finds no more data, moves the seeds on.
    """

    make: Callable[[], dict[str, Any]]
    way: str
    build: Callable[[bool], Any] | None = None
    dropout: bool = True
    needs: str | None = None
    doubt: str | None = None  # a word of the warning given at the start

    def script(self) -> Script:
        arguments: dict[str, Any] = {}

        def build() -> Any:
            model = (self.build or plain_model)(self.dropout)
            arguments.clear()
            arguments.update({"epochs": EPOCHS, "shuffle": False, **self.make()})
            return model

        return Script(build, arguments)


def of(make: Callable[[], Any], way: str, **rest: Any) -> Kind:
    """Return the kind of an `x`; options that are not fields of `Kind` are arguments of `fit`."""
    fields = {k: rest.pop(k) for k in list(rest) if k in Kind.__dataclass_fields__}
    return Kind(lambda: {"x": make(), **rest}, way, **fields)


GRAINS_WAY = "its iterator's own state"
KINDS: dict[str, Kind] = {
    # arrays
    "tensors": Kind(
        lambda: {"x": tf.constant(X), "y": tf.constant(Y), "batch_size": BATCH}, "by cursor"
    ),
    "pandas": Kind(frames, "by cursor", needs="pandas"),
    "list": Kind(
        lambda: {"x": [X[:, :3], X[:, 3:]], "y": Y, "batch_size": BATCH},
        "by cursor",
        listed_inputs,
    ),
    "dict": Kind(
        lambda: {"x": {"b": X[:, 3:], "a": X[:, :3]}, "y": Y, "batch_size": BATCH},
        "by cursor",
        two_inputs,
    ),
    "nested": Kind(nested_arrays, "by cursor", nested_inputs),
    "arrays with steps_per_epoch": Kind(
        lambda: {"x": X, "y": Y, "batch_size": BATCH, "steps_per_epoch": 5}, "by cursor"
    ),
    "scipy sparse": of(of_scipy, "by cursor", y=Y, batch_size=BATCH, needs="scipy"),
    "sparse tensor": of(of_tensorflow, "by cursor", y=Y, batch_size=BATCH),
    "ragged tensor": of(ragged, "by cursor", y=Y, batch_size=BATCH, build=ragged_inputs),
    "arrays class_weight": Kind(
        lambda: {"x": X, "y": TARGETS["2"], "batch_size": BATCH, "class_weight": CLASSES},
        "by cursor",
        classifier,
    ),
    "arrays temporal weights": Kind(
        lambda: dict(zip(("x", "y", "sample_weight", "batch_size"), (*TIMES, BATCH), strict=True)),
        "by cursor",
        temporal,
    ),
    # tf.data
    "tf.data": of(lambda: slices().batch(BATCH), "iterator"),
    "tf.data shuffle": of(lambda: slices().shuffle(SAMPLES, seed=4).batch(BATCH), "skip"),
    "tf.data repeat": of(lambda: slices().repeat().batch(BATCH), "iterator", steps_per_epoch=5),
    "tf.data shuffle repeat": of(
        lambda: slices().shuffle(20, seed=4).repeat().batch(BATCH), "skip", steps_per_epoch=5
    ),
    "tf.data in pieces": of(lambda: slices().batch(BATCH), "iterator", steps_per_epoch=3),
    "tf.data of unknown size": of(
        lambda: slices().filter(lambda x, y: y[0] < 1.5).batch(BATCH), "iterator", dropout=False
    ),
    "tf.data cache": of(lambda: slices().cache().batch(BATCH), "skip"),
    "tf.data interleave": of(lambda: interleaved().batch(BATCH), "iterator", dropout=False),
    "tf.data parallel map": of(
        lambda: (
            slices()
            .map(lambda x, y: (x * 2, y), num_parallel_calls=tf.data.AUTOTUNE)
            .batch(BATCH)
            .prefetch(tf.data.AUTOTUNE)
        ),
        "iterator",
    ),
    "tf.data py_function": of(
        lambda: doubled_in_python().batch(BATCH), "replay", doubt="EagerPyFunc"
    ),
    "tf.data random map": of(lambda: noisy().batch(BATCH), "skip"),
    "tf.data layer map": of(lambda: augmented().batch(BATCH), "replay", doubt="ReadVariableOp"),
    "tf.data from_generator": of(from_generator, "replay", dropout=False, doubt="PyFunc"),
    "tf.data sparse": of(sparse, "iterator"),
    "data adapter": of(Adapter, "iterator"),
    **{
        f"tf.data class_weight, targets {kind}": of(
            partial(labelled, y),
            "iterator",
            class_weight=CLASSES,
            build=classifier,
        )
        for kind, y in TARGETS.items()
    },
    "tf.data weighted": of(
        lambda: tf.data.Dataset.from_tensor_slices((X, Y, W)).batch(BATCH), "iterator"
    ),
    "tf.data temporal weights": of(
        lambda: tf.data.Dataset.from_tensor_slices(TIMES).batch(BATCH), "iterator", build=temporal
    ),
    # PyDataset
    "PyDataset": of(Batches, "by cursor"),
    "PyDataset threads": of(lambda: Batches(workers=3, max_queue_size=4), "by cursor"),
    "PyDataset processes": of(
        lambda: Batches(workers=2, use_multiprocessing=True, max_queue_size=4), "by cursor"
    ),
    "PyDataset reshuffled": of(Reshuffled, "by cursor"),
    "PyDataset in pieces": of(Reshuffled, "by cursor", steps_per_epoch=3),
    "PyDataset endless": of(Endless, "by cursor", steps_per_epoch=5),
    "PyDataset endless threads": of(
        lambda: Endless(workers=2, max_queue_size=3), "by cursor", steps_per_epoch=5
    ),
    "PyDataset class_weight": of(
        lambda: Parts(X, TARGETS["one-hot"]), "by cursor", class_weight=CLASSES, build=classifier
    ),
    "PyDataset weighted": of(lambda: Parts(X, Y, W), "by cursor"),
    "PyDataset temporal weights": of(lambda: Parts(*TIMES), "by cursor", build=temporal),
    # generators
    "generator endless": of(endless, "replay from its start", steps_per_epoch=5),
    "generator finite": of(finite, "replay from its start", dropout=False),
    "generator short batches": of(passes, "replay from its start", steps_per_epoch=5),
    "generator weighted": of(weighted, "replay from its start", steps_per_epoch=5),
    "generator inputs only": of(
        inputs_only, "replay from its start", build=without_targets, steps_per_epoch=5
    ),
    "generator temporal weights": of(
        lambda: of_parts(*TIMES), "replay from its start", build=temporal, steps_per_epoch=5
    ),
    "generator dicts": of(dicts, "replay from its start", build=two_inputs, steps_per_epoch=5),
    "generator scipy sparse": of(
        sparse_batches, "replay from its start", needs="scipy", steps_per_epoch=5
    ),
    "generator without an input": of(
        without_b, "replay from its start", build=optional_input, steps_per_epoch=5
    ),
    "iterator get_state": of(WithGetState, "its own state", steps_per_epoch=5),
    "iterator state_dict": of(WithStateDict, "its own state", steps_per_epoch=5),
    # other loaders
    "torch": of(torch_loader, "skip within the pass", needs="torch"),
    "torch shuffle": of(
        lambda: torch_loader(shuffle=True, seed=4), "skip within the pass", needs="torch"
    ),
    "torch global shuffle": of(torch_seeded, "skip within the pass", needs="torch"),
    "torch in pieces": of(torch_seeded, "skip within the pass", needs="torch", steps_per_epoch=5),
    "torch noise": of(torch_noisy, "skip within the pass", needs="torch"),
    "torch workers": of(lambda: torch_noisy(num_workers=2), "skip within the pass", needs="torch"),
    "torch stream": of(torch_stream, "skip within the pass", needs="torch", dropout=False),
    "torch stream workers": of(
        lambda: torch_stream(num_workers=2), "skip within the pass", needs="torch", dropout=False
    ),
    "grain": of(lambda: grain_dataset().batch(BATCH), GRAINS_WAY, needs="grain", dropout=False),
    "grain noise": of(grain_noisy, GRAINS_WAY, needs="grain", steps_per_epoch=5),
    "grain window": of(grain_windowed, GRAINS_WAY, needs="grain", dropout=False),
    "grain DataLoader": of(grain_loader, GRAINS_WAY, needs="grain", dropout=False),
}
# Keras' own pool of processes can wait for ever for one that it has forked beside TensorFlow's
# threads: what it would train on is what its pool of threads trains on, in the same order.
KERAS_INSTEAD = {"PyDataset processes": "PyDataset threads"}
# Keras itself takes generators only, no other iterators.
BEYOND_KERAS = {"iterator get_state", "iterator state_dict"}

"""`fit`: Keras' fit with a job behind it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from outlast.training.data.permutation import Shuffle
from outlast.training.fit_arguments import Plan, check_model
from outlast.training.history import History
from outlast.training.job import TrainingJob
from outlast.training.trainer import Trainer


def fit(
    model: Any,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: str | int = "auto",
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: Shuffle = True,
    class_weight: dict[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | list[int] = 1,
    *,
    seed: int | None = None,
    max_queue_size: int = 10,
    jit_compile: bool | str | None = None,
    view_metrics: bool = False,
    job_dir: str | Path | None = None,
    save_every: str | int | None = None,
    keep: str | int | None = None,
    name: str | None = None,
) -> History:
    """Train a compiled Keras model so that the training survives; same arguments as `Model.fit`.

    Run again after any kind of death, in the same script, it goes on from the very batch after
    the last one saved, and ends with the same bytes as a training that was never touched. Called
    more than once in a script, each call is a phase; a finished phase gives back its result.

    Args beyond `keras.Model.fit` (Keras 3):
        seed: seed of the order of samples, an integer. Default: derived from python's `random`
            generator (without disturbing it), so `keras.utils.set_random_seed` decides it.
        max_queue_size: batches of a generator that are read ahead. Default 10.
        jit_compile: True trains by XLA programs of several steps, False without XLA, "auto"
            measures both at the training's start and keeps to the faster, also over resumes (it
            stands in the checkpoint). Default None: as the model was compiled.
        view_metrics: True draws the metrics by epoch while training: in a notebook below the
            cell, elsewhere into metrics.png in the job's folder (needs matplotlib).
        job_dir: folder or URL of the job; needed in a script started without `outlast run`,
            where the job decides this, `save_every` and `keep`.
        save_every: when to save: steps (100), time ("30s", "5m"), "epoch", or several with
            commas. Default "auto": as often as the measured cost of a save and the failures so
            far make worth while (see `outlast.job.save_interval`), for at most one per cent of
            the time;
            "auto:2%" sets another bound.
        keep: which checkpoints to keep: a number of newest ones, or
            "last:3,every:1000,best:val_loss". Default "last:3".
        name: name of the phase. It means this phase in whatever order the script calls them.
            Default: phases without a name are told apart by their order.

    `verbose="auto"` is a progress bar on a terminal and one line an epoch elsewhere.

    Returns: a `keras.callbacks.History`, complete over all attempts, with `plot()` and
    `to_frame()`.

    Raises:
        UsageError: an argument is wrong (its name is in the message).
        NotSupported: data or an argument that cannot be resumed yet.
        StateMismatch: the checkpoint is of another training; names the first difference.
        PhaseMismatch: so is the finished phase whose turn it is.
        PhaseUnfinished: it would begin a new phase while another one is unfinished.
        JobBusy: another process trains this job.
        StateSaved (a SystemExit with code 75): a stop was asked for and the state is safe.
    """
    plan = Plan(
        x=x,
        y=y,
        sample_weight=sample_weight,
        batch_size=batch_size,
        epochs=epochs,
        initial_epoch=initial_epoch,
        verbose=verbose,
        callbacks=callbacks,
        validation_split=validation_split,
        validation_data=validation_data,
        validation_steps=validation_steps,
        validation_batch_size=validation_batch_size,
        validation_freq=validation_freq,
        shuffle=shuffle,
        class_weight=class_weight,
        steps_per_epoch=steps_per_epoch,
        max_queue_size=max_queue_size,
        jit_compile=jit_compile,
        view_metrics=view_metrics,
        seed=seed,
        name=name,
        save_every=save_every,
        keep=keep,
    )
    check_model(model)
    most = keras.config.max_epochs()
    if most and most < plan.epochs:
        warnings.warn(f"Limiting epochs to {most}", stacklevel=2)
        plan = replace(plan, epochs=most)
    job = TrainingJob.current(
        job_dir, save_every=plan.save_every, keep=plan.keep, seed=plan.seed, name=plan.name
    )
    return Trainer(model, plan, job).run()

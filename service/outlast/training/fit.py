"""`fit`: `keras.Model.fit` with checkpoints, resume and preemption handling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outlast.training.adoption import fit_through_own
from outlast.training.data.permutation import Shuffle
from outlast.training.fit_arguments import Plan, check_model
from outlast.training.fit_call import train
from outlast.training.history import History
from outlast.training.keras_internals.trainer import overrides_fit


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
    """Train a compiled Keras model, and survive crashes, kills and preemptions.

    `fit` accepts the arguments of `keras.Model.fit` and trains by the same rules. It also saves
    checkpoints of the complete training state. If the process dies, run the same script again:
    training resumes at the batch after the last checkpoint, and ends with the same bytes as an
    uninterrupted run.

    Each call in a script is one phase of the job. A finished phase is not trained again: the call
    restores the model and returns the phase's history. If an earlier attempt left the phase by an
    error and then began another phase, the call restores the model and raises the same error.

    A model with a `fit` of its own that ends in `super().fit` keeps its own part, such as a
    preprocessor.

    Args:
        model: Compiled `keras.Model`.
        x: Input data: an array or tensor of shape `(samples, ...)`, a list or dict of them, a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a torch `DataLoader`, a Grain dataset or
            loader, or a Python generator or iterator.
        y: Targets, of shape `(samples, ...)`. Leave it out if `x` yields the targets.
        batch_size: Integer or `None`. Samples per step, for arrays. Defaults to 32, or with
            `steps_per_epoch` to the samples divided by the steps.
        epochs: Integer. Number of the epoch at which training ends, counted over all attempts.
            Defaults to 1. If you raise it for a finished phase, training continues, unless a
            later phase has begun.
        verbose: `"auto"`, 0, 1 or 2. 0 is silent, 1 a progress bar, 2 one line per epoch.
            `"auto"`, the default, is 1 on a terminal and 2 elsewhere.
        callbacks: List of `keras.callbacks.Callback`, or a `keras.callbacks.CallbackList`. Their
            state is part of the checkpoint.
        validation_split: Float, at least 0 and less than 1. Fraction of the arrays to use for
            validation; they are the last samples, before any shuffling. Defaults to 0.
        validation_data: `(x, y)`, `(x, y, sample_weight)`, or any data that
            `keras.Model.evaluate` accepts. Overrides `validation_split`.
        shuffle: Boolean or `"batch"`. `True`, the default, shuffles arrays, and the batches of a
            `PyDataset`, before each epoch. `"batch"` shuffles the samples within each batch of
            arrays. Other data keeps its order.
        class_weight: Dict from class index (integer) to weight (float).
        sample_weight: Array of weights, of shape `(samples,)` or `(samples, sequence_length)`.
        initial_epoch: Integer. Epoch at which a new training begins, from 0. Defaults to 0. A
            resume continues at the epoch in the checkpoint.
        steps_per_epoch: Integer or `None`. Batches per epoch. With `None`, the default, an epoch
            is one pass over the data. With a number, one pass continues over several epochs.
            With -1, an epoch lasts until the data ends.
        validation_steps: Integer or `None`. Batches per validation. Defaults to all batches.
        validation_batch_size: Integer or `None`. Samples per validation batch, for arrays.
            Defaults to `batch_size`.
        validation_freq: Integer or list of integers. An integer n validates every n epochs; a
            list names the epochs, counted from 1. Defaults to 1.
        seed: Integer from 0 to 2**63 - 1, or `None`. Seeds the order of samples. With `None`, the
            seed is derived from Python's `random` generator without consuming from it, so
            `keras.utils.set_random_seed` decides it. A resume keeps the seed in the checkpoint,
            and refuses a different one.
        max_queue_size: Integer. Batches of a generator or iterator to read ahead. Defaults to 10.
        jit_compile: Boolean, `"auto"` or `None`. `True` trains with XLA, `False` without.
            `"auto"` times both before the first step and keeps the faster one, also over
            resumes. With `None`, the default, the model's `compile` decides.
        view_metrics: Boolean. `True` draws the metrics by epoch during the training: below the
            cell in a notebook, otherwise to `metrics.png` in the job's folder. It needs
            matplotlib. Defaults to `False`.
        job_dir: Folder or URL of the job. You need it in a script that you start without
            `outlast run`. Under `outlast run`, the settings of the job replace `job_dir`,
            `save_every` and `keep`.
        save_every: When to save a checkpoint: a number of steps (`100`), a duration (`"30s"`,
            `"5m"`), `"epoch"`, or several, separated by commas. `"auto"`, the default, chooses
            the interval from the measured cost of a save and the failures so far, and spends at
            most 1 % of the time on saves; `"auto:2%"` sets another limit.
        keep: Checkpoints to keep: the number of newest ones, or a rule like
            `"last:3,every:1000,best:val_loss"`. Defaults to `"last:3"`.
        name: Name of the phase. It identifies the phase, in whatever order the script calls them.
            Phases without a name are identified by the variables of the loops around them, and
            then by their order.

    Returns:
        An `outlast.training.history.History`, a `keras.callbacks.History` with `plot()` and
        `to_frame()`. It contains the epochs of all attempts. If `callbacks` has a
        `keras.callbacks.History`, that one is returned. For a model with a `fit` of its own, what
        that returns.

    Raises:
        UsageError: an argument is invalid. The message names it.
        NotSupported: the model, or the state of a callback, cannot be saved and resumed.
        StateMismatch: the checkpoint does not match the script. The message names the first
            difference; the model's variables are unchanged.
        PhaseMismatch: the finished phase does not match this call. It is a `StateMismatch`.
        PhaseUnfinished: this call would begin a new phase while another one is unfinished.
        PhaseLeft: an earlier attempt left the phase by an error whose class no longer exists.
        JobBusy: another process runs this job.
        Diverged: the loss became NaN or infinite, and the job's `on_nan` is "stop", or it
            is "rollback" and no supervisor rolls back.
        ExtraMissing: `view_metrics` needs matplotlib, which is not installed.
        StateSaved: a stop was requested, and the state is saved. This is a `SystemExit` with
            code 75.
        KeyboardInterrupt: you pressed Ctrl-C in a script that runs without `outlast run`. The
            state is saved first.

    Example:

    ```python
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = fit(model, x, y, epochs=10, validation_split=0.1, job_dir="my-job")
    print(history.history["val_accuracy"][-1])
    ```
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
    if overrides_fit(model):
        result: History = fit_through_own(model, plan, job_dir)
        return result
    check_model(model)
    return train(model, plan, job_dir)

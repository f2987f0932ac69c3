"""Bare scripts whose data has worker processes; each a fork of this process, which has TensorFlow.

Reads lines "KIND NAME"; answers with the process id, "held" when the training is within a step and
waits for a signal, and the exit code. The job is NAME below the folder that is given.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.forked_script import as_process

PATIENCE_S = 60  # only a failure takes that long


def main(folder: Path, held_at: int) -> None:
    for package in ("outlast.training.fit", "tests.support.data_kinds", "grain", "torch"):
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(package)

    for line in sys.stdin:
        kind, name = line.split()
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            run = functools.partial(training, kind, folder / name, held_at, theirs)
            as_process(run, (folder / name).with_suffix(".told"))
        os.close(theirs)
        say(pid)
        say("held" if os.read(ours, 1) else "not held")
        os.close(ours)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def say(what: object) -> None:
    print(what, flush=True)


def training(kind: str, folder: Path, held_at: int, held: int) -> None:
    import keras

    from outlast import fit
    from outlast.attempt import context
    from tests.support.data_models import plain_model
    from tests.support.data_samples import X, Y

    kind, _, way = kind.partition("-")
    validating = way == "validation"

    class Hold(keras.callbacks.Callback):  # type: ignore[misc]
        """Waits within a step, or within a validation, for the signal and for who dies of it."""

        seen = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen += 1
            if self.seen == held_at and not validating:
                self.hold()

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 0:
                self.hold()

        def hold(self) -> None:
            ctx = context.current()
            assert ctx is not None
            os.write(held, b"!")
            os.close(held)
            until = time.monotonic() + PATIENCE_S
            while not (ctx.stop.requested or ctx.stop.save_and_continue):
                assert time.monotonic() < until
                time.sleep(0.02)
            time.sleep(0.5)  # a worker that dies of it does so now, seen or not

    keras.utils.set_random_seed(1)
    arguments = {"x": data(kind, way), "epochs": 4}
    if validating:
        arguments = {
            "x": X[: 8 * held_at],
            "y": Y[: 8 * held_at],
            "batch_size": 8,
            "epochs": 1,
            "validation_data": arguments["x"],
        }
    fit(
        plain_model(),
        verbose=0,
        job_dir=folder,
        save_every="never",
        callbacks=[Hold()],
        **arguments,
    )


def data(kind: str, way: str) -> Any:
    from tests.support import data_samples

    if way == "stuck":
        return stuck()
    if way == "spawn":
        return data_samples.torch_loader(num_workers=2, multiprocessing_context="spawn")
    if kind == "torch":
        return data_samples.torch_noisy(num_workers=2)
    if kind == "grain":
        return data_samples.grain_loader(workers=2)
    # More batches than are fetched ahead: the workers still have something to do.
    return data_samples.Batches(workers=2, use_multiprocessing=True, max_queue_size=2)


def stuck() -> Any:
    """A loader whose workers never get to the end of an item beyond those that are needed."""
    import torch

    from tests.support import data_samples

    class Stuck(torch.utils.data.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return data_samples.SAMPLES

        def __getitem__(self, i: int) -> Any:
            while i >= 40:
                time.sleep(60)
            return data_samples.X[i], data_samples.Y[i]

    return data_samples.torch_loader(Stuck(), num_workers=2)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    main(Path(sys.argv[1]), int(sys.argv[2]))

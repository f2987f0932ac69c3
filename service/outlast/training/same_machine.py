"""Compares this machine with that of the job's first attempt before anything is trained."""

from __future__ import annotations

import os

import tensorflow as tf

from outlast.attempt.context import AttemptContext
from outlast.job import machine
from outlast.job.log_events import LogEvent
from outlast.training.errors import MachineMismatch


def require_same(ctx: AttemptContext) -> None:
    """Require the intra-op threads of the job's first attempt, and report what else differs.

    An attempt under a supervisor finds them in its environment. In a bare script TensorFlow has
    started by now, with threads that cannot be changed any more.

    Raises:
        MachineMismatch: a bare script computes with another number of threads.
    """
    first = machine.load(ctx.storage)
    threads = _threads()
    wanted = ctx.spec.intra_op_threads if first is None else first.intra_op_threads
    if not ctx.supervised and wanted is not None and wanted != threads:
        raise MachineMismatch(
            wanted=wanted, threads=threads, variable=f"{machine.THREADS}={wanted}"
        )
    now = machine.here(threads, ctx.spec.cpu_isa, _accelerator())
    different = machine.differences(first or machine.keep(ctx.storage, now), now)
    if different:
        different_text = "; ".join(f"{name}: {how}" for name, how in different.items())
        ctx.status.machine_changed = different_text
        ctx.log.warning(
            LogEvent.MACHINE_CHANGED,
            **different,
            why="results from here on may differ in their last digits from those of one machine",
            hint="use machines of one kind, or start jobs with --cpu-isa and --intra-op-threads",
        )


def _threads() -> int:
    """Return the threads that TensorFlow uses, or will use, for one op."""
    asked = tf.config.threading.get_intra_op_parallelism_threads()
    return asked or machine.threads_in(os.environ) or machine.cpus()


def _accelerator() -> str:
    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return ""
    try:
        details = tf.config.experimental.get_device_details(devices[0])
    except ValueError:  # it knows nothing of this device
        return "GPU"
    return str(details.get("device_name", "GPU"))

"""The replicas of a job with `--replicas`, for a script that names no strategy."""

from __future__ import annotations

import tensorflow as tf

from outlast.training.errors import NotSupported
from outlast.training.keras_internals import distribution

_wanted: int | None = None


def use_replicas(replicas: int | None) -> None:
    """Train with so many replicas what the script makes outside of a strategy from now on.

    With None, they are as many as this machine has GPUs. Without GPUs, each replica gets a logical
    device of the CPU. The strategy becomes current when the script makes its first part of a model:
    until then, the script can configure TensorFlow and enter a strategy of its own.

    Raises `NotSupported` if the machine has fewer GPUs, or if TensorFlow has started already.
    """
    global _wanted
    _wanted = replicas
    if replicas is None:
        distribution.before_first_part(lambda: _make_current("GPU", _gpus()))
    elif replicas > 1:
        gpus = _gpus()
        if not gpus:
            _divide_cpu(replicas)
        elif gpus < replicas:
            raise NotSupported(
                field="replicas",
                problem=f"this job has {replicas} replicas, and this machine has {gpus} GPUs",
                hint="Resume it on a machine with as many GPUs; the number belongs to the job.",
            )
        kind = "GPU" if gpus else "CPU"
        distribution.before_first_part(lambda: _make_current(kind, replicas))


def wanted_replicas() -> int | None:
    """Return the number of replicas that the job asks for, or None if the script decides."""
    return _wanted


def _divide_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
        )
    except RuntimeError:
        raise NotSupported(
            field="replicas",
            problem=f"TensorFlow has started before it could be given {count} devices",
            hint="Import outlast at the top of the script, before anything uses TensorFlow.",
        ) from None


def _gpus() -> int:
    return len(tf.config.list_physical_devices("GPU"))


def _make_current(kind: str, count: int) -> None:
    if count > 1 and not tf.distribute.has_strategy():
        devices = [f"{kind}:{index}" for index in range(count)]
        tf.distribute.experimental_set_strategy(tf.distribute.MirroredStrategy(devices))

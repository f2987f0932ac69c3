"""What a `CallbackList` and Keras' own callbacks keep to themselves."""

from __future__ import annotations

from typing import Any

from keras import callbacks as keras_callbacks
from keras.src.callbacks.monitor_callback import MonitorCallback
from keras.src.utils.python_utils import is_default

# Attributes that set_params and set_model set anew in every process.
_SET_ANEW = frozenset({"params", "_params", "model", "_model"})
# TensorBoard's files and traces that are open in this process.
_OPEN_HERE = frozenset(
    {"_writers", "_prev_summary_state", "_is_tracing", "_profiler_started", "_batch_trace_context"}
)


def history_of(callbacks: Any) -> Any:
    """Return the History of a CallbackList."""
    return callbacks._history


def progress_bar_of(callbacks: Any) -> Any:
    """Return the ProgbarLogger of a CallbackList, None where it has none."""
    return callbacks._progbar


def wait_for_hooks(callbacks: Any) -> None:
    """Make a CallbackList call batch-end hooks itself, not hand them to a thread pool."""
    callbacks._async_train = False


def flush_events(callback: Any) -> None:
    """Write out what TensorBoard has recorded; other callbacks are left alone.

    A death would take it along, and a resume does not record again what a checkpoint counts as
    done. Keras does so by itself since 3.15.
    """
    if isinstance(callback, keras_callbacks.TensorBoard):
        for writer in getattr(callback, "_writers", {}).values():
            writer.flush()


def is_hook_overridden(hook: Any) -> bool:
    """Whether a bound hook does anything beyond Keras' empty one."""
    return not is_default(hook)


def is_state(callback: Any, name: str) -> bool:
    """Whether the attribute belongs to the training, not to this process or to Keras' set-up."""
    if name in _SET_ANEW:
        return False
    if name in _OPEN_HERE and isinstance(callback, keras_callbacks.TensorBoard):
        return False
    if name in ("csv_file", "writer") and isinstance(callback, keras_callbacks.CSVLogger):
        return False
    # min_delta turns its sign when the callback first learns the direction of its metric.
    return not (name == "min_delta" and isinstance(callback, MonitorCallback))

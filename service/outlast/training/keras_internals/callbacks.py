"""Private attributes of `CallbackList` and of Keras' callbacks."""

from __future__ import annotations

from typing import Any

from keras import callbacks as keras_callbacks
from keras.src.callbacks.monitor_callback import MonitorCallback
from keras.src.utils.python_utils import is_default

# set_params and set_model set these attributes in every process.
_SET_ANEW = frozenset({"params", "_params", "model", "_model"})
# Files and traces that TensorBoard has open in this process.
_OPEN_HERE = frozenset(
    {"_writers", "_prev_summary_state", "_is_tracing", "_profiler_started", "_batch_trace_context"}
)


def history_of(callbacks: Any) -> Any:
    """Return the History of a CallbackList."""
    return callbacks._history


def progress_bar_of(callbacks: Any) -> Any:
    """Return the ProgbarLogger of a CallbackList, or None."""
    return callbacks._progbar


def wait_for_hooks(callbacks: Any) -> None:
    """Make a CallbackList run batch-end hooks in its thread instead of a thread pool."""
    callbacks._async_train = False


def flush_events(callback: Any) -> None:
    """Flush the events that TensorBoard has recorded. Other callbacks are unchanged.

    A crash would lose them, and a resume does not record steps before the checkpoint again. Keras
    3.15 and later flushes by itself.
    """
    if isinstance(callback, keras_callbacks.TensorBoard):
        for writer in getattr(callback, "_writers", {}).values():
            writer.flush()


def is_hook_overridden(hook: Any) -> bool:
    """Return whether a bound hook differs from Keras' empty one."""
    return not is_default(hook)


def is_state(callback: Any, name: str) -> bool:
    """Return whether an attribute is training state, not set-up by Keras or this process."""
    if name in _SET_ANEW:
        return False
    if name in _OPEN_HERE and isinstance(callback, keras_callbacks.TensorBoard):
        return False
    if name in ("csv_file", "writer") and isinstance(callback, keras_callbacks.CSVLogger):
        return False
    # Keras flips the sign of min_delta when it first learns the direction of the metric.
    # It also sets monitor_op then, in each process.
    return not (name in ("min_delta", "monitor_op") and isinstance(callback, MonitorCallback))

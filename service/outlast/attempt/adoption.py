"""Adoption: every `keras.Model.fit` of an unmodified script becomes Outlast's.

It is asked for here, before the script runs or at its top, and takes effect when the script
imports Keras. Nothing is imported here, because a script may set variables before it does.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from outlast.attempt import context
from outlast.attempt.seeding import after_import
from outlast.job import standard_streams
from outlast.job.log_events import LogEvent
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """How calls of `keras.Model.fit` are adopted.

    Attributes:
        strict: Whether a call that cannot be adopted is refused.
        job_dir: Folder or URL of the job, in a bare script.
        save_every: When to save; `None` for the job's setting.
        keep: Checkpoints to keep; `None` for the job's setting.
        pid: The process whose calls are adopted; 0 for none.
    """

    strict: bool = False
    job_dir: str | Path | None = None
    save_every: str | int | None = None
    keep: str | int | None = None
    pid: int


# What to do when a script has ended unprotected, by the `adopt` of its job.
REMEDY: Final = {
    "no": "start it with `outlast run --adopt`; or use `from outlast import fit`, and call "
    "fit(model, …) instead of model.fit(…)",
    "yes": "call keras.Model.fit in the script's own process and main thread, or write the loop "
    "with outlast.Loop",
}
REMEDY["strict"] = REMEDY["yes"]

_adoption: Adoption | None = None
_said: set[str] = set()


def current() -> Adoption | None:
    """Return how calls are adopted; `None` if they are not."""
    return _adoption


def adopt(
    job_dir: str | Path | None = None,
    *,
    strict: bool = False,
    save_every: str | int | None = None,
    keep: str | int | None = None,
) -> None:
    """Make every later `keras.Model.fit` in this process the `fit` of Outlast.

    This includes the calls of libraries. Each call is one phase of the job. Call it at the top of
    a script that you start without `outlast run`; `outlast run --adopt` needs no change of the
    script at all.

    A call that cannot be adopted (in a thread, in another process, within another `fit`, of a
    model that replaces Keras' training loop) trains as in plain Keras. A warning says so once.

    Args:
        job_dir: Folder or URL of the job. Under `outlast run`, the settings of the job replace
            `job_dir`, `save_every` and `keep`.
        strict: Whether to refuse a call that cannot be adopted with an error.
        save_every: When to save a checkpoint, as in `fit`.
        keep: Checkpoints to keep, as in `fit`.

    Raises:
        UsageError: `job_dir` is missing, or with `strict`, Keras uses another backend than
            TensorFlow.

    Example:

    ```python
    import outlast

    outlast.adopt(job_dir="my-job")
    ...
    model.fit(x, y, epochs=10)  # survives kills, and so does what a library fits
    ```
    """
    ctx = context.current()
    if job_dir is None and (ctx is None or not ctx.supervised):
        raise UsageError(
            field="job_dir",
            problem="it is missing; it names the folder or URL of the job",
            hint="Pass adopt(job_dir='my-job'), or start the script with `outlast run --adopt`.",
        )
    strict = strict or (_adoption is not None and _adoption.strict)
    # A child of multiprocessing imports the script again, and is not the script.
    child = sys._getframe(1).f_globals.get("__name__") == "__mp_main__"
    pid = 0 if child else os.getpid()
    _begin(Adoption(strict=strict, job_dir=job_dir, save_every=save_every, keep=keep, pid=pid))


def begin(spec: JobSpec) -> None:
    """Adopt the calls of an attempt's script, if its job says so."""
    if spec.adopt != "no":
        _begin(Adoption(strict=spec.adopt == "strict", pid=os.getpid()))


def end() -> None:
    """Leave later calls to Keras."""
    global _adoption
    _adoption = None
    _said.clear()


def _begin(asked: Adoption) -> None:
    global _adoption
    first, _adoption = _adoption is None, asked
    if first:
        searches = {"keras_tuner": _keep_folders, "optuna": _name_studies}
        after_import({"keras": _take_effect, **searches})


def _take_effect(keras: Any) -> None:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        importlib.import_module("outlast.training.adoption").install()
        return
    instead = "set KERAS_BACKEND=tensorflow, or use `outlast run` without --adopt"
    refuse_or_say(f"Keras uses the backend {backend}, and Outlast trains with TensorFlow", instead)


def _keep_folders(keras_tuner: Any) -> None:
    importlib.import_module("outlast.attempt.search_folders").keep_folders(keras_tuner)


def _name_studies(optuna: Any) -> None:
    importlib.import_module("outlast.attempt.search_folders").name_studies(optuna)


def refuse_or_say(why: str, instead: str, error: UsageError | None = None) -> None:
    """Say that a `fit` is not adopted, once for each reason, or refuse it if that is asked for.

    Raises `UsageError`, or the given one, if calls must be adopted.
    """
    if _adoption is None:
        return
    if _adoption.strict:
        raise error or UsageError(field="fit", problem=f"it cannot be adopted: {why}", hint=instead)
    if why in _said:
        return
    _said.add(why)
    ctx = context.current()
    here = os.getpid() == _adoption.pid
    if ctx is not None and here:
        ctx.log.warning(LogEvent.FIT_NOT_ADOPTED, why=why, instead=instead)
    if ctx is None or not ctx.supervised or not here:  # nobody shows its log
        standard_streams.say(f"outlast: a fit is not adopted: {why}: {instead}")

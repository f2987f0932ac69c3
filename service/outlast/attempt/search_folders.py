"""Files of search libraries while the calls of `fit` are adopted.

A tuner of KerasTuner writes its folder alone, so it is kept without being asked. A study of Optuna
may be shared by several jobs, so its file is kept only if the script says so, and named otherwise.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from pathlib import Path
from typing import Any, Final

from outlast.attempt import adoption, context
from outlast.attempt.kept_files import is_kept, keep_for
from outlast.job import standard_streams
from outlast.job.log_events import LogEvent
from outlast_checkpoints.errors import UsageError

_SHARED: Final = "KERASTUNER_ORACLE_IP"  # set if several processes search together
_SQLITE: Final = re.compile(r"sqlite(?:\+\w+)?:///([^?:]+)")


def keep_folders(keras_tuner: Any) -> None:
    """Let each tuner keep its folder before it reads it, while calls are adopted."""
    kind = keras_tuner.engine.base_tuner.BaseTuner
    begin = kind.__init__

    @functools.wraps(begin)
    def begin_kept(self: Any, *args: Any, **kwargs: Any) -> None:
        if _is_adopted() and _SHARED not in os.environ:
            _keep(inspect.signature(begin).bind_partial(self, *args, **kwargs).arguments)
        begin(self, *args, **kwargs)

    kind.__init__ = begin_kept


def name_studies(optuna: Any) -> None:
    """Let each study in a file of SQLite that is not kept be named, while calls are adopted."""
    kind = optuna.storages.RDBStorage
    begin = kind.__init__

    @functools.wraps(begin)
    def begin_named(self: Any, url: str, *args: Any, **kwargs: Any) -> None:
        if _is_adopted() and (found := _SQLITE.match(str(url))) and not is_kept(found[1]):
            _name(found[1])
        begin(self, url, *args, **kwargs)

    kind.__init__ = begin_named


def _is_adopted() -> bool:
    adopted = adoption.current()
    return adopted is not None and adopted.pid == os.getpid()


def _name(file: str) -> None:
    why = (
        f"the study in {file} is not kept, so a restart finds the trial that was interrupted and "
        "begins another one"
    )
    instead = f"call outlast.keep({file!r}) before the study is opened, if no other job writes it"
    ctx = context.current()
    if ctx is not None:
        ctx.log.warning(LogEvent.FILES_NOT_KEPT, why=why, instead=instead)
    if ctx is None or not ctx.supervised:  # nobody shows its log
        standard_streams.say(f"outlast: {why}: {instead}")


def _keep(arguments: dict[str, Any]) -> None:
    folder = arguments.get("directory") or "."
    project = Path(folder) / (arguments.get("project_name") or "untitled_project")
    try:
        keep_for(project, "KerasTuner")
    except UsageError as error:
        ctx = context.current()
        if ctx is None or ctx.audit is not None:
            raise
        adoption.refuse_or_say(
            f"the folder of a tuner is not kept: {error.fields['problem']}", error.fields["hint"]
        )

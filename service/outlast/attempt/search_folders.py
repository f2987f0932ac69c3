"""Folders of search libraries, kept without being asked while the calls of `fit` are adopted.

Only KerasTuner's: a tuner writes its folder alone. A study of Optuna may be shared by several jobs,
so its file is kept only if the script says so.
"""

from __future__ import annotations

import functools
import inspect
import os
from pathlib import Path
from typing import Any, Final

from outlast.attempt import adoption, context
from outlast.attempt.kept_files import keep_for
from outlast_checkpoints.errors import UsageError

_SHARED: Final = "KERASTUNER_ORACLE_IP"  # set if several processes search together


def install(keras_tuner: Any) -> None:
    """Let each tuner keep its folder before it reads it, while calls are adopted."""
    kind = keras_tuner.engine.base_tuner.BaseTuner
    begin = kind.__init__

    @functools.wraps(begin)
    def begin_kept(self: Any, *args: Any, **kwargs: Any) -> None:
        adopted = adoption.current()
        if adopted is not None and adopted.pid == os.getpid() and _SHARED not in os.environ:
            _keep(inspect.signature(begin).bind_partial(self, *args, **kwargs).arguments)
        begin(self, *args, **kwargs)

    kind.__init__ = begin_kept


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

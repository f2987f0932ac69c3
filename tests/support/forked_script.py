"""A training script in a fork of a process that has imported TensorFlow, run as by an interpreter.

The parent must not have used TensorFlow: its runtime does not survive a fork. See
`testbeds/repeatability/processes.py`.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def as_process(run: Callable[[], Any], told: Path) -> NoReturn:
    """Run a script as an interpreter does, and end this process. `told` gets its traceback."""
    code = 1
    try:
        os.setsid()
        os.dup2(2, 1)
        os.close(0)
        try:
            run()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        except KeyboardInterrupt:
            code = 130
        except Exception:  # noqa: BLE001 - told as an interpreter tells it
            told.write_text(traceback.format_exc())
            traceback.print_exc()
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, then atexit
        atexit._run_exitfuncs()
        sys.stderr.flush()
    finally:
        os._exit(code)

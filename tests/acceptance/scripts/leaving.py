"""The MLP. Where a test holds it, a signal that asks it to leave also releases it."""

import signal
import sys
from pathlib import Path
from types import FrameType

FOLDER = Path(sys.argv[1])
outlasts = signal.getsignal(signal.SIGTERM)


def release(signum: int, frame: FrameType | None) -> None:
    assert callable(outlasts)
    outlasts(signum, frame)
    new = FOLDER / "hold.new"
    new.write_text("never 0 0")
    new.replace(FOLDER / "hold")


signal.signal(signal.SIGTERM, release)

import mlp  # noqa: E402, F401

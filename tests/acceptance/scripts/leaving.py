"""The MLP; where it is held, the signal that tells it to leave lets go of it."""

import signal
import sys
from pathlib import Path
from types import FrameType

FOLDER = Path(sys.argv[1])
outlasts = signal.getsignal(signal.SIGTERM)


def let_go(signum: int, frame: FrameType | None) -> None:
    assert callable(outlasts)
    outlasts(signum, frame)
    new = FOLDER / "hold.new"
    new.write_text("never 0 0")
    new.replace(FOLDER / "hold")


signal.signal(signal.SIGTERM, let_go)

import mlp  # noqa: E402, F401

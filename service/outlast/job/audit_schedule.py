"""How often a training is audited while it runs: by checkpoints or by time. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from outlast_checkpoints.errors import UsageError

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_HINT: Final = "Use a number of checkpoints (10), an interval (30m, 2h, 1d), or 'never'."


class AuditEvery(msgspec.Struct, frozen=True, kw_only=True):
    """When the next audit is due. Without any condition there is none."""

    checkpoints: int | None = None
    """Audit after this many new checkpoints."""
    seconds: float | None = None
    """Audit this many seconds after the last audit began."""

    @classmethod
    def parse(cls, text: str) -> AuditEvery:
        """Parse for example "10", "30m" or "never". Raises `UsageError`."""
        said = text.strip().lower()
        if said == "never":
            return cls()
        if said.isascii() and said.isdigit() and int(said) > 0:
            return cls(checkpoints=int(said))
        match = _DURATION.fullmatch(said)
        if match is None or float(match[1]) <= 0:
            raise UsageError(field="audit_every", problem=f"{text!r} is not understood", hint=_HINT)
        return cls(seconds=float(match[1]) * _UNITS[match[2]])

    @property
    def wanted(self) -> bool:
        """Whether there are audits at all."""
        return self != AuditEvery()

    def due(self, checkpoints: int, seconds: float) -> bool:
        """Return whether an audit is due so many checkpoints and seconds after the last one."""
        if self.checkpoints is not None:
            return checkpoints >= self.checkpoints
        return self.seconds is not None and checkpoints > 0 and seconds >= self.seconds

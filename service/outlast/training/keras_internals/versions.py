"""The versions of Keras and TensorFlow that training is tested with; others are refused by name."""

from __future__ import annotations

import os
import re
import warnings
from typing import Final

import keras
import tensorflow as tf

from outlast.training.errors import VersionUnsupported

Version = tuple[int, ...]

# At least, and below. pyproject.toml has the same ranges.
SUPPORTED: Final[dict[str, tuple[Version, Version]]] = {
    "keras": ((3, 12, 1), (3, 16)),
    "tensorflow": ((2, 18), (2, 22)),
}
ALLOW_UNTESTED: Final = "OUTLAST_ALLOW_UNTESTED_VERSIONS"


def installed() -> dict[str, str]:
    """Return the version of each package as it is imported."""
    return {"keras": keras.__version__, "tensorflow": tf.__version__}


def require_supported() -> None:
    """Raise `VersionUnsupported` for a package outside its range, or warn where that is allowed."""
    found = installed()
    untested = [name for name, version in found.items() if not _is_supported(name, version)]
    if not untested:
        return
    if os.environ.get(ALLOW_UNTESTED) == "1":
        named = ", ".join(f"{name} {found[name]} ({range_of(name)})" for name in untested)
        warnings.warn(
            f"Outlast is not tested with {named}: a resume may fail or be inexact", stacklevel=2
        )
        return
    name = untested[0]
    raise VersionUnsupported(
        package=name,
        found=found[name],
        supported=range_of(name),
        requirement=f"{name}{range_of(name)}",
        variable=ALLOW_UNTESTED,
    )


def range_of(package: str) -> str:
    """Return the supported range as pip spells it: ">=3.12.1,<3.16"."""
    least, below = SUPPORTED[package]
    return f">={'.'.join(map(str, least))},<{'.'.join(map(str, below))}"


def number(version: str) -> Version:
    """Return (3, 16, 0) of "3.16.0rc1"."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def _is_supported(package: str, version: str) -> bool:
    least, below = SUPPORTED[package]
    return least <= number(version) < below

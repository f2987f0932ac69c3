"""The supported versions of Keras and TensorFlow. Others raise `VersionUnsupported`."""

from __future__ import annotations

import os
import re
import sys
import warnings
from typing import Final

import keras
import numpy as np
import tensorflow as tf

from outlast.training.errors import VersionUnsupported

Version = tuple[int, ...]

# The lowest version, and the first unsupported one. pyproject.toml has the same ranges.
SUPPORTED: Final[dict[str, tuple[Version, Version]]] = {
    "keras": ((3, 12, 1), (3, 16)),
    "tensorflow": ((2, 18), (2, 22)),
}
# Releases in between that lack a security fix of the lowest version (GHSA-xfhx-r7ww-5995).
LEFT_OUT: Final[dict[str, tuple[Version, ...]]] = {"keras": ((3, 13, 0), (3, 13, 1))}
ALLOW_UNTESTED: Final = "OUTLAST_ALLOW_UNTESTED_VERSIONS"


def installed() -> dict[str, str]:
    """Return the versions of the imported packages, by name."""
    return {"keras": keras.__version__, "tensorflow": tf.__version__}


def recorded() -> dict[str, str]:
    """Return the versions that a checkpoint records: also of what else computes in a script.

    Of Python the minor version: it decides how `sum` rounds, for one.
    """
    python = "{}.{}".format(*sys.version_info)
    return {**installed(), "python": python, "numpy": np.__version__}


def require_supported() -> None:
    """Raise `VersionUnsupported` if a version is unsupported, or warn if the variable allows it."""
    found = installed()
    untested = [name for name, version in found.items() if not _is_supported(name, version)]
    if not untested:
        return
    if os.environ.get(ALLOW_UNTESTED) == "1":
        named = ", ".join(f"{name} {found[name]} ({range_of(name)})" for name in untested)
        warnings.warn(
            f"Outlast is not tested with {named}; a resume may fail or be inexact", stacklevel=2
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
    """Return the supported range in pip's syntax: ">=3.12.1,!=3.13.0,<3.16"."""
    least, below = SUPPORTED[package]
    parts = [(">=", least), *(("!=", one) for one in LEFT_OUT.get(package, ())), ("<", below)]
    return ",".join(sign + ".".join(map(str, version)) for sign, version in parts)


def number(version: str) -> Version:
    """Parse a version: "3.16.0rc1" is (3, 16, 0)."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def _is_supported(package: str, version: str) -> bool:
    least, below = SUPPORTED[package]
    found = number(version)
    return least <= found < below and found not in LEFT_OUT.get(package, ())

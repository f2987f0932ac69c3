"""Backends launch the attempts of a job beside its supervisor."""

from __future__ import annotations

from typing import Final

from outlast.backends.base import Backend
from outlast.job.plugins import Plugins

PLUGINS: Final[Plugins[Backend]] = Plugins(
    "backend", {"local": "outlast.backends.local:LocalBackend"}
)
names = PLUGINS.names
get = PLUGINS.get

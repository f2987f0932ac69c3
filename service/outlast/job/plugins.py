"""Plugins: implementations of one protocol, looked up by name and imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Generic, TypeVar

from outlast.errors import PluginUnknown

T = TypeVar("T")


class Plugins(Generic[T]):
    """The implementations of one protocol: those built in and those of other packages.

    Other packages add theirs as an entry point of the group `outlast.<kind>s`. A built-in name
    cannot be replaced.

    Args:
        kind: What a plugin is, in the singular ("backend"); used in messages and in the group.
        built_in: "module:class" by name.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str]) -> None:
        self._kind = kind
        self._group = f"outlast.{kind}s"
        self.built_in = dict(built_in)

    def names(self) -> list[str]:
        """Return all known names, sorted."""
        found = {point.name for point in metadata.entry_points(group=self._group)}
        return sorted(found | set(self.built_in))

    def get(self, name: str) -> T:
        """Return a new object of the plugin `name`.

        Raises:
            PluginUnknown: no plugin has this name.
        """
        plugin: T
        if name in self.built_in:
            module, _, kind = self.built_in[name].partition(":")
            plugin = getattr(importlib.import_module(module), kind)()
            return plugin
        for point in metadata.entry_points(group=self._group):
            if point.name == name:
                plugin = point.load()()
                return plugin
        raise PluginUnknown(kind=self._kind, name=name, known=", ".join(self.names()))

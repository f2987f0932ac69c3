"""Clouds that are about to take this machine: who tells so, and how it is heard."""

from outlast.notices.base import Notice
from outlast.notices.watcher import WATCHED, Watcher, watch
from outlast.notices.where import CLOUDS

__all__ = ["CLOUDS", "WATCHED", "Notice", "Watcher", "watch"]

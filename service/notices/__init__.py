"""Clouds that are about to take this machine: who tells so, and how it is heard."""

from service.notices.base import Notice
from service.notices.watcher import WATCHED, Watcher, watch
from service.notices.where import CLOUDS

__all__ = ["CLOUDS", "WATCHED", "Notice", "Watcher", "watch"]

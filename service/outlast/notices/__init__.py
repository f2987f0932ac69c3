"""Clouds that are about to take this machine: who tells so, and how it is heard."""

from outlast.notices.base import Notice
from outlast.notices.detect import CLOUDS
from outlast.notices.listener import WATCHED, Listener, watch

__all__ = ["CLOUDS", "WATCHED", "Listener", "Notice", "watch"]

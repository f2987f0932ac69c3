"""Preemption notices: clouds that announce that they take this machine."""

from outlast.notices.base import Notice
from outlast.notices.detect import CLOUDS
from outlast.notices.listener import WATCHED, Listener, watch

__all__ = ["CLOUDS", "WATCHED", "Listener", "Notice", "watch"]

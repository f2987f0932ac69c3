"""The command line of Outlast."""

from outlast.cli.group import main

__all__ = ["main"]

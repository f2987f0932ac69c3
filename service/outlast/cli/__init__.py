"""The command line: one small file a verb, loaded only when the verb is used."""

from outlast.cli.group import main

__all__ = ["main"]

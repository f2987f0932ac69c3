"""The command line: one small file a verb, loaded only when the verb is used."""

from service.cli.group import main

__all__ = ["main"]

"""Prints messages. All verbs print through it, so no text from a file controls a terminal."""

from __future__ import annotations

import click

from outlast_checkpoints.printable import printable


def say(text: str, *, err: bool = False) -> None:
    """Print `text` on stdout, or on stderr; control characters but newlines are spelled out."""
    click.echo(printable(text, keep="\n"), err=err)

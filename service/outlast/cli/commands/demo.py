"""`outlast demo`: the main promise, shown on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from outlast.cli.group import Verb
from outlast.exit_codes import DONE, FAILED


@click.command("demo", cls=Verb)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the two jobs and the picture; made anew.",
)
def demo(output: Path) -> int:
    """Train a CNN on handwritten digits, kill it twice on the way, and compare the end.

    The same training is done again untouched: weights, optimizer, all other state and the history
    must be equal to the last byte (times aside). Takes about a minute; needs
    pip install 'outlast[demo]'.
    """
    from outlast.demo.show import show

    return DONE if show(output) else FAILED

"""`outlast demo`: show on this machine that a killed training loses nothing."""

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
    help="Folder for the two jobs and the plot; recreated by each run.",
)
def demo(output: Path) -> int:
    """Train a CNN on handwritten digits, kill it twice, and compare the result.

    The same training runs again without kills. Weights, optimizer, all other state and the history
    must be equal to the last byte, except for times. The demo takes about a minute and needs
    pip install 'outlast[demo]'.
    """
    from outlast.demo.show import show

    return DONE if show(output) else FAILED

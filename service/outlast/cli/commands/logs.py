"""`outlast logs`: the log of a job, or the output of its script, over all attempts."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from outlast.cli.display.follow import POLL, is_final, show_last
from outlast.cli.display.output_lines import visible
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json_line
from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.options import job_argument, json_option
from outlast_checkpoints.errors import NotFound, UsageError
from outlast_checkpoints.format import layout

if TYPE_CHECKING:
    from outlast_checkpoints.storage.base import Storage

Sleep = Callable[[float], None]
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


PIECE = 4 << 20  # bytes of the output that are read at a time


@click.command("logs", cls=Verb)
@job_argument
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the job has ended.")
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"]),
    default="info",
    show_default=True,
    help="Hide entries below this level.",
)
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), metavar="N", help="Show only the last N lines."
)
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Show only attempt N.")
@click.option("--output", is_flag=True, help="Show the output of the script instead of the log.")
@click.option(
    "--raw",
    is_flag=True,
    help="With --output: send the output to a terminal unchanged, with its colours and other "
    "control characters. A pipe or file always gets it unchanged.",
)
@json_option("Print the stored entries as JSON lines.")
def logs(
    root: str,
    job: str,
    follow: bool,
    level: str,
    lines: int | None,
    attempt: int | None,
    output: bool,
    raw: bool,
    as_json: bool,
) -> None:
    """Show the log of JOB over all its attempts, oldest entries first."""
    if output and as_json:
        raise click.UsageError(
            "--output and --json exclude each other: the output of a script is plain text."
        )
    if raw and not output:
        raise click.UsageError("--raw requires --output.")
    storage = find_job(root, job).storage
    if attempt is not None and not follow:
        _require_attempt(storage, attempt)

    def stop() -> bool:
        return not follow or is_final(storage)

    def source(all_seen: Callable[[], None]) -> Iterator[Any]:
        def sleep(seconds: float) -> None:
            all_seen()
            time.sleep(seconds)

        if output:
            return output_lines(storage, attempt=attempt, stop=stop, sleep=sleep)
        from outlast.job import logs as stored

        return stored.follow(
            storage, attempt=attempt, level=level, poll=POLL, stop=stop, sleep=sleep
        )

    passed = _pass_on if raw or not sys.stdout.isatty() else _show_output
    show = passed if output else print_json_line if as_json else _show_row
    try:
        show_last(source, lines, show)
    except KeyboardInterrupt:
        if not follow:
            raise


def _require_attempt(storage: Storage, attempt: int) -> None:
    from outlast.job.logs import attempts

    known = attempts(storage)
    if attempt not in known:
        there = f"The last one is {known[-1]}." if known else "It has had none so far."
        raise UsageError(field="--attempt", problem=f"the job has no attempt {attempt}", hint=there)


def output_lines(
    storage: Storage, *, attempt: int | None, stop: Callable[[], bool], sleep: Sleep
) -> Iterator[bytes]:
    """Yield the lines of the script's output over all attempts; the last may be incomplete.

    Args:
        storage: Storage of the job.
        attempt: Number of the attempt to read; None for all.
        stop: Called before each look. When it returns True, that look is the last.
        sleep: Waits between two looks; gets the seconds.
    """
    from outlast.job.logs import attempts

    offsets: dict[int, int] = {}
    while True:
        done = stop()
        known = attempts(storage) if attempt is None else [attempt]
        for number in known:
            final = done or number < known[-1]
            for line in _lines(storage, number, offsets.get(number, 0), final=final):
                offsets[number] = offsets.get(number, 0) + len(line)
                yield line
        if done:
            return
        sleep(POLL)


def _lines(storage: Storage, attempt: int, start: int, *, final: bool) -> Iterator[bytes]:
    """Yield the lines from byte `start` on, reading a piece at a time: a log may be huge.

    final: an incomplete last line counts.
    """
    left: list[bytes] = []  # the pieces of a line that goes on
    while piece := _read_from(storage, attempt, start):
        start += len(piece)
        whole, newline, rest = piece.rpartition(b"\n")
        if newline:
            yield from _split(b"".join(left) + whole + newline)
            left = []
        left.append(rest)
    if final and any(left):
        yield b"".join(left)


def _split(lines: bytes) -> list[bytes]:
    return re.findall(rb"[^\n]*\n", lines)


def _read_from(storage: Storage, attempt: int, start: int) -> bytes:
    try:
        return storage.read_range(layout.output_log(attempt), start, start + PIECE)
    except NotFound:
        return b""


def _show_row(row: dict[str, Any]) -> None:
    from outlast.job.logs import render

    click.echo(render(row, colour=sys.stdout.isatty()))


def _show_output(line: bytes) -> None:
    text = _COLOUR.sub("", line.decode(errors="replace")).replace("\b", "")
    say(visible(text.rstrip("\r\n")).expandtabs())


def _pass_on(line: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(line)
    if not line.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()

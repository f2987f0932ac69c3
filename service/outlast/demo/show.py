"""Runs the demo and prints its result."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from outlast.demo.digests import digests
from outlast.demo.killer import Killed, kill_next
from outlast.errors import ExtraMissing
from outlast.plotting.history_plot import plot_history
from outlast_checkpoints.errors import OutlastError, UsageError
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.storage import open_storage

if TYPE_CHECKING:
    from outlast_checkpoints.storage.base import Storage

SCRIPT = Path(__file__).with_name("digits.py")
SEED = 20
KILL_AT = [0.3, 0.6]  # shares of all steps
SAVE_EVERY = 25
_MARK = ".outlast-demo"
_PROGRESS = " · step "  # the lines of the epochs have it too
# TensorFlow logs about its libraries before it can be silenced.
_NOISE = re.compile(rb"WARNING: All log messages before absl|[IW]\d{4} \d\d:\d\d:\d\d|[IW]0000 ")


class DemoFailed(OutlastError, RuntimeError):
    """The demo's training {name!r} ended with exit code {code} after {kills} of {wanted} kills.
    Find the cause with `outlast logs --root {root} {name}`."""


def show(output: Path) -> bool:
    """Train twice, kill one training twice, compare; return whether the results are equal.

    Args:
        output: Folder for the jobs and the plot; recreated.

    Raises:
        UsageError: the folder contains something else.
        ExtraMissing: scikit-learn or matplotlib is not installed.
        DemoFailed: a training failed.
    """
    for package, module in (("scikit-learn", "sklearn"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise ExtraMissing(feature="The demo", package=package, extra="demo")
    started = time.monotonic()
    _make_room(output)
    script = output / SCRIPT.name
    shutil.copyfile(SCRIPT, script)

    _title("1. A small CNN learns handwritten digits. We kill it twice with kill -9.")
    killed, kills = _train(output, "killed", KILL_AT)
    _title("2. The same training again, undisturbed.")
    untouched, _ = _train(output, "untouched", [])

    _title("3. Are the results equal?")
    same = _compare(killed, untouched)
    click.echo()
    _kills_in_history(killed, kills)
    curves = plot_history(HistoryReader(killed), output / "loss.png", title="killed")
    click.echo(f"{output / 'loss.png'}: {', '.join(curves.panels)}")
    click.echo()
    took = f"{time.monotonic() - started:.0f} s"
    if same:
        verdict = f"Equal to the last byte, after {len(kills)} kills. ({took})"
        click.secho(verdict, fg="green", bold=True)
    else:
        click.secho("NOT equal: this is a bug in Outlast. Please report it.", fg="red", bold=True)
    click.echo(f"Explore: outlast status --root {shlex.quote(str(output / 'jobs'))} killed")
    return same


def _make_room(output: Path) -> None:
    """Create or empty the output folder; delete only files of an earlier demo."""
    mark = output / _MARK
    if output.exists() and not mark.exists() and any(output.iterdir()):
        raise UsageError(
            field="--output",
            problem=f"{str(output)!r} is neither empty nor the output of an earlier demo",
            hint="Use another folder.",
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise UsageError(
            field="--output",
            problem=f"{str(output)!r} cannot be written: {error.strerror}",
            hint="Use another folder.",
        ) from None
    shutil.rmtree(output / "jobs", ignore_errors=True)
    for name in (SCRIPT.name, "loss.png"):
        (output / name).unlink(missing_ok=True)


def _train(output: Path, name: str, parts: list[float]) -> tuple[Storage, list[Killed]]:
    """Train under `outlast run`, and kill it after each of the `parts` of its steps."""
    root = output / "jobs"
    arguments = [
        "run", "--root", str(root), "--name", name, "--seed", str(SEED),
        "--save-every", str(SAVE_EVERY), "--heartbeat-every", "0.05s", "--backoff", "0.2s",
        str(output / SCRIPT.name),
    ]  # fmt: skip
    click.secho(f"$ outlast {shlex.join(arguments)}", bold=True)
    storage = open_storage(root / name)
    kills: list[Killed] = []
    with subprocess.Popen(
        [sys.executable, "-m", "outlast", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
    ) as process:
        progress = threading.Thread(target=_show_progress, args=(process,), daemon=True)
        progress.start()
        for part in parts:
            after = kills[-1].attempt if kills else 0
            killed = kill_next(storage, part, after, lambda: process.poll() is None)
            if killed is None:
                break
            kills.append(killed)
            click.secho(
                f"  ╳ kill -9 {killed.pid}   attempt {killed.attempt}, at step {killed.step};"
                f" last checkpoint at step {killed.saved_at}",
                fg="red",
                bold=True,
            )
        progress.join()
        code = process.wait()
    if code != 0 or len(kills) != len(parts):
        raise DemoFailed(name=name, code=code, kills=len(kills), wanted=len(parts), root=root)
    return storage, kills


def _show_progress(process: subprocess.Popen[bytes]) -> None:
    """Print the output of `outlast run` and the script, without TensorFlow's log lines."""
    assert process.stdout is not None  # it is a pipe
    for line in process.stdout:
        text = line.decode(errors="replace").rstrip()
        if text == "":  # the summary follows; the demo prints its own
            break
        ours = text.startswith("[outlast]")
        if not _NOISE.match(line) and not (ours and _PROGRESS in text):
            click.echo("  │ " + (click.style(text, fg="cyan") if ours else text))
    process.stdout.read()


def _title(text: str) -> None:
    click.secho(f"\n{text}", fg="yellow", bold=True)


def _compare(killed: Storage, untouched: Storage) -> bool:
    """Print the hashes of both results side by side; return whether all are equal."""
    pairs = list(zip(digests(killed), digests(untouched), strict=True))
    click.echo(f"  {'':12} {'killed twice':34} {'untouched':34}")
    for one, other in pairs:
        equal = one == other
        word = click.style("equal", fg="green") if equal else click.style("DIFFERENT", fg="red")
        click.echo(f"  {one.part:12} {one.hash:34} {other.hash:34} {word}   {one.amount}")
    return all(one == other for one, other in pairs)


def _kills_in_history(storage: Storage, kills: list[Killed]) -> None:
    """Print where later attempts resumed, and which steps were repeated."""
    for (attempt, _, step), kill in zip(HistoryReader(storage).restarts(), kills, strict=True):
        click.echo(
            f"attempt {attempt} resumed after step {step} (attempt {kill.attempt} had reached at "
            f"least step {kill.step}); repeated steps count once"
        )

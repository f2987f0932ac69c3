"""`outlast history`: the metrics of a job over all its attempts, each step once."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outlast.cli.display import units
from outlast.cli.display.follow import POLL, is_final, show_last
from outlast.cli.display.say import say
from outlast.cli.display.tables import plain, print_json_line, print_table
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, find_job
from outlast.cli.options import job_argument, json_option
from outlast_checkpoints.printable import printable

if TYPE_CHECKING:
    from outlast_checkpoints.history import HistoryReader

Row = dict[str, Any]

_CSV_FIRST = ("kind", "phase", "epoch", "step", "batch", "time", "batch_loss")


@click.command("history", cls=Verb)
@job_argument
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the job has ended.")
@click.option("--epochs", "kind", flag_value="epoch", help="Show only the rows of epochs.")
@click.option("--steps", "kind", flag_value="step", help="Show only the rows of steps.")
@click.option(
    "--tail", "-n", type=click.IntRange(min=0), metavar="N", help="Show only the last N rows."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with one column for each metric.")
@json_option("Print the rows as JSON lines.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw the learning curves with restarts marked (pip install 'outlast[plot]').",
)
@click.option(
    "--metric",
    "metrics",
    metavar="NAME",
    multiple=True,
    help="With --plot: draw only this metric; repeatable.",
)
def history(
    root: str,
    job: str,
    follow: bool,
    kind: str | None,
    tail: int | None,
    as_csv: bool,
    as_json: bool,
    plot: Path | None,
    metrics: tuple[str, ...],
) -> None:
    """Show the metrics of JOB over all its attempts; each step counts once.

    By default the table shows epochs, and --csv and --json print epochs and steps. --epochs and
    --steps select one kind.
    """
    from outlast_checkpoints.history import HistoryReader

    if sum((as_csv, as_json, plot is not None)) > 1:
        raise click.UsageError("--csv, --json and --plot exclude each other.")
    if follow and (as_csv or plot is not None):
        raise click.UsageError("--follow cannot be combined with --csv or --plot.")
    if metrics and plot is None:
        raise click.UsageError("--metric requires --plot.")
    place = find_job(root, job)
    reader = HistoryReader(place.storage)
    if plot is not None:
        from outlast.plotting.history_plot import plot_history

        curves = plot_history(reader, plot, title=place.name, metrics=metrics)
        drawn = ", ".join(map(printable, metrics or curves.panels))
        say(f"{plot}: {drawn}; {len(curves.restarts)} restarts.")
    elif follow:
        _follow(place, reader, kind, tail, as_json)
    elif as_json:
        for row in _rows(reader, kind, tail):
            print_json_line(row)
    elif as_csv:
        print_csv(lambda: _rows(reader, kind, tail))
    else:
        _print_rows(reader, kind, tail)


def _rows(reader: HistoryReader, kind: str | None, tail: int | None) -> Iterator[Row]:
    """Return the rows of a kind (None: all kinds), only the last `tail` if that is given."""
    return reader.rows(kind) if tail is None else iter(reader.tail(tail, kind))


def print_csv(rows: Callable[[], Iterable[Row]]) -> None:
    """Print rows as CSV. `rows` is called twice: once to find the metrics, once to print.

    Each column has one name. A metric named like a column of all rows becomes "logs.NAME".
    """
    names = {name: None for row in rows() for name in row.get("logs", {})}
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*_CSV_FIRST, *map(csv_text, _column_names(names))])
    for row in rows():
        if row["kind"] == "phase":
            continue
        logs = row["logs"]
        cells = [row.get(name) for name in _CSV_FIRST] + [logs.get(name) for name in names]
        writer.writerow(["" if cell is None else plain(cell) for cell in cells])


def csv_text(text: str) -> str:
    """Return `text` as a cell that no spreadsheet takes for a formula.

    An apostrophe goes before the characters that begin one (OWASP, "CSV Injection"). Control
    characters are spelled out.
    """
    return printable(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)


def _column_names(metrics: Collection[str]) -> list[str]:
    """Return a name for each metric that no other column has."""
    taken = {*_CSV_FIRST, ""}
    found = []
    for metric in metrics:
        name = metric
        while name in taken or (name != metric and name in metrics):
            name = f"logs.{name}"
        taken.add(name)
        found.append(name)
    return found


def _print_rows(reader: HistoryReader, kind: str | None, tail: int | None) -> None:
    found = list(_rows(reader, kind or "epoch", tail))
    if not found and kind is None:
        found = list(_rows(reader, "step", tail))  # the first epoch is not finished
    if not found:
        say("No history yet.")
        return
    phases = len({row["phase"] for row in found}) > 1
    steps = found[0]["kind"] == "step"
    names = sorted({name for row in found for name in row["logs"]}, key=_place)
    print_table(
        [
            *(["PHASE"] if phases else []),
            "EPOCH",
            "STEP",
            *(["BATCH LOSS"] if steps else []),
            *names,
        ],
        (
            [
                *([str(row["phase"])] if phases else []),
                str(row["epoch"] + 1),
                units.number(row["step"]),
                *([_value(row.get("batch_loss"))] if steps else []),
                *(_value(row["logs"].get(name)) for name in names),
            ]
            for row in found
        ),
    )


def _place(name: str) -> tuple[bool, str, bool]:
    """Return the sort key of a metric: the loss first, each metric before its val_ twin."""
    base = name.removeprefix("val_")
    return (base != "loss", base, name != base)


def _value(value: Any) -> str:
    return units.metric(value) if isinstance(value, (int, float)) else "-"


def _follow(
    place: Place, reader: HistoryReader, kind: str | None, tail: int | None, as_json: bool
) -> None:
    wanted = kind if as_json else kind or "epoch"

    def source(all_seen: Callable[[], None]) -> Iterator[Row]:
        looks = 0

        def stop() -> bool:
            nonlocal looks
            looks += 1
            if looks > 1:
                all_seen()
            return is_final(place.storage)

        return reader.follow(poll=POLL, stop=stop, kind=wanted)

    try:
        show_last(source, tail, print_json_line if as_json else _show_row)
    except KeyboardInterrupt:
        return


def _show_row(row: Row) -> None:
    logs = sorted(row["logs"].items(), key=lambda item: _place(item[0]))
    values = "  ".join(f"{printable(name)} {_value(value)}" for name, value in logs)
    phase = f"phase {row['phase']}  " if row["phase"] else ""
    say(f"{phase}epoch {row['epoch'] + 1}  step {units.number(row['step'])}  {values}")

"""Prints to stdout: aligned columns for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from outlast.cli.display.say import say
from outlast_checkpoints.printable import printable


def plain(value: Any) -> Any:
    """Return `value` with non-finite floats as "NaN", "Infinity" or "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def print_json(value: Any) -> None:
    """Print one indented JSON document, in ASCII."""
    say(json.dumps(plain(value), indent=2, allow_nan=False))


def print_json_line(value: Any) -> None:
    """Print one JSON document, in ASCII, on one line and flush it."""
    say(json.dumps(plain(value), allow_nan=False))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; columns of numbers are aligned to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    headers = [printable(header) for header in headers]
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(headers)
    widths = [
        max([len(header), *map(len, column)])
        for header, column in zip(headers, columns, strict=True)
    ]
    right = [bool(column) and all(_is_number(cell) for cell in column) for column in columns]
    lines = []
    for row in [headers, *cells]:
        parts = [
            cell.rjust(width) if leans else cell.ljust(width)
            for cell, width, leans in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    say("\n".join(lines))  # one call, because ten thousand calls are slow


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(",", "").replace(".", "").lstrip("-").isdigit()


def print_fields(fields: Mapping[str, str]) -> None:
    """Print names and values in two columns; fields without a value are omitted."""
    shown = {name: printable(value) for name, value in fields.items() if value}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        say(f"{name.ljust(width)}  {value}")

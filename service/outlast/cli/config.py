"""Options from a TOML file, with the names of the command line; unknown names are errors."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from outlast_checkpoints.errors import UsageError

SCRIPT_KEYS = ("script", "module", "args")


def read_config(path: Path) -> dict[str, Any]:
    """Return the options of a TOML file: its `[job]` table, or its top level.

    Raises:
        UsageError: the file cannot be read, or is not valid TOML.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(path, f"the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _wrong(path, "the file is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise _wrong(path, f"the file is not valid TOML: {error}") from error
    job = document.get("job")
    if not isinstance(job, dict):
        return document
    for other in document:
        if other != "job":
            raise _wrong(
                path,
                f"{other!r} is outside the table [job]",
                "Move it into [job], or remove that table.",
            )
    return job


def as_defaults(path: Path, found: Mapping[str, Any], ctx: click.Context) -> dict[str, Any]:
    """Return the options of a file by parameter name, each value checked by its option.

    Keys may be spelled with "-" or "_".

    Raises:
        UsageError: a key is unknown, or a value is invalid.
    """
    options = {
        param.name: param
        for param in ctx.command.params
        if isinstance(param, click.Option) and param.name and param.name not in _NOT_IN_FILE
    }
    defaults: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name in SCRIPT_KEYS:
            defaults[name] = _script_value(path, key, value)
        elif name in options:
            defaults[name] = _option_value(path, key, value, options[name], ctx)
        else:
            raise _wrong(path, f"unknown option {key!r}", _near(name, [*options, *SCRIPT_KEYS]))
    if defaults.get("script") and defaults.get("module"):
        raise _wrong(path, "'script' and 'module' exclude each other", "Keep one of the two.")
    return defaults


_NOT_IN_FILE = frozenset({"config", "debug", "key_file", "module"})


def _script_value(path: Path, key: str, value: Any) -> Any:
    if key == "args":
        if isinstance(value, list) and all(_is_plain(item) for item in value):
            return [str(item) for item in value]
        raise _wrong(path, "'args' must be a list of strings")
    if isinstance(value, str) and value:
        return value
    raise _wrong(path, f"{key!r} must be a string")


def _option_value(
    path: Path, key: str, value: Any, option: click.Option, ctx: click.Context
) -> Any:
    if option.multiple:
        if isinstance(value, dict) and all(_is_plain(item) for item in value.values()):
            value = [f"{name}={item}" for name, item in value.items()]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _wrong(path, f"{key!r} must be a table, or a list of 'NAME=VALUE'")
    elif option.is_flag:
        if not isinstance(value, bool):
            raise _wrong(path, f"{key!r} must be true or false")
        return value
    elif not _is_plain(value):
        raise _wrong(path, f"{key!r} must be a single value")
    else:
        value = str(value)
    try:
        option.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise _wrong(path, f"{key!r}: {error.message.rstrip('.')}") from error
    return value


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"Did you mean {' or '.join(repr(one) for one in near)}?"
    return "Use the option names of `outlast run --help`, without the leading dashes."


def _wrong(path: Path, problem: str, hint: str = "Correct the file.") -> UsageError:
    return UsageError(field=f"--config {path}", problem=problem, hint=hint)

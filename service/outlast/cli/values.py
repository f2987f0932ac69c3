"""The types of option values: durations, pairs, policies."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

from outlast_checkpoints.errors import OutlastError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str | float) -> float:
    """Return a duration such as "90", "90s", "30m", "1.5h" or "1d" in seconds; "off" is 0."""
    said = str(text).strip().lower()
    if said == "off":
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", said)
    if match is None:
        problem = f"Invalid duration {text!r}. Use for example 90, 90s, 30m, 1.5h or 1d."
        raise click.BadParameter(problem)
    return float(match.group(1)) * _UNITS[match.group(2) or "s"]


def pair(text: str) -> tuple[str, str]:
    """Split "NAME=VALUE" into name and value."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise click.BadParameter(f"Invalid pair {text!r}. Use NAME=VALUE.")
    return name.strip(), value


def adoption(text: str) -> str:
    """Return "no", "yes" or "strict"; a variable may also say 1, true, 0 or false."""
    said = text.strip().lower()
    said = {"1": "yes", "true": "yes", "0": "no", "false": "no"}.get(said, said)
    if said not in ("no", "yes", "strict"):
        problem = f"Invalid value {text!r}. Use --adopt, or --adopt=strict."
        raise click.BadParameter(problem)
    return said


def cadence(text: str) -> str:
    """Return `text` if it is a valid save cadence."""
    from outlast.job.save_schedule import SaveEvery

    return _checked(text, SaveEvery.parse)


def share(text: str) -> str:
    """Return a percentage as the automatic save cadence spells it."""
    from outlast.job.save_schedule import SaveEvery

    spelled = f"{text.removesuffix('%').strip()}%"
    try:
        SaveEvery.parse(f"auto:{spelled}")
    except OutlastError as error:
        problem = f"Invalid percentage {text!r}. Use more than 0% and at most 100%, for example 1%."
        raise click.BadParameter(problem) from error
    return spelled


def states(text: str) -> frozenset[str]:
    """Return the states of jobs in a text such as "running,failed"."""
    from outlast.job.lifecycle import State

    known = [*(state.value for state in State), "gone", "unreadable"]
    found = [part.strip().lower() for part in text.split(",") if part.strip()]
    for part in found:
        if part not in known:
            raise click.BadParameter(f"Invalid state {part!r}. Use one of: {', '.join(known)}.")
    return frozenset(found)


def audits(text: str) -> str:
    """Return `text` if it says how often to audit."""
    from outlast.job.audit_schedule import AuditEvery

    return _checked(text, AuditEvery.parse)


def rollbacks(text: str) -> str:
    """Return `text` if it says what a rollback leaves out."""
    from outlast.job.rollback import Policy

    return _checked(text, Policy.parse)


def retention(text: str) -> str:
    """Return `text` if it is a valid retention policy."""
    from outlast_checkpoints.format.retention import Keep

    return _checked(text, Keep.parse)


def _checked(text: str, parse: Callable[[str], object]) -> str:
    try:
        parse(text)
    except OutlastError as error:
        told = [str(error.fields[key]) for key in ("problem", "hint") if key in error.fields]
        raise click.BadParameter(". ".join(told) or str(error)) from error
    return text

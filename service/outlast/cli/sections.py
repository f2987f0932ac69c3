"""Options under the headings of `--help`, which variables of the environment can set too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Section(click.Option):
    """An option that `--help` lists under the heading `section`."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def option(
    name: str, *more: str, section: str = "Options", in_environment: bool = True, **kwargs: Any
) -> Callable[[F], F]:
    """Declare an option that the environment variable OUTLAST_<NAME> can set too."""
    if in_environment:
        first = name.split("/")[0].lstrip("-").replace("-", "_").upper()
        kwargs.setdefault("envvar", f"OUTLAST_{first}")
    return click.option(name, *more, cls=Section, section=section, **kwargs)

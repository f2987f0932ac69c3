"""The command line in this process: what it answers, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from outlast.cli import main


class Answer(NamedTuple):
    """What a command line has come to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def jobs(self) -> list[str]:
        """The names of the jobs that `list --json` shows."""
        return [row["job"] for row in self.json]


Call = Callable[..., Answer]


def answer(capture: pytest.CaptureFixture[str], *arguments: str) -> Answer:
    """Run `outlast ARGUMENTS`."""
    capture.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    printed = capture.readouterr()
    assert isinstance(left.value.code, int)
    return Answer(left.value.code, printed.out, printed.err)

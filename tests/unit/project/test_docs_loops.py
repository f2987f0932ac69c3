"""Every script that docs/loops.md shows: run as it stands, killed, and run again."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

import pytest

from outlast import Loop
from tests.support.training_harness import (
    Death,
    all_state,
    begin_process,
    dying_at,
    process,
    stopping_at,
)

PAGE = (Path(__file__).parents[3] / "docs/loops.md").read_text(encoding="utf-8")
BLOCK = r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$"
SCRIPTS = dict(re.findall(BLOCK, PAGE, re.M | re.S))  # by the heading that they stand under


def test_every_script_of_the_page_is_found() -> None:
    assert len(SCRIPTS) == PAGE.count("```python") == 6


def start(heading: str, folder: Path) -> dict[str, Any]:
    """Run a script in this folder, as a process of its own; return what it leaves behind."""
    said = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__"}
    folder.mkdir(exist_ok=True)
    begin_process()
    with contextlib.chdir(folder), process(folder), contextlib.redirect_stdout(said):
        exec(compile(SCRIPTS[heading], f"<{heading}>", "exec"), names)
    models = {name: part for name, part in names.items() if hasattr(part, "train_on_batch")}
    assert models
    return {
        "printed": said.getvalue().splitlines()[-1],
        "models": {name: all_state(model) for name, model in models.items()},
        "files": {path.name: path.read_text() for path in folder.glob("*.json")},
    }


@pytest.mark.parametrize("heading", SCRIPTS)
def test_it_ends_as_untouched(heading: str, tmp_path: Path) -> None:
    whole = start(heading, tmp_path / "whole")
    folder = tmp_path / "parts"
    for how, step in ((stopping_at, 2), (dying_at, 4), (dying_at, 7)):
        with pytest.raises((Death, SystemExit)), how(step):
            start(heading, folder)
    assert start(heading, folder) == whole
    assert start(heading, folder) == whole  # finished: no step is run


def test_the_names_that_the_page_explains_are_those_of_the_loop() -> None:
    table = PAGE[PAGE.index("| `state` |") : PAGE.index("If an earlier run has finished")]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    told = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert told == set(inspect.signature(Loop).parameters)
    for name in re.findall(r"`loop\.(\w+)", PAGE):
        assert hasattr(Loop, name) or name in ("epoch", "batch", "history"), name

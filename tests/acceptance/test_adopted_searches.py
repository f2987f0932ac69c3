"""Searches under `run --adopt`, killed ten times within their trials; see docs/searches.md.

`make libraries` installs the libraries.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance import adopted

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]


class Search(NamedTuple):
    """A search: its script, what installs it, and after how many steps each attempt is killed."""

    script: str
    arguments: tuple[str, ...]
    package: str
    kills: str
    keeps: str = ""  # what a line at the top of the script keeps
    needs: str = ""


SEARCHES = {
    "KerasTuner RandomSearch": Search(
        "keras_tuner", ("random",), "keras_tuner", "14,13+0.02,10,22,9+0.1,17,12,11+0.05,8,13"
    ),
    "KerasTuner Hyperband": Search(
        "keras_tuner", ("hyperband",), "keras_tuner", "9,14+0.02,10,22,9+0.1,17,12,11+0.05,8,13"
    ),
    "KerasTuner BayesianOptimization": Search(
        "keras_tuner", ("bayesian",), "keras_tuner", "14,9+0.02,10,12,9+0.1,7,5,11+0.05,8,6",
        needs="sklearn",
    ),
    "Optuna in memory": Search(
        "optuna", ("memory",), "optuna", "5,7,11+0.02,6,9,12+0.05,8,10,6,7"
    ),
    "Optuna in SQLite": Search(
        "optuna", ("sqlite",), "optuna", "5,7,11+0.02,6,9,12+0.05,8,10,6,7", keeps="study.db"
    ),
    "scikeras": Search(
        "scikeras", (), "scikeras", "14,9+0.02,10,12,9+0.1,7,5,11+0.05,8,6", needs="sklearn pandas"
    ),
}  # fmt: skip


PAGE = (Path(__file__).parents[2] / "docs/searches.md").read_text()
# The packages that a script of the page needs, and what else it imports.
OF_PAGE = {
    "KerasTuner": ("keras_tuner", ""),
    "Optuna": ("optuna", ""),
    "scikit-learn with scikeras": ("scikeras", "sklearn pandas"),
    "A loop over folds": ("keras_tuner", ""),  # only with the others: test_adoption has one, too
}


@pytest.mark.parametrize("heading", OF_PAGE)
def test_a_script_of_the_page_killed_prints_the_same(tmp_path: Path, heading: str) -> None:
    package, needs = OF_PAGE[heading]
    if find_spec(package) is None:
        pytest.skip("make libraries installs it")
    _, _, section = PAGE.partition(f"\n## {heading}\n")
    code = section.partition("```python\n")[2].partition("```")[0]
    script = tmp_path / "train.py"
    script.write_text(code.replace("print(", 'print("END",'))
    untouched = adopted.run(script, tmp_path / "untouched", needs=needs)
    killed = adopted.run(script, tmp_path / "killed", needs=needs, kills="5,9,7+0.05")
    assert (untouched.attempts, killed.attempts) == (1, 4)
    assert killed.differences(untouched) == []


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_killed_ten_times_ends_as_untouched(tmp_path: Path, name: str) -> None:
    search = SEARCHES[name]
    if find_spec(search.package) is None:
        pytest.skip("make libraries installs it")
    script = unmodified = adopted.SCRIPTS / f"search_{search.script}.py"
    if search.keeps:
        script = tmp_path / script.name
        line = f"import outlast\n\noutlast.keep({search.keeps!r})\n"
        script.write_text(line + unmodified.read_text())
        shutil.copy(adopted.SCRIPTS / "ending.py", tmp_path)
    untouched = adopted.run(
        script, tmp_path / "untouched", arguments=search.arguments, needs=search.needs
    )
    killed = adopted.run(
        script, tmp_path / "killed",
        arguments=search.arguments, kills=search.kills, needs=search.needs,
    )  # fmt: skip
    assert (untouched.attempts, killed.attempts) == (1, 11)
    assert killed.differences(untouched) == []
    # None of the scripts shuffles arrays, so the plain search comes to the same.
    assert adopted.plainly(unmodified, tmp_path / "plain", *search.arguments) == untouched.end
    found = json.loads(untouched.end.removeprefix("END "))
    if search.package == "optuna":
        assert {"COMPLETE", "PRUNED"} == {state for *_, state, _ in found["trials"]}
    kept = [json.loads(line) for line in killed.log.splitlines() if '"files_kept"' in line]
    by = {"keras_tuner": "KerasTuner"}.get(search.package, "the script")
    assert {(one["path"], one["by"]) for one in kept} <= {("searches/untitled_project", by),
                                                          (search.keeps, by)}  # fmt: skip
    assert len(kept) == (11 if by == "KerasTuner" or search.keeps else 0)

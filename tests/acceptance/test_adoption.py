"""Scripts that know nothing of Outlast under `run --adopt`; `make adoption` runs all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from outlast_checkpoints.storage import open_storage
from tests.acceptance import adopted
from tests.acceptance.jobs import outlast

pytestmark = pytest.mark.acceptance

# A train_step with trackers; two fits; a fit in each turn of a loop; a loss, metric, layer and
# callback of the script's own. The last two shuffle nothing, so that they end as in plain Keras.
KILLS = {"vae": "4,9", "transfer_learning": "20,7", "kfold": "10,17", "custom_parts": "5,14"}


@pytest.mark.parametrize("name", KILLS)
def test_an_unmodified_script_killed_ends_as_untouched(tmp_path: Path, name: str) -> None:
    script = adopted.SCRIPTS / f"{name}.py"
    assert "outlast" not in script.read_text()
    untouched = adopted.run(script, tmp_path / "untouched")
    # One under the plain command line with spares, as a user's: forks come to the same.
    spare = ["--warm-spare"] if name == "vae" else []
    killed = adopted.run(script, tmp_path / "killed", *spare, kills=KILLS[name], fork=not spare)
    assert (untouched.attempts, killed.attempts) == (1, 3)
    assert killed.differences(untouched) == []
    assert '"resumed"' in killed.log
    if name == "custom_parts":
        assert adopted.plainly(script, tmp_path / "plain") == untouched.end


FORKING = """
import multiprocessing, os, sys
def train():
    import keras, numpy
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(numpy.ones((4, 2)), numpy.ones(4), verbose=0)
if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=train)
    child.start()
    child.join()
    print("child", child.exitcode)
    print("told", *(os.environ["OUTLAST_" + name] for name in ("JOB", "ATTEMPT", "RUN_ID")))
"""


@pytest.mark.parametrize("strict", [False, True])
def test_a_fit_in_a_child_is_named(tmp_path: Path, strict: bool) -> None:
    (tmp_path / "train.py").write_text(FORKING)
    adopt = "--adopt=strict" if strict else "--adopt"
    done = outlast("run", adopt, "--name", "a", "train.py", cwd=tmp_path)
    assert done.returncode == 0
    assert "a process that the script has started calls it" in done.stdout
    assert ("child 1" if strict else "child 0") in done.stdout
    assert "keras.Model.fit where it can be adopted. `outlast logs` says why" in done.stderr
    job, attempt, run = done.stdout.partition("\ntold ")[2].split()[:3]
    assert (Path(job), attempt, len(run)) == (tmp_path / "outlast-jobs/a", "1", 16)
    told = json.loads((tmp_path / "outlast-jobs/a/spec.json").read_text())
    assert told["adopt"] == ("strict" if strict else "yes")
    log = (tmp_path / "outlast-jobs/a/attempts/0001/log.jsonl").read_text()
    assert "main thread, or write the loop with outlast.Loop" in log
    assert open_storage(tmp_path / "outlast-jobs/a").list("checkpoints") == []


def test_the_page_shows_options_that_exist() -> None:
    page = (Path(__file__).parents[2] / "docs/adoption.md").read_text()
    assert re.findall(r"^outlast (\w+) --adopt", page, re.M) == ["run", "submit"]
    assert len(adopted.OF_KERAS) == 20
    assert "Twenty scripts" in page

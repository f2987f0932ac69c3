"""Which verbs run code of a job, change it or only read it. A new verb belongs in one list."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from outlast import exit_codes
from outlast.cli import main
from outlast.job import spec as specs
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot
from tests.support.command_line import Call

# What runs, or passes on, what a job's spec says. Each is refused for a job from elsewhere.
GATED = {
    "resume": ["resume x", "resume x --from 00-000000000001.0-0001"],
    "audit": ["audit x", "audit x --at step:2"],
    "fork": ["fork x y", "fork x y --at step:1"],
}
NEW = {"run", "submit", "demo", "key"}  # what the user names himself
CHANGE = {"stop", "prune", "rm", "copy"}  # without running anything of it
READ = {"list", "status", "events", "logs", "history", "checkpoints", "verify", "export"}


@pytest.fixture
def foreign(job_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job with two checkpoints that somebody else has put there. Its script leaves a mark."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    storage = open_storage(job_root / "x")
    script = tmp_path / "evil.py"
    script.write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    spec = JobSpec(job="x", script=str(script), cwd=str(tmp_path))
    storage.create(layout.SPEC, specs.encode(spec))
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    for step in (1, 2):
        store.save(sample_snapshot(step), reason="step")
    return tmp_path / "mark"


def test_each_verb_is_in_one_list() -> None:
    verbs = set(main.list_commands(click.Context(main)))
    assert verbs == set(GATED) | NEW | CHANGE | READ
    assert len(verbs) == len(GATED) + len(NEW) + len(CHANGE) + len(READ)


@pytest.mark.parametrize("words", [words for all_words in GATED.values() for words in all_words])
def test_no_verb_runs_a_job_from_elsewhere(
    outlast: Call, job_root: Path, foreign: Path, words: str
) -> None:
    code, out, err = outlast(*words.split())
    assert (code, out) == (exit_codes.REJECTED, ""), err
    assert "evil.py" in err
    assert f"outlast {words.split()[0]}" in err or "outlast resume" in err
    assert not foreign.exists()
    assert sorted(path.name for path in job_root.iterdir()) == ["x"]

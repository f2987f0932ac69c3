"""Clusters get the key file: Slurm by its path, Kubernetes as a Secret. No key is in a manifest."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import pytest

from outlast.engines import slurm
from outlast.engines.kubernetes_job import manifest
from outlast.engines.slurm import SlurmEngine
from outlast.errors import EngineFailed
from outlast.job.spec import JobSpec, spec_env
from outlast.job.submission import submit
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import key_file, open_storage


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "the key"
    key_file.create(path)
    monkeypatch.setenv(key_file.KEY_FILE, str(path))
    return path


def test_the_batch_script_names_the_file(key: Path, tmp_path: Path) -> None:
    text = slurm.script(JobSpec(job="j", script="t.py"), open_storage(tmp_path / "j"))
    assert f"export OUTLAST_KEY_FILE='{key}'\n" in text
    assert key.read_text().strip() not in text


def test_the_spec_does_not_store_the_path(key: Path) -> None:
    assert str(key) not in spec_env({}).values()


def test_a_batch_script_that_was_changed_is_not_submitted(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that refuses to requeue gets the script of the spec, not the stored file."""
    root = open_storage(tmp_path)
    submit(root, JobSpec(job="j", script="t.py", engine="slurm"))
    storage = root.sub("j")
    storage.create(layout.BATCH_SCRIPT, b"#!/bin/bash\nevil\n")
    sent: list[str] = []

    def call(action: str, *command: str, stdin: str = "", **more: object) -> str:
        if "requeue" in command:
            raise EngineFailed(engine="slurm", action=action, reason="JobRequeue=0")
        sent.append(stdin)
        return "JobState=RUNNING" if command[0] == "scontrol" else "4712\n"

    monkeypatch.setattr(slurm, "_call", call)
    assert SlurmEngine().requeue({"id": "4711"}, storage) == {"id": "4712"}
    assert "evil" not in sent[-1]
    assert "outlast.engines.cluster_main" in sent[-1]


@pytest.mark.parametrize("claim", [{}, {"claim": "jobs"}])
def test_a_pod_gets_the_key_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: dict[str, str]
) -> None:
    url = str(tmp_path / "jobs" / "j") if claim else "memory://bucket/jobs/j"
    options = {"image": "i", "key-secret": "outlast-key", **claim}
    spec = JobSpec(job="j", script="t.py", engine="kubernetes", engine_options=options)
    found = manifest(spec, open_storage(url))
    kubernetes_validate.validate(found, "1.32", strict=True)
    pod = found["spec"]["template"]["spec"]
    container = pod["containers"][0]
    place = next(one for one in container["env"] if one["name"] == "OUTLAST_KEY_FILE")["value"]
    mounted = next(one for one in container["volumeMounts"] if one["name"] == "key")
    volume = next(one for one in pod["volumes"] if one["name"] == "key")["secret"]
    assert place == f"{mounted['mountPath']}/{volume['items'][0]['path']}"
    assert (mounted["readOnly"], volume["defaultMode"]) == (True, 0o400)
    assert volume["secretName"] == "outlast-key"
    assert ("root" in {one["name"] for one in pod["volumes"]}) is bool(claim)

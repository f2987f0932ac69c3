"""What stands in deploy/ is well-formed, and says what the code means."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hcl2
import kubernetes_validate
import pytest
import yaml

from outlast import exit_codes
from outlast.engines import slurm
from outlast.engines.kubernetes import KubernetesEngine
from outlast.job.spec import JobSpec
from outlast.notices.aws import WITHIN
from outlast.notices.base import RESERVE
from outlast_checkpoints.storage import open_storage

DEPLOY = Path(__file__).parents[3] / "deploy"
UNITS = ["outlast.service", "outlast@.service"]


def unit(name: str) -> dict[str, list[str]]:
    """Return the settings of a unit, each with the values in order."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


# --- systemd -------------------------------------------------------------------------------------


def test_systemd_takes_the_units(require: Callable[[str], str], tmp_path: Path) -> None:
    analyze, program = require("systemd-analyze"), require("true")
    for name in UNITS:
        text = (DEPLOY / "systemd" / name).read_text()
        assert "/opt/outlast/bin/outlast " in text
        # It looks whether the program is there.
        (tmp_path / name).write_text(text.replace("/opt/outlast/bin/outlast", program))
    files = [tmp_path / "outlast.service", tmp_path / "outlast@digits.service"]
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", *files],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "outlast.service").write_text("[Service]\nKillMode=gently\n")
    wrong = subprocess.run([analyze, "verify", "--man=no", files[0]], capture_output=True)
    assert wrong.stderr  # so that it would have been seen


def test_every_exit_code_is_either_good_or_final_or_worth_another_start() -> None:
    one = unit("outlast@.service")
    good = {0, *map(int, one["SuccessExitStatus"][0].split())}
    final = set(map(int, one["RestartPreventExitStatus"][0].split()))
    assert good == {exit_codes.DONE, exit_codes.RESUMABLE}
    assert set(exit_codes.MEANINGS) - good - final == {exit_codes.STORAGE_FAILED}
    assert final < set(exit_codes.MEANINGS)
    assert one["Restart"] == ["on-failure"]


@pytest.mark.parametrize("name", UNITS)
def test_a_shutdown_leaves_time_to_save(name: str) -> None:
    settings = unit(name)
    assert settings["KillSignal"] == ["SIGTERM"]
    assert int(settings["TimeoutStopSec"][0]) > max(JobSpec(job="x").grace, WITHIN - RESERVE)
    # One that has detached what it started has no main process for "mixed" to tell.
    kill = {"oneshot": "control-group", "exec": "mixed"}[settings["Type"][0]]
    assert settings["KillMode"] == [kill]


# --- clouds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cloud", ["gcp", "aws"])
def test_terraform_uses_what_it_declares_and_files_that_exist(cloud: str) -> None:
    text = (DEPLOY / cloud / "main.tf").read_text()
    document = hcl2.loads(text)
    declared = {name.strip('"') for one in document["variable"] for name in one}
    assert set(re.findall(r"\bvar\.(\w+)", text)) == declared
    made = {
        (kind.strip('"'), name.strip('"'))
        for one in document["resource"]
        for kind, named in one.items()
        for name in named
    }
    provider = {"gcp": "google", "aws": "aws"}[cloud]
    used = set(re.findall(rf"(?<!data\.)\b({provider}_\w+)\.(\w+)\.", text))
    assert used <= made
    for path in re.findall(r"\$\{path\.module\}/([^\"]+)", text):
        assert (DEPLOY / cloud / path).is_file(), path


def test_cloud_init_reads_its_file_once_it_is_filled_in() -> None:
    text = (DEPLOY / "aws" / "user-data.yaml").read_text()
    assert text.startswith("#cloud-config\n")
    called = (DEPLOY / "aws" / "main.tf").read_text()
    given = re.search(r"templatefile\(.*?\{(.*?)\}\)\)", called, re.S)
    assert given is not None
    names = set(re.findall(r"^\s+(\w+)\s+=", given[1], re.M))
    assert set(re.findall(r"\$\{(\w+)\}", text)) == names == {"root", "package", "unit"}
    filled: Any = {"root": "s3://bucket/jobs", "package": "https://x/h.whl", "unit": "W1VuaXRdCg=="}
    document = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda found: filled[found[1]], text))
    files = {one["path"]: one for one in document["write_files"]}
    assert files["/etc/default/outlast"]["content"] == "OUTLAST_ROOT=s3://bucket/jobs\n"
    assert files["/etc/systemd/system/outlast.service"]["encoding"] == "b64"
    assert ["systemctl", "daemon-reload"] in document["runcmd"]
    assert all(isinstance(word, str) for command in document["runcmd"] for word in command)


def test_the_start_up_script_asks_for_what_terraform_gives() -> None:
    script = (DEPLOY / "gcp" / "startup.sh").read_text()
    asked = set(re.findall(r"metadata (outlast-\w+)", script))
    template = (DEPLOY / "gcp" / "main.tf").read_text()
    assert asked == set(re.findall(r"^\s+(outlast-\w+)\s+=", template, re.M))


# --- clusters: what is shown is what is handed over -----------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Outlast were installed where the examples have it."""
    monkeypatch.setattr(sys, "executable", "/shared/outlast/bin/python")
    monkeypatch.setattr(slurm, "source_path", lambda: None)


@pytest.mark.usefixtures("installed")
def test_the_batch_script_that_is_shown_is_the_one_that_is_submitted() -> None:
    spec = JobSpec(
        job="digits",
        script="train.py",
        args=["--lr", "1e-3"],
        cwd="/shared/project",
        engine="slurm",
        engine_options={"partition": "gpu", "gpus": "1", "time": "4:00:00"},
    )
    found = slurm.script(spec, open_storage("/shared/jobs/digits"))
    assert found == (DEPLOY / "slurm/batch.sh").read_text()


def test_the_job_that_is_shown_is_the_one_that_is_made() -> None:
    options = {"image": "registry/train:1", "claim": "jobs", "gpus": "1", "memory": "16Gi"}
    args = ["--lr", "1e-3"]
    spec = JobSpec(
        job="digits", script="train.py", args=args, engine="kubernetes", engine_options=options
    )
    shown = (DEPLOY / "kubernetes/job.yaml").read_text()
    assert KubernetesEngine().plan(spec, open_storage("/jobs/digits")) == shown


@pytest.mark.parametrize("name", ["job.yaml", "claim.yaml"])
def test_kubernetes_takes_what_is_shown(name: str) -> None:
    found = yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())
    kubernetes_validate.validate(found, "1.32", strict=True)

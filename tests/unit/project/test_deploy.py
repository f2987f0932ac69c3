"""The files in deploy/ are valid and agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import hcl2
import kubernetes_validate
import pytest
import yaml

from outlast import exit_codes
from outlast.engines import slurm
from outlast.engines.kubernetes import KubernetesEngine
from outlast.errors import SpecInvalid
from outlast.job.spec import JobSpec
from outlast.notices.aws import WITHIN
from outlast.notices.base import RESERVE
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.spool import FOLDER, LIMIT

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


def test_systemd_accepts_the_units(require: Callable[[str], str], tmp_path: Path) -> None:
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


def test_a_unit_may_do_little_more_than_train(
    require: Callable[[str], str], tmp_path: Path
) -> None:
    """The rating of systemd-analyze, from 0 (shut in) to 10 (may do everything)."""
    analyze = require("systemd-analyze")
    for name in UNITS:
        one = tmp_path / name.replace("@", "@digits")
        one.write_text((DEPLOY / "systemd" / name).read_text())
        command = [analyze, "security", "--offline=true", "--no-pager", "--threshold=40", one]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-500:]


def test_every_exit_code_is_success_final_or_restarted() -> None:
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


@pytest.mark.parametrize("cloud", ["gcp", "aws"])
def test_machines_get_one_version_of_each_tool_and_few_rights(cloud: str) -> None:
    text = (DEPLOY / cloud / "main.tf").read_text()
    versions = re.findall(r"^\s+source\s+= .+\n\s+version\s+= \"(.+)\"", text, re.M)
    assert versions
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)
    package = re.search(r"condition\s+= can\(regex\(\"(.+)\", var\.package\)\)", text)
    assert package is not None
    extra = {"gcp": "gcs", "aws": "s3"}[cloud]
    wanted = f"outlast[{extra}] @ https://host/outlast.whl#sha256={'0' * 64}"
    pattern = package[1].replace("\\\\", "\\")
    assert re.match(pattern, wanted)
    for other in (f"outlast[{extra}]", wanted[:-1], wanted.replace("https", "http")):
        assert not re.match(pattern, other)


def test_the_role_on_aws_reaches_only_the_jobs_and_leaves_the_machine_by_no_second_hop() -> None:
    document = hcl2.loads((DEPLOY / "aws" / "main.tf").read_text())
    (template,) = (one['"aws_launch_template"'] for one in document["resource"]
                   if '"aws_launch_template"' in one)  # fmt: skip
    (options,) = template['"outlast"']["metadata_options"]
    assert options["http_tokens"].strip('"') == "required"
    assert options["http_put_response_hop_limit"] == 1
    policies = [one['"aws_iam_policy_document"'] for one in document["data"]]
    (bucket,) = (one['"bucket"'] for one in policies if '"bucket"' in one)
    for statement in bucket["statement"]:
        actions = {action.strip('"') for action in statement["actions"]}
        assert not any("*" in action for action in actions)
        (resource,) = statement["resources"]
        inside = resource.strip('"') == "arn:aws:s3:::${var.bucket}/jobs/*"
        listed = "condition" in statement and actions == {"s3:ListBucket"}
        assert inside or listed or actions == {"s3:ListBucketMultipartUploads"}


def test_the_account_on_google_cloud_is_good_for_storage_alone() -> None:
    text = (DEPLOY / "gcp" / "main.tf").read_text()
    assert re.findall(r"auth/([\w.-]+)", text) == ["devstorage.read_write"]
    assert re.findall(r"\brole\s+= \"(.+)\"", text) == ["roles/storage.objectUser"]
    assert "access_config" not in text  # no public address


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


def test_the_startup_script_reads_what_terraform_sets() -> None:
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


@pytest.mark.parametrize("name", ["job.yaml", "claim.yaml", "network-policy.yaml"])
def test_kubernetes_accepts_the_shown_manifests(name: str) -> None:
    found = yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())
    kubernetes_validate.validate(found, "1.32", strict=True)


def shown(name: str) -> Any:
    return yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())


def test_a_pod_may_do_little_more_than_train() -> None:
    """Kubernetes' "restricted" profile, and what it leaves open."""
    pod = shown("job.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["ephemeral-storage"] == "10Gi"
    mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    empty = {one["name"] for one in pod["volumes"] if "emptyDir" in one}
    given = {one["name"]: one.get("value") for one in container["env"]}
    assert mounted["/tmp"] in empty
    assert mounted[given["HOME"]] in empty
    assert given[FOLDER].startswith(f"{given['HOME']}/")
    assert given[LIMIT] == "5120M"  # half


@pytest.mark.parametrize(
    ("disk", "limit"), [("20Gi", "10240M"), ("512Mi", "256M"), ("1Ti", "524288M")]
)
def test_waiting_checkpoints_use_half_of_the_disk(disk: str, limit: str) -> None:
    options = {"image": "x", "claim": "c", "disk": disk}
    spec = JobSpec(job="j", engine="kubernetes", engine_options=options)
    made = yaml.safe_load(KubernetesEngine().plan(spec, open_storage("/jobs/j")))
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["ephemeral-storage"] == disk
    assert {"name": LIMIT, "value": limit} in container["env"]


@pytest.mark.parametrize("disk", ["20", "0Gi", "1.5Gi", "20GB", "", "20Gi "])
def test_a_disk_without_a_size_is_refused(disk: str) -> None:
    options = {"image": "x", "claim": "c", "disk": disk}
    spec = JobSpec(job="j", engine="kubernetes", engine_options=options)
    with pytest.raises(SpecInvalid, match=r"engine_options\.disk.*is not a size"):
        KubernetesEngine().plan(spec, open_storage("/jobs/j"))


def test_the_network_policy_is_of_these_pods_and_admits_nobody() -> None:
    policy = shown("network-policy.yaml")["spec"]
    labels = shown("job.yaml")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["ingress"] == []
    names, bucket = policy["egress"]
    assert {one["port"] for one in names["ports"]} == {53}
    assert bucket["ports"] == [{"protocol": "TCP", "port": 443}]
    left_out = [ip_network(net) for one in bucket["to"] for net in one["ipBlock"]["except"]]
    for address in ("169.254.169.254", "fd00:ec2::254", "10.0.0.1", "192.168.1.1", "172.31.0.9"):
        at = ip_address(address)
        assert any(at in net for net in left_out if net.version == at.version), address

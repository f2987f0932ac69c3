"""The Kubernetes engine: valid manifests, and jobs on a double of the API."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes.config import incluster_config

from outlast.engines import kubernetes
from outlast.engines.base import Engine
from outlast.engines.kubernetes import KubernetesEngine
from outlast.engines.kubernetes_job import manifest
from outlast.engines.testing import EngineConformance
from outlast.errors import EngineFailed, SpecInvalid
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from tests.acceptance.jobs import TOP
from tests.support.kubernetes_double import KubernetesDouble

# The release that the double and the manifests are written for.
VERSION = "1.32"
SECRET = "a-secret-token"


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesDouble]:
    python = Path(sys.executable).parent
    environment = {"PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": str(TOP)}
    double = KubernetesDouble(tmp_path, environment)
    monkeypatch.setenv("KUBECONFIG", str(double.kubeconfig))
    yield double
    double.close()


@pytest.mark.usefixtures("double")
class TestKubernetesEngine(EngineConformance):
    options = {  # noqa: RUF012
        "engine": "kubernetes",
        "engine_options": {"image": "outlast", "claim": "jobs"},
        "grace": 20.0,
    }

    def make(self) -> Engine:
        return KubernetesEngine()

    def test_a_preempted_job_saves_and_another_pod_continues(
        self, job: tuple[JobSpec, Storage], double: KubernetesDouble, tmp_path: Path
    ) -> None:
        spec, storage = job
        handle = self.make().launch(spec, storage)
        self._until(lambda: self._is(storage, State.RUNNING))
        double.preempt(handle["id"])
        journal = Journal(storage)
        self._until(lambda: journal.existing_job().attempt == 2)
        (tmp_path / "done").touch()
        self._until(lambda: self._is(storage, State.SUCCEEDED))
        self._gone(self.make(), handle)
        outcomes = [getattr(entry.event, "outcome", None) for entry in journal.read()]
        assert Outcome.PREEMPTED in outcomes
        queued = journal.existing_job().queued
        assert queued is not None  # noted from inside: nobody else did here
        assert queued.handle["id"] == handle["id"]
        assert len(double.pods[handle["id"]]) == 2

    def test_a_script_that_fails_for_good_fails_the_job_without_another_pod(
        self, job: tuple[JobSpec, Storage], double: KubernetesDouble, tmp_path: Path
    ) -> None:
        spec, storage = job
        (tmp_path / spec.runs).write_text("import no_such_module")
        handle = self.make().launch(spec, storage)
        self._until(lambda: self._is(storage, State.FAILED))
        self._gone(self.make(), handle)
        assert len(double.pods[handle["id"]]) == 1

    def test_a_job_that_waits_for_a_node_is_queued(
        self, job: tuple[JobSpec, Storage], double: KubernetesDouble
    ) -> None:
        spec, storage = job
        double.schedulable = False
        handle = self.make().launch(spec, storage)
        found = self.make().poll(handle)
        assert found is not None
        assert found.queued
        self.make().stop(handle, storage)
        self._gone(self.make(), handle)

    def test_a_refusal_of_the_api_is_quoted_without_secrets(
        self, job: tuple[JobSpec, Storage]
    ) -> None:
        spec, storage = job
        options = {**spec.engine_options, "namespace": "others"}
        elsewhere = JobSpec(job="j", engine="kubernetes", engine_options=options)
        with pytest.raises(EngineFailed, match="namespace 'others' is not yours") as caught:
            self.make().launch(elsewhere, storage)
        assert SECRET not in str(caught.value)


def test_an_unreachable_api_is_reported(
    double: KubernetesDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(double.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    (tmp_path / "away").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "away"))
    with pytest.raises(EngineFailed, match="refused"):
        KubernetesEngine().poll({"id": "x", "namespace": "trainings", "context": "here"})
    with pytest.raises(EngineFailed, match="no context 'there'"):
        KubernetesEngine().poll({"id": "x", "namespace": "trainings", "context": "there"})
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(EngineFailed, match="find the cluster"):
        KubernetesEngine().poll({"id": "x"})


def test_in_a_pod_the_cluster_is_found_by_its_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, tls = certified(tmp_path)
    double = KubernetesDouble(tmp_path, {}, tls)
    try:
        (tmp_path / "token").write_text(SECRET)
        (tmp_path / "namespace").write_text("trainings\n")
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
        monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", tmp_path)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(double.port))
        monkeypatch.delenv("KUBECONFIG", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        double.schedulable = False
        handle = KubernetesEngine().launch(
            spec(claim="jobs"), open_storage(tmp_path / "jobs" / "My.Job_1")
        )
        assert handle["namespace"] == "trainings"
        found = KubernetesEngine().poll(handle)
        assert found is not None
        assert found.queued
        assert set(double.asked_by) == {f"bearer {SECRET}"}
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
        with pytest.raises(EngineFailed, match="find the cluster"):
            KubernetesEngine().poll(handle)
    finally:
        double.close()


def certified(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for 127.0.0.1; return its file, and a server's context that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "double")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    path, private = folder / "ca.crt", folder / "key.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    return path, context


def spec(**options: Any) -> JobSpec:
    options = {"image": "registry/me:1", **options}
    return JobSpec(job="My.Job_1", script="a.py", engine="kubernetes", engine_options=options)


@pytest.mark.parametrize(
    "options",
    [
        {"claim": "jobs"},
        {
            "claim": "jobs",
            "namespace": "n",
            "service-account": "trainer",
            "cpu": "500m",
            "memory": "4Gi",
            "gpus": "2",
            "secret": "bucket-keys",
            "user": "1000",
        },
    ],
)
def test_manifests_are_valid(options: dict[str, str], tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "jobs" / "My.Job_1")
    printed = KubernetesEngine().plan(spec(**options), storage)
    found = yaml.safe_load(printed)
    assert found == manifest(spec(**options), storage)
    kubernetes_validate.validate(found, VERSION, strict=True)
    pod = found["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounts == {"scratch": "/scratch", "tmp": "/tmp", "root": str(tmp_path / "jobs")}
    assert container["command"][-1] == storage.root
    if "gpus" in options:
        disk = {"ephemeral-storage": "10Gi"}
        limits = {"memory": "4Gi", "nvidia.com/gpu": "2", **disk}
        assert container["resources"]["limits"] == limits
        assert container["resources"]["requests"] == {"cpu": "500m", "memory": "4Gi", **disk}
        assert pod["securityContext"]["runAsUser"] == 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "a pod cannot see"),
        ({"claim": "jobs", "image": None}, "it is missing. Use --engine-option image="),
        ({"claim": "jobs", "gpus": "many"}, "is not a number"),
        ({"claim": "jobs", "user": "0"}, "must not run as root"),
        ({"claim": "jobs", "partition": "low"}, "no such option. Use image"),
    ],
)
def test_invalid_options_of_a_manifest_are_named(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    wanted = spec(**options)
    given = {name: value for name, value in wanted.engine_options.items() if value is not None}
    wanted = JobSpec(job="j", script="a.py", engine="kubernetes", engine_options=given)
    with pytest.raises(SpecInvalid, match=said):
        manifest(wanted, open_storage(tmp_path))


def test_a_bucket_needs_no_volume() -> None:
    storage = open_storage("memory://bucket/j")
    found = manifest(spec(), storage)
    kubernetes_validate.validate(found, VERSION, strict=True)
    volumes = found["spec"]["template"]["spec"]["volumes"]
    assert [one["name"] for one in volumes if "emptyDir" not in one] == []
    with pytest.raises(SpecInvalid, match="needs no volume"):
        manifest(spec(claim="jobs"), storage)

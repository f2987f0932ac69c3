"""The Kubernetes engine: a Job runs the supervisor in a pod and replaces preempted pods.

The official client finds the cluster like kubectl: by KUBECONFIG, else ~/.kube/config, else, in a
pod, by its service account. `kubernetes_job` makes the manifest of the Job.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from outlast.engines.base import Handle, QueueState
from outlast.engines.kubernetes_job import URL, manifest
from outlast.errors import EngineFailed, ExtraMissing
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.storage.base import Storage

T = TypeVar("T")

TIMEOUT: Final = 30.0  # seconds for one request
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # in a pod
_POD: Final = "KUBERNETES_SERVICE_HOST"
_GONE: Final = 404
# RFC 1123, as Kubernetes asks for it (kubernetes.io/docs, "Object Names and IDs")
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class KubernetesEngine:
    """Creates, reads and deletes batch/v1 Jobs through the API."""

    def plan(self, spec: JobSpec, storage: Storage) -> str:
        try:
            import yaml
        except ImportError as error:
            raise _extra_missing() from error
        found: str = yaml.safe_dump(manifest(spec, storage), sort_keys=False, allow_unicode=True)
        return found

    def launch(self, spec: JobSpec, storage: Storage) -> Handle:
        wanted = manifest(spec, storage)
        cluster = _Cluster(spec.engine_options.get("context"))
        namespace = wanted["metadata"].get("namespace") or cluster.namespace
        made = cluster.ask("create the Job", lambda: cluster.jobs.create_namespaced_job(
            namespace, wanted, _request_timeout=TIMEOUT
        ))  # fmt: skip
        return {"id": made.metadata.name, "namespace": namespace, "context": cluster.context}

    def poll(self, handle: Handle) -> QueueState | None:
        name, namespace, cluster = _found(handle)
        job = cluster.ask("look at the Job", lambda: cluster.jobs.read_namespaced_job(
            name, namespace, _request_timeout=TIMEOUT
        ))  # fmt: skip
        if job is None or any(
            one.type in ("Complete", "Failed") and one.status == "True"
            for one in job.status.conditions or []
        ):
            return None
        pods = cluster.ask("look at its pods", lambda: cluster.pods.list_namespaced_pod(
            namespace,
            label_selector=f"batch.kubernetes.io/job-name={name}",
            _request_timeout=TIMEOUT,
        ))  # fmt: skip
        for pod in [] if pods is None else pods.items:
            if pod.status.phase == "Running":
                return QueueState("running", f"pod {pod.metadata.name} on {pod.spec.node_name}")
        if job.metadata.deletion_timestamp is not None:
            return QueueState("running", "being deleted")
        return QueueState("queued", _waiting_for([] if pods is None else pods.items))

    def stop(self, handle: Handle, storage: Storage) -> None:
        name, namespace, cluster = _found(handle)
        job = cluster.ask("look at the Job", lambda: cluster.jobs.read_namespaced_job(
            name, namespace, _request_timeout=TIMEOUT
        ))  # fmt: skip
        if job is None:
            return
        if (job.metadata.annotations or {}).get(URL) != storage.root:
            raise _failed(
                "delete the Job",
                f"Job {name} in namespace {namespace} of context {cluster.context} does not belong "
                f"to {storage.root}, so it was left alone. The journal of that job names it: "
                "somebody may have changed the journal",
            )
        cluster.ask("delete the Job", lambda: cluster.jobs.delete_namespaced_job(
            name,
            namespace,
            propagation_policy="Foreground",  # gone when its pods are
            body={"preconditions": {"uid": job.metadata.uid}},  # the Job that was looked at
            _request_timeout=TIMEOUT,
        ))  # fmt: skip

    def requeue(self, handle: Handle, storage: Storage) -> Handle | None:
        # The rules of the Job start another pod, unless the Job is being deleted. The pod has no
        # permission to ask the API.
        if "namespace" not in handle:
            return handle
        found = self.poll(handle)
        return None if found is None or found.why == "being deleted" else handle


class _Cluster:
    """The API of one cluster."""

    def __init__(self, context: str | None) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise _extra_missing() from error
        self._failed: type[Exception] = client.ApiException
        # The client reads the variable only once, at its import.
        given = os.environ.get("KUBECONFIG")
        file = given or str(Path(config.KUBE_CONFIG_DEFAULT_LOCATION).expanduser())
        in_pod = bool(os.environ.get(_POD)) and not given and not Path(file).exists()
        settings = client.Configuration()
        settings.retries = False  # a Job must not be created twice
        self.context: str | None = None
        try:
            if in_pod and context is None:
                config.load_incluster_config(settings)
                self.namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
            else:
                contexts, current = config.list_kube_config_contexts(file)
                self.context = context or current["name"]
                chosen = next(one for one in contexts if one["name"] == self.context)
                config.load_kube_config(file, self.context, settings, persist_config=False)
                self.namespace = chosen["context"].get("namespace") or "default"
        except StopIteration:
            raise _failed(
                "find the cluster", f"the kubeconfig has no context {context!r}"
            ) from None
        except (config.ConfigException, OSError) as error:
            raise _failed("find the cluster", str(error)) from error
        api = client.ApiClient(settings)
        self.jobs = client.BatchV1Api(api)
        self.pods = client.CoreV1Api(api)

    def ask(self, action: str, request: Callable[[], Any]) -> Any:
        """Return the answer to a request; None when the object does not exist."""
        from urllib3.exceptions import HTTPError

        try:
            return request()
        except self._failed as error:
            if getattr(error, "status", None) == _GONE and not action.startswith("create"):
                return None
            raise _failed(action, _api_message(error)) from error
        except (HTTPError, OSError) as error:
            raise _failed(action, str(error)) from error


def _found(handle: Handle) -> tuple[str, str, _Cluster]:
    """Return name and namespace of a Job, and its cluster.

    Raises:
        FormatError: they are not names. A file holds them, and they become part of a URL.
    """
    for field in ("id", "namespace"):
        value = handle.get(field)
        if (field == "id" or value is not None) and not (
            isinstance(value, str) and _NAME.fullmatch(value)
        ):
            raise FormatError(
                path="events", reason=f"{field} {value!r} is not a name of Kubernetes"
            )
    cluster = _Cluster(handle.get("context"))
    return handle["id"], handle.get("namespace") or cluster.namespace, cluster


def _extra_missing() -> ExtraMissing:
    return ExtraMissing(feature="--engine kubernetes", package="kubernetes", extra="kubernetes")


def _failed(action: str, reason: str) -> EngineFailed:
    return EngineFailed(engine="kubernetes", action=action, reason=reason)


def _api_message(error: Any) -> str:
    """Return the error message of the API."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


def _waiting_for(pods: list[Any]) -> str:
    for pod in pods:
        for one in pod.status.conditions or []:
            if one.status == "False" and one.message:
                return f"{pod.status.phase}: {one.message}"
        return str(pod.status.phase)
    return "no pod yet"

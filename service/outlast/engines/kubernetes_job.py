"""The manifest of the Kubernetes Job that runs a supervisor. No cluster is contacted."""

from __future__ import annotations

import re
from typing import Any, Final

from outlast import exit_codes
from outlast.errors import SpecInvalid
from outlast.job import cluster_slot
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.key_file import KEY_FILE
from outlast_checkpoints.store import spool

_SECRET: Final = (
    "Secret whose entries become environment variables, for example the keys of a bucket"
)
OPTIONS: Final = {
    "image": "container image with Python, Outlast and the script",
    "namespace": "namespace of the Job; default: that of the kubeconfig's context",
    "context": "context of the kubeconfig; default: the current one",
    "service-account": "service account of the pod",
    "cpu": "CPUs, for example 4 or 500m",
    "memory": "memory, for example 16Gi",
    "gpus": "number of NVIDIA GPUs",
    "disk": "space for temporary files and the spool, in Mi, Gi or Ti; default: 10Gi",
    "claim": "PersistentVolumeClaim that holds the root; mounted at the path of the root",
    "secret": _SECRET,
    "key-secret": "Secret with the key file as entry `key`, mounted as a file; see `outlast key`",
    "user": "numeric user id of the pod; default: 10001",
}
CONTAINER: Final = "training"
_KEYS: Final = "/etc/outlast/keys"  # where the Secret of the key file is mounted
_KEY_ITEM: Final = {"key": "key", "path": "key"}
URL: Final = "outlast/url"  # annotation with the URL of the job's storage
USER: Final = 10001
SCRATCH: Final = "/scratch"  # the home of the pod: its root file system is read-only
_TMP: Final = "/tmp"  # nosec B108  # no other pod has it
_DISK: Final = "10Gi"
_EXIT_MARGIN: Final = 30  # seconds beyond --grace for the supervisor's own end
# Another pod would end the same way; the supervisor has already done all retries.
_FINAL: Final = (
    exit_codes.FAILED,
    exit_codes.USAGE,
    exit_codes.REJECTED,
    exit_codes.JOB_UNKNOWN,
    exit_codes.DIVERGED,
)
# State saved, or the previous pod has not left yet.
_RETRIED: Final = (exit_codes.JOB_BUSY, exit_codes.RESUMABLE)


def manifest(spec: JobSpec, storage: Storage) -> dict[str, Any]:
    """Return the batch/v1 Job.

    Raises:
        SpecInvalid: an option is unknown, missing or invalid.
    """
    options = _options(spec, storage)
    labels = {"app.kubernetes.io/name": "outlast", "app.kubernetes.io/instance": _label(spec.job)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": f"{_label(spec.job)[:50].rstrip('-')}-",
            **({"namespace": options["namespace"]} if "namespace" in options else {}),
            "labels": labels,
            "annotations": {URL: storage.root, "outlast/runs": spec.runs},
        },
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": spec.max_retries,
            "podReplacementPolicy": "Failed",  # two simultaneous pods would wait for each other
            "podFailurePolicy": {"rules": _rules()},
            "template": {
                "metadata": {"labels": dict(labels)},
                "spec": _pod(spec, storage, options),
            },
        },
    }


def _rules() -> list[dict[str, Any]]:
    """Return which exits count: preemption is ignored, a final error fails the Job."""

    def codes(action: str, values: tuple[int, ...]) -> dict[str, Any]:
        on = {"containerName": CONTAINER, "operator": "In", "values": sorted(values)}
        return {"action": action, "onExitCodes": on}

    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    return [
        codes("Ignore", _RETRIED),
        {"action": "Ignore", "onPodConditions": disrupted},
        codes("FailJob", _FINAL),
    ]


def _pod(spec: JobSpec, storage: Storage, options: dict[str, str]) -> dict[str, Any]:
    user, disk = int(options.get("user", USER)), options.get("disk", _DISK)
    named = {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": options["image"],
        "command": ["python", "-P", "-m", "outlast.engines.cluster_main", storage.root],
        "env": [
            {"name": "OUTLAST_JOB_NAME", "valueFrom": {"fieldRef": named}},
            {"name": cluster_slot.VARIABLE, "value": "kubernetes:$(OUTLAST_JOB_NAME)"},
            {"name": "HOME", "value": SCRATCH},
            {"name": spool.FOLDER, "value": f"{SCRATCH}/spool"},
            {"name": spool.LIMIT, "value": _half(disk)},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if spec.cwd:
        container["workingDir"] = spec.cwd
    if "secret" in options:
        container["envFrom"] = [{"secretRef": {"name": options["secret"]}}]
    container["resources"] = _resources(options, disk)
    container["volumeMounts"] = [
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "tmp", "mountPath": _TMP},
    ]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": int(spec.grace) + _EXIT_MARGIN,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }
    if "service-account" in options:
        pod["serviceAccountName"] = options["service-account"]
    if "key-secret" in options:
        container["env"].append({"name": KEY_FILE, "value": f"{_KEYS}/key"})
        mount = {"name": "key", "mountPath": _KEYS, "readOnly": True}
        container["volumeMounts"].append(mount)
        # Root owns the file, and fsGroup lets the pod's user read it.
        secret = {"secretName": options["key-secret"], "defaultMode": 0o400}
        pod["volumes"].append({"name": "key", "secret": secret | {"items": [_KEY_ITEM]}})
    if "claim" in options:
        place = storage.local_path("")
        assert place is not None  # checked by _options
        container["volumeMounts"].append({"name": "root", "mountPath": str(place.parent)})
        claim = {"claimName": options["claim"]}
        pod["volumes"].append({"name": "root", "persistentVolumeClaim": claim})
    return pod


def _resources(options: dict[str, str], disk: str) -> dict[str, Any]:
    wanted: dict[str, str] = {name: options[name] for name in ("cpu", "memory") if name in options}
    limits = {"memory": options["memory"]} if "memory" in options else {}
    wanted["ephemeral-storage"] = limits["ephemeral-storage"] = disk
    if "gpus" in options:
        limits["nvidia.com/gpu"] = options["gpus"]
    return {"requests": wanted, "limits": limits}


def _half(disk: str) -> str:
    """Return half of a size, for checkpoints that wait; the rest is for what else is written."""
    size = int(disk[:-2]) << {"Mi": 20, "Gi": 30, "Ti": 40}[disk[-2:]]
    return f"{size >> 21}M"


def _options(spec: JobSpec, storage: Storage) -> dict[str, str]:
    options = {name: str(value) for name, value in spec.engine_options.items()}
    for name in options:
        if name not in OPTIONS:
            raise _invalid(name, f"there is no such option. Use {', '.join(OPTIONS)}")
    if "image" not in options:
        raise _invalid("image", "it is missing. Use --engine-option image=registry/name:tag")
    for name in ("gpus", "user"):
        if not options.get(name, "1").isdecimal():
            raise _invalid(name, f"{options[name]!r} is not a number")
    if not re.fullmatch(r"[1-9]\d*[MGT]i", options.get("disk", _DISK)):
        raise _invalid("disk", f"{options['disk']!r} is not a size. Use for example 20Gi")
    if options.get("user") == "0":
        raise _invalid("user", "trainings must not run as root. Use another user id")
    folder = storage.local_path("") is not None
    if folder and "claim" not in options:
        raise _invalid(
            "claim",
            f"{storage.root} is a folder, which a pod cannot see. Name the claim of its volume, "
            "or use a bucket as --root",
        )
    if not folder and "claim" in options:
        raise _invalid("claim", f"{storage.root} needs no volume. Omit this option")
    return options


def _invalid(name: str, problem: str) -> SpecInvalid:
    return SpecInvalid(field=f"engine_options.{name}", problem=problem)


def _label(job: str) -> str:
    """Return the name of the job as a valid label value (RFC 1123)."""
    return re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")[:63].strip("-") or "job"

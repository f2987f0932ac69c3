"""The part of Kubernetes' API that Jobs need, and a kubelet whose pods are local processes.

It keeps to what the API's documentation says of Jobs: rules of podFailurePolicy in order, a failed
pod replaced after it has ended, deletion that gives pods SIGTERM and their grace time.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

JOBS = "/apis/batch/v1/namespaces/"
NODE = "node-1"


class Pod:
    """A process in place of a pod. `ended` is its exit code, as a container reports it."""

    def __init__(self, job: dict[str, Any], number: int, environment: dict[str, str]) -> None:
        name = job["metadata"]["name"]
        self.name = f"{name}-{number}"
        template = job["spec"]["template"]["spec"]
        container = template["containers"][0]
        self.grace = template["terminationGracePeriodSeconds"]
        given = {"OUTLAST_JOB_NAME": name}
        volumes = {one["name"] for one in template["volumes"] if "emptyDir" in one}
        empty = tuple(m["mountPath"] for m in container["volumeMounts"] if m["name"] in volumes)
        for one in container["env"]:
            if not one.get("value", empty[0]).startswith(empty):  # it has none of these folders
                given[one["name"]] = one["value"].replace("$(OUTLAST_JOB_NAME)", name)
        self._process = subprocess.Popen(
            container["command"],
            cwd=container.get("workingDir"),
            env={**os.environ, **environment, **given},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.disrupted = False
        self._kill_at: float | None = None

    @property
    def ended(self) -> int | None:
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def terminate(self) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self.grace
            self._process.terminate()

    def look(self) -> None:
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        if self.ended is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class KubernetesDouble:
    """The API on a free loopback port, with one namespace and one node.

    tls: what it shows who it is by; None: it speaks HTTP. asked_by: the Authorization of each
    request.
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], tls: ssl.SSLContext | None = None
    ) -> None:
        self.asked_by: list[str | None] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, list[Pod]] = {}
        self.schedulable = True
        self._environment = environment
        self._lock = threading.RLock()
        self._done = threading.Event()
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                double._answer(self, "GET")

            def do_POST(self) -> None:
                double._answer(self, "POST")

            def do_DELETE(self) -> None:
                double._answer(self, "DELETE")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.kubeconfig = folder / "kubeconfig"
        cluster = {"server": f"http://127.0.0.1:{self.port}"}
        context = {"cluster": "double", "user": "me", "namespace": "trainings"}
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [{"name": "double", "cluster": cluster}],
                    "contexts": [{"name": "here", "context": context}],
                    "users": [{"name": "me", "user": {"token": "a-secret-token"}}],
                }
            )
        )
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=self._control, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def preempt(self, job: str) -> None:
        """Evict a job's pod, as a pod of higher priority or the loss of the node would."""
        with self._lock:
            pod = self.pods[job][-1]
            pod.disrupted = True
            pod.terminate()

    def close(self) -> None:
        self._done.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()
        for pods in self.pods.values():
            for pod in pods:
                pod.close()

    # --- the controller and the kubelet ------------------------------------------------------

    def _control(self) -> None:
        while not self._done.wait(0.05):
            with self._lock:
                for name in list(self.jobs):
                    self._see_to(name, self.jobs[name])

    def _see_to(self, name: str, job: dict[str, Any]) -> None:
        pods = self.pods[name]
        for pod in pods:
            pod.look()
        running = bool(pods) and pods[-1].ended is None
        if "deletionTimestamp" in job["metadata"]:
            if running:
                pods[-1].terminate()
            else:
                del self.jobs[name]
            return
        if running or job["status"].get("conditions"):
            return
        if pods and self._settled(job, pods[-1]):
            return
        if self.schedulable:
            pods.append(Pod(job, len(pods) + 1, self._environment))

    def _settled(self, job: dict[str, Any], pod: Pod) -> bool:
        """Record what an ended pod means for its job; return whether the job has ended."""
        if pod.ended == 0:
            job["status"]["conditions"] = [{"type": "Complete", "status": "True"}]
            return True
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes", {}).get("values", [])
            if pod.ended in codes or ("onPodConditions" in rule and pod.disrupted):
                if rule["action"] == "FailJob":
                    job["status"]["conditions"] = [{"type": "Failed", "status": "True"}]
                    return True
                return False
        job["status"]["failed"] = job["status"].get("failed", 0) + 1
        if job["status"]["failed"] > job["spec"]["backoffLimit"]:
            job["status"]["conditions"] = [{"type": "Failed", "status": "True"}]
            return True
        return False

    # --- the API -----------------------------------------------------------------------------

    def _answer(self, request: BaseHTTPRequestHandler, method: str) -> None:
        self.asked_by.append(request.headers.get("Authorization"))
        size = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(size)) if size else None
        with self._lock:
            status, found = self._route(method, urlparse(request.path), body)
        data = json.dumps(found).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _route(self, method: str, url: Any, body: Any) -> tuple[int, Any]:
        parts = url.path.strip("/").split("/")
        if parts[:4] == ["api", "v1", "namespaces", "trainings"] and parts[4:] == ["pods"]:
            selector = parse_qs(url.query)["labelSelector"][0]
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": self._pods(selector)}
        if not url.path.startswith(JOBS) or parts[4] != "trainings":
            return 403, _status(403, "Forbidden", f"namespace {parts[4]!r} is not yours")
        if method == "POST":
            return self._create(body)
        job = self.jobs.get(parts[-1])
        if job is None:
            return 404, _status(404, "NotFound", f'jobs.batch "{parts[-1]}" not found')
        if method == "DELETE":
            uid = ((body or {}).get("preconditions") or {}).get("uid", job["metadata"]["uid"])
            if uid != job["metadata"]["uid"]:
                return 409, _status(409, "Conflict", "the UID in the precondition is another")
            job["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
        return 200, job

    def _create(self, job: dict[str, Any]) -> tuple[int, Any]:
        if job["spec"]["template"]["spec"]["restartPolicy"] != "Never":
            return 422, _status(422, "Invalid", "podFailurePolicy: only with restartPolicy Never")
        name = f"{job['metadata']['generateName']}{len(self.pods):05d}"
        job["metadata"]["name"] = name
        job["metadata"]["uid"] = f"uid-of-{name}"
        job["status"] = {}
        self.jobs[name] = job
        self.pods[name] = []
        return 201, job

    def _pods(self, selector: str) -> list[dict[str, Any]]:
        found = []
        for pod in self.pods.get(selector.partition("=")[2], []):
            phase = "Running" if pod.ended is None else "Succeeded" if pod.ended == 0 else "Failed"
            containers = [{"name": "training", "image": "x"}]
            found.append(
                {
                    "metadata": {"name": pod.name},
                    "spec": {"nodeName": NODE, "containers": containers},
                    "status": {"phase": phase},
                }
            )
        return found


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }

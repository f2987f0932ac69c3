"""`JobSpec`: what a job runs and under which policies; written once, at submission."""

from __future__ import annotations

import base64
import importlib.metadata
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final, Literal

import msgspec

from outlast.errors import SpecInvalid
from outlast.job import rollback
from outlast.job.audit_schedule import AuditEvery
from outlast.job.save_schedule import SaveEvery
from outlast_checkpoints.errors import FormatTooNew, OutlastError
from outlast_checkpoints.format import typed_json
from outlast_checkpoints.format.layout import SPEC, check_name
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.sealed_json import UNREADABLE
from outlast_checkpoints.redaction import HIDDEN, carries_credentials, names_secret, redact

FORMAT: Final = 1

# What an attempt sets for its script. No other job inherits them.
JOB: Final = "OUTLAST_JOB"
ATTEMPT: Final = "OUTLAST_ATTEMPT"
RUN_ID: Final = "OUTLAST_RUN_ID"
_OF_THE_PLACE = ("OUTLAST_SPOOL", "OUTLAST_METADATA_URL", "OUTLAST_RANK", "OUTLAST_WORLD_SIZE",
                 "OUTLAST_AUDIT", "OUTLAST_KEY_FILE")  # fmt: skip
_PATH = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?$", re.DOTALL)


def version() -> str:
    """Return the version of Outlast; "unknown" when it is not installed."""
    try:
        return importlib.metadata.version("outlast")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job runs, and under which policies.

    Raises:
        SpecInvalid: a value is invalid; the error names the field.
    """

    job: str
    """Name of the job."""
    format: int = FORMAT
    """Version of the format of spec.json."""
    script: str | None = None
    """Script to run, relative to `cwd`; None for a module or a job started by hand."""
    module: str | None = None
    """Module to run as `python -m` would; excludes `script`."""
    args: list[str] = []
    """Arguments of the script."""
    cwd: str = ""
    """Working directory of the attempts; "" for the supervisor's."""
    python: str | None = None
    """Python interpreter of the attempts; None for the supervisor's."""
    env: dict[str, str] = {}
    """Environment variables set for the attempts; never secrets."""
    adopt: Literal["no", "yes", "strict"] = "no"
    """Whether every `keras.Model.fit` of the script becomes Outlast's; "strict" refuses others."""
    save_every: str = "auto"
    """When to save, as `SaveEvery.parse` reads it."""
    keep: str = "last:3"
    """Which checkpoints to keep, as `Keep.parse` reads it."""
    audit_every: str = "never"
    """How often to audit the training while it runs, as `AuditEvery.parse` reads it."""
    seed: int = msgspec.field(default_factory=lambda: secrets.randbits(63))
    """Seed of all random generators, 0 to 2**63 - 1; default: random."""
    deterministic: bool = True
    """Whether to enable TensorFlow's op determinism."""
    replicas: int | None = None
    """Copies of the model in data-parallel training, which decide the numbers; None for what the
    script's own strategy has, else the number of GPUs, else 1."""
    intra_op_threads: int | None = None
    """Threads that TensorFlow may use for one op; None for the CPUs of the first attempt."""
    cpu_isa: Literal["native", "avx2", "avx512"] = "native"
    """Cap of the CPU's instruction set, so that a job can move between kinds of CPUs."""
    max_retries: int = 3
    """Consecutive attempts without a new checkpoint that are retried."""
    backoff: float = 1.0
    """Seconds before the first retry."""
    backoff_max: float = 60.0
    """Longest wait before a retry, in seconds."""
    max_duration: float = 0.0
    """Seconds that the attempts of the job may take together before it is stopped; 0: any."""
    stall_timeout: float = 1800.0
    """Seconds without progress before an attempt is killed; 0 for never."""
    heartbeat_every: float = 2.0
    """Seconds between two heartbeats."""
    lost_after: float = 30.0
    """Seconds of an unchanged heartbeat before an attempt elsewhere counts as lost."""
    grace: float = 30.0
    """Seconds between asking an attempt to leave and killing it."""
    grace_is_limit: bool = False
    """Whether `grace` caps the time that a cloud's preemption notice allows."""
    preemption: Literal["auto", "gce", "aws", "azure", "none"] = "auto"
    """Cloud whose preemption notices to watch for; "auto" detects it."""
    warm_spare: bool = False
    """Whether to keep a process ready that has imported what the script imports."""
    on_nan: Literal["ignore", "stop", "rollback"] = "ignore"
    """What the training does at a loss that is NaN or infinite."""
    rollback: str = rollback.DEFAULT
    """What a rollback leaves out, as `Policy.parse` reads it."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """What the training does after a failed save."""
    engine: str = "local"
    """Engine that runs the supervisor: "local", "slurm", "kubernetes" or a plugin's name."""
    engine_options: dict[str, Any] = {}
    """Options of the engine, by name."""
    backend: str = "local"
    """Backend that launches the attempts: "local" or a plugin's name."""
    tags: dict[str, str] = {}
    """Tags of the job, by name; for people and for `outlast list --tag`."""
    created: float = 0.0
    """When the job was created, in unix seconds."""
    outlast: str = msgspec.field(default_factory=version)
    """Version of Outlast that created the job."""

    def __post_init__(self) -> None:
        _parses("job", lambda: check_name("job", self.job))
        _parses("save_every", lambda: SaveEvery.parse(self.save_every))
        _parses("keep", lambda: Keep.parse(self.keep))
        _parses("rollback", lambda: rollback.Policy.parse(self.rollback))
        _parses("audit_every", lambda: AuditEvery.parse(self.audit_every))
        if self.script is not None and self.module is not None:
            raise SpecInvalid(
                field="script", problem="a job must not have both a script and a module"
            )
        if self.script == "" or self.module == "":
            raise SpecInvalid(field="script", problem="it must not be empty")
        for field, low in _LOWEST.items():
            value = getattr(self, field)
            if not low <= value < _ENDLESS:
                raise SpecInvalid(
                    field=field, problem=f"{value} must be a number of at least {low}"
                )
        for field in ("intra_op_threads", "replicas"):
            count = getattr(self, field)
            if count is not None and count < 1:
                raise SpecInvalid(field=field, problem=f"{count} must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise SpecInvalid(field="seed", problem=f"{self.seed} must be between 0 and 2**63 - 1")
        if self.lost_after < 2 * self.heartbeat_every:
            raise SpecInvalid(
                field="lost_after",
                problem=f"{self.lost_after} s must be at least two heartbeats "
                f"({self.heartbeat_every} s each); otherwise living attempts count as lost",
            )
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SpecInvalid(
                    field=field,
                    problem=f"{getattr(self, field)!r} must be one of {', '.join(choices)}",
                )
        for name, value in self.env.items():
            _check_variable(name, value)
        for name, value in self.tags.items():
            _check_tag(name, value)

    @property
    def retention(self) -> Keep:
        """Which checkpoints to keep, with those that a rollback may need."""
        keep = Keep.parse(self.keep)
        if self.on_nan != "rollback":
            return keep
        return msgspec.structs.replace(keep, back=rollback.Policy.parse(self.rollback).back)

    @property
    def runs(self) -> str:
        """What the job runs, for people: "train.py --lr 1e-3", "-m package.train".

        Values of options that are named like secrets are hidden.
        """
        what = f"-m {self.module}" if self.module is not None else (self.script or "(by hand)")
        return redact(" ".join([what, *_shown(self.args)]))


_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_LONGEST_TAG: Final = 255
_ENDLESS: Final = 1e300  # a larger value is infinite, or too large for a float
_LOWEST: Final[dict[str, float]] = {
    "max_retries": 0,
    "backoff": 0,
    "backoff_max": 0,
    "max_duration": 0,
    "stall_timeout": 0,
    "heartbeat_every": 0.01,
    "lost_after": 0,
    "grace": 0,
    "created": 0,
}
_CHOICES: Final = {
    "adopt": ("no", "yes", "strict"),
    "cpu_isa": ("native", "avx2", "avx512"),
    "on_nan": ("ignore", "stop", "rollback"),
    "on_save_error": ("continue", "stop"),
    "preemption": ("auto", "gce", "aws", "azure", "none"),
}


def _shown(args: Sequence[str]) -> list[str]:
    """Return the arguments, with the values of options that are named like secrets hidden."""
    shown: list[str] = []
    hide = False
    for arg in args:
        name, separator, _ = arg.partition("=")
        if hide and not arg.startswith("--"):
            arg, hide = HIDDEN, False
        elif arg.startswith("-") and (names_secret(name) or name == "-p"):
            arg, hide = (f"{name}={HIDDEN}", False) if separator else (arg, True)
        shown.append(arg)
    return shown


def _parses(field: str, parse: Any) -> None:
    try:
        parse()
    except OutlastError as error:
        raise SpecInvalid(field=field, problem=str(error)) from error


def _check_variable(name: str, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise SpecInvalid(field="env", problem=f"{name!r} is not a valid variable name")
    if "\0" in value:
        raise SpecInvalid(field="env", problem=f"the value of {name} contains a zero byte")
    if names_secret(name):
        raise SpecInvalid(
            field="env",
            problem=f"{name} looks like a secret, and {SPEC} would store it readable. Set it in "
            "the environment of the supervisor instead; attempts inherit it",
        )
    if carries_credentials(value):
        raise SpecInvalid(
            field="env",
            problem=f"the value of {name} contains credentials, and {SPEC} would store them "
            "readable. Use the variables or files of the storage's client instead",
        )


def _check_tag(name: str, value: str) -> None:
    if not _TAG.fullmatch(name):
        problem = f"{name!r} is no name of a tag: use up to 63 letters, digits and . _ - /"
        raise SpecInvalid(field="tags", problem=problem)
    if len(value) > _LONGEST_TAG or not value.isprintable():
        problem = f"the value of {name} must be printable and at most {_LONGEST_TAG} characters"
        raise SpecInvalid(field="tags", problem=problem)


def spec_env(given: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that the spec stores: OUTLAST_* and the `given` ones.

    Variables of OUTLAST_* that look like secrets, or contain credentials, are omitted; attempts
    inherit them. OUTLAST_SPOOL*, OUTLAST_METADATA_URL and the rank are omitted too, because they
    belong to one machine or process.

    Raises:
        SpecInvalid: a given variable looks like a secret, or is invalid.
    """
    for name, value in given.items():
        _check_variable(name, value)
    own = {
        name: value
        for name, value in environ.items()
        if name.startswith("OUTLAST_")
        and not name.startswith(_OF_THE_PLACE)
        and name not in (JOB, ATTEMPT, RUN_ID)
        and not names_secret(name)
        and not carries_credentials(value)
    }
    return {**own, **given}


def new_job_id(script: str | None) -> str:
    """Return a new name of a job: "<stem of the script>-<8 characters of base32>"."""
    stem = PurePath(script).stem if script else ""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "job"
    return f"{stem}-{base64.b32encode(secrets.token_bytes(5)).decode().lower()}"


def encode(spec: JobSpec) -> bytes:
    """Return a spec as the bytes of spec.json."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n"


def decode(data: bytes, path: str = SPEC) -> JobSpec:
    """Return the spec that the bytes of spec.json hold.

    Raises:
        SpecInvalid: the document or one of its fields is invalid.
        FormatTooNew: a newer Outlast wrote it.
    """
    try:
        found = typed_json.decode(data, _Format).format
        if found > FORMAT:
            raise FormatTooNew(path=path, found=found, known=FORMAT)
        return typed_json.decode(data, JobSpec)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, SpecInvalid):
            raise error.__cause__ from None
        match = _PATH.match(str(error))
        assert match is not None  # the pattern matches any text
        raise SpecInvalid(field=match["field"] or path, problem=match["problem"]) from None
    except UNREADABLE as error:
        raise SpecInvalid(field=path, problem=f"it is not valid JSON: {error}") from None


class _Format(msgspec.Struct):
    format: int = FORMAT


def script_path(spec: JobSpec) -> Path | None:
    """Return the path of the script; None for a module."""
    return None if spec.script is None else Path(spec.cwd or ".") / spec.script


def interpreter(spec: JobSpec) -> str:
    """Return the Python interpreter of the attempts."""
    return spec.python or sys.executable

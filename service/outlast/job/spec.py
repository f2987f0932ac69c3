"""`JobSpec`: what a job is, written once when it is submitted."""

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
from outlast.job.save_schedule import SaveEvery
from outlast_checkpoints.errors import FormatTooNew, OutlastError
from outlast_checkpoints.format.layout import SPEC, check_name
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.sealed_json import UNREADABLE
from outlast_checkpoints.redaction import HIDDEN, carries_credentials, redact

FORMAT: Final = 1

_SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|SECRETS?|PASSW(?:OR)?D|CREDENTIALS?|API_?KEY|KEY(?:_ID)?)(?:_|$)",
    re.IGNORECASE,
)
_OF_THE_PLACE = ("OUTLAST_SPOOL", "OUTLAST_METADATA_URL", "OUTLAST_RANK", "OUTLAST_WORLD_SIZE")
_PATH = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?$", re.DOTALL)


def version() -> str:
    """Return Outlast's own version, "unknown" when it runs without being installed."""
    try:
        return importlib.metadata.version("outlast")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job runs and under which policies; every value is checked on the way in.

    job: the job's id. script, module: what to run, one of them (neither: a script started without
    `outlast run`). args, cwd, python: how (python None: the supervisor's own). env: variables
    set for the attempts, OUTLAST_* and those given by name, never secrets. save_every, keep: as
    `cadence.SaveEvery` and `retention.Keep` parse them. seed: of all generators. deterministic:
    TensorFlow's op determinism. max_retries: consecutive attempts without a new checkpoint.
    backoff, backoff_max: first and longest wait before a retry, seconds. stall_timeout: seconds
    without progress before an attempt is killed, 0 for never. heartbeat_every: seconds.
    lost_after: seconds of an unchanged heartbeat. grace: seconds between asking an attempt to
    leave and killing it. grace_is_limit: a cloud's notice that leaves more does not prolong it.
    preemption: whose notices are listened to: "auto", a cloud's name, "none". warm_spare: keep a
    process ready that has imported what the script imports. on_nan, on_save_error: policies of the
    loop. created: unix seconds.

    Raises `SpecInvalid` naming the field.
    """

    job: str
    format: int = FORMAT
    script: str | None = None
    module: str | None = None
    args: list[str] = []
    cwd: str = ""
    python: str | None = None
    env: dict[str, str] = {}
    save_every: str = "auto"
    keep: str = "last:3"
    seed: int = msgspec.field(default_factory=lambda: secrets.randbits(63))
    deterministic: bool = True
    max_retries: int = 3
    backoff: float = 1.0
    backoff_max: float = 60.0
    stall_timeout: float = 1800.0
    heartbeat_every: float = 2.0
    lost_after: float = 30.0
    grace: float = 30.0
    grace_is_limit: bool = False
    preemption: Literal["auto", "gce", "aws", "azure", "none"] = "auto"
    warm_spare: bool = False
    on_nan: Literal["ignore", "stop"] = "ignore"
    on_save_error: Literal["continue", "stop"] = "continue"
    engine: str = "local"
    engine_options: dict[str, Any] = {}
    backend: str = "local"
    created: float = 0.0
    outlast: str = msgspec.field(default_factory=version)

    def __post_init__(self) -> None:
        _parses("job", lambda: check_name("job", self.job))
        _parses("save_every", lambda: SaveEvery.parse(self.save_every))
        _parses("keep", lambda: Keep.parse(self.keep))
        if self.script is not None and self.module is not None:
            raise SpecInvalid(field="script", problem="a job has a script or a module, not both")
        if self.script == "" or self.module == "":
            raise SpecInvalid(field="script", problem="it is empty")
        for field, low in _LOWEST.items():
            value = getattr(self, field)
            if not low <= value < _ENDLESS:
                raise SpecInvalid(field=field, problem=f"{value} is not a number from {low} on")
        if not 0 <= self.seed < 2**63:
            raise SpecInvalid(field="seed", problem=f"{self.seed} is not from 0 to 2**63 - 1")
        if self.lost_after < 2 * self.heartbeat_every:
            raise SpecInvalid(
                field="lost_after",
                problem=f"{self.lost_after} s is less than two heartbeats ({self.heartbeat_every} "
                "s each): living attempts would be given up",
            )
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SpecInvalid(
                    field=field,
                    problem=f"{getattr(self, field)!r} is none of {', '.join(choices)}",
                )
        for name, value in self.env.items():
            _check_variable(name, value)

    @property
    def runs(self) -> str:
        """What the job runs, for people: "train.py --lr 1e-3", "-m package.train".

        The value of an option that is named like a secret is hidden.
        """
        what = f"-m {self.module}" if self.module is not None else (self.script or "(by hand)")
        return redact(" ".join([what, *_shown(self.args)]))


_ENDLESS: Final = 1e300  # what is not less is infinite, or too large for a float
_LOWEST: Final[dict[str, float]] = {
    "max_retries": 0,
    "backoff": 0,
    "backoff_max": 0,
    "stall_timeout": 0,
    "heartbeat_every": 0.01,
    "lost_after": 0,
    "grace": 0,
    "created": 0,
}
_CHOICES: Final = {
    "on_nan": ("ignore", "stop"),
    "on_save_error": ("continue", "stop"),
    "preemption": ("auto", "gce", "aws", "azure", "none"),
}


def _shown(args: Sequence[str]) -> list[str]:
    """Return arguments without the values of options that are named like a secret."""
    shown: list[str] = []
    hide = False
    for arg in args:
        name, separator, _ = arg.partition("=")
        secret = arg.startswith("-") and _SECRET.search(name.lstrip("-").replace("-", "_"))
        if secret and separator:
            arg = f"{name}={HIDDEN}"
        elif hide and not arg.startswith("-"):
            arg = HIDDEN
        hide = bool(secret) and not separator
        shown.append(arg)
    return shown


def _parses(field: str, parse: Any) -> None:
    try:
        parse()
    except OutlastError as error:
        raise SpecInvalid(field=field, problem=str(error)) from error


def _check_variable(name: str, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise SpecInvalid(field="env", problem=f"{name!r} is no name of a variable")
    if "\0" in value:
        raise SpecInvalid(field="env", problem=f"the value of {name} holds a zero byte")
    if _SECRET.search(name):
        raise SpecInvalid(
            field="env",
            problem=f"{name} looks like a secret and would be stored readable in {SPEC}. Set it in "
            "the environment that the supervisor is started in instead: attempts inherit it",
        )
    if carries_credentials(value):
        raise SpecInvalid(
            field="env",
            problem=f"the value of {name} carries credentials and would be stored readable in "
            f"{SPEC}. Give them to the clients by their own variables or files instead",
        )


def spec_env(given: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what the spec stores of the environment: OUTLAST_* and what was `given` by name.

    Of OUTLAST_* those that look like secrets, or carry some, are left out (attempts inherit them),
    and OUTLAST_SPOOL*, OUTLAST_METADATA_URL and the rank, which are each machine's and process'
    own; a secret that was given by name raises `SpecInvalid`.
    """
    for name, value in given.items():
        _check_variable(name, value)
    own = {
        name: value
        for name, value in environ.items()
        if name.startswith("OUTLAST_")
        and not name.startswith(_OF_THE_PLACE)
        and not _SECRET.search(name)
        and not carries_credentials(value)
    }
    return {**own, **given}


def new_job_id(script: str | None) -> str:
    """Return a fresh id "<script's stem>-<8 of base32>"."""
    stem = PurePath(script).stem if script else ""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "job"
    return f"{stem}-{base64.b32encode(secrets.token_bytes(5)).decode().lower()}"


def encode(spec: JobSpec) -> bytes:
    """Return the bytes of spec.json."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n"


def decode(data: bytes, path: str = SPEC) -> JobSpec:
    """Read spec.json. Raises `SpecInvalid` naming the field, `FormatTooNew`."""
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found > FORMAT:
            raise FormatTooNew(path=path, found=found, known=FORMAT)
        return msgspec.json.decode(data, type=JobSpec)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, SpecInvalid):
            raise error.__cause__ from None
        match = _PATH.match(str(error))
        assert match is not None  # the pattern takes any text
        raise SpecInvalid(field=match["field"] or path, problem=match["problem"]) from None
    except UNREADABLE as error:
        raise SpecInvalid(field=path, problem=f"it is no JSON: {error}") from None


class _Format(msgspec.Struct):
    format: int = FORMAT


def script_path(spec: JobSpec) -> Path | None:
    """Return where the script is, None for a module."""
    return None if spec.script is None else Path(spec.cwd or ".") / spec.script


def interpreter(spec: JobSpec) -> str:
    return spec.python or sys.executable

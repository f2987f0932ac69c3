"""Which failures of a store are worth another try, and how it is tried.

The clients of stores raise errors of their own by the dozen. What they have in common decides: the
status of the answer where there was one, else what kind of failure it was, by the names of its
classes, so that no client need be imported.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final, TypeVar

import tenacity

from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage import retry_budget

T = TypeVar("T")

_FINAL: Final = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_FINAL_NUMBERS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ENOTSUP})
# Too early, too many, in conflict with another request that is under way; all of the server's own.
_PASSING_STATUS: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_PASSING_CODES: Final = frozenset(  # of S3, which may say so with status 400
    {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
)
_PASSING_NAMES: Final = frozenset(
    {
        "ConnectionError",  # Python's own, botocore's and requests'
        "HTTPClientError",  # botocore: timeouts and broken connections
        "IncompleteReadError",
        "MetadataRetrievalError",
        "ResponseParserError",
        "ServiceRequestError",  # azure: it could not be sent
        "ServiceResponseError",  # azure: no whole answer
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "TransportError",  # google.auth
        "ChecksumError",  # gcsfs
    }
)
_FINAL_NAMES: Final = frozenset({"ClientConnectorCertificateError"})


def until_done(call: Callable[..., T], *arguments: Any) -> T:
    """Return what `call` returns; what may pass by itself is tried again, with growing pauses.

    It gives up `patience.seconds()` after the first failure and raises the last one.
    """
    retrying = tenacity.Retrying(
        stop=_GiveUp(retry_budget.seconds()),
        # with jitter over the whole pause: many attempts meet the same busy server
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
        retry=tenacity.retry_if_exception(may_pass),
        reraise=True,
    )
    return retrying(call, *arguments)


class _GiveUp(tenacity.stop.stop_base):
    """Counts from the first failure: a long upload that fails at its end has a second try."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: float | None = None

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        now = retry_state.outcome_timestamp or 0.0
        if self._first is None:
            self._first = now
        return now + retry_state.upcoming_sleep - self._first > self._seconds


def may_pass(error: BaseException) -> bool:
    """Return whether the same call may work a little later."""
    if isinstance(error, StorageError | tenacity.RetryError):
        return False
    if isinstance(error, Exception):
        error = real(error)
    if isinstance(error, _FINAL):
        return False
    status = status_of(error)
    if status is not None:
        return status in _PASSING_STATUS or _code_of(error) in _PASSING_CODES
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # as gcsfs says 403
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _FINAL_NAMES:
        return False
    if names & _PASSING_NAMES or getattr(error, "retryable", False):
        return True
    if isinstance(error, OSError | TimeoutError):
        return getattr(error, "errno", None) not in _FINAL_NUMBERS
    return False


def was_refused(error: BaseException) -> bool | None:
    """Return whether an error says that a file is there already; None when it may mean that."""
    if isinstance(error, FileExistsError) or status_of(error) == 412:
        return True
    # of a server whose client has no word for it
    perhaps = isinstance(error, OSError) and error.errno == errno.EINVAL
    return None if perhaps and status_of(error) is None else False


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error stands for, None when there was no answer."""
    for _ in range(4):  # the clients wrap each other's errors
        if error is None:
            return None
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # azure, aiohttp, gcsfs
            found = next(
                (
                    value
                    for name in ("status_code", "status", "code")
                    if (value := getattr(error, name, None)) is not None
                ),
                None,
            )
        if str(found).isdecimal():
            return int(str(found))
        error = error.__cause__
    return None


def _code_of(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        cause = cause.__cause__
    return ""


def real(error: Exception) -> Exception:
    """Return what went wrong: fsspec's client of the web says "not found" for every failure."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        status = status_of(cause)
        if status not in (None, 404) or (status is None and may_pass(cause)):
            return cause
    return error

"""Retries: which failures of a store may pass, and how calls are repeated.

Every client has dozens of error classes. The HTTP status decides where there is one. Otherwise the
names of the error's classes decide, so that no client has to be imported.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final, TypeVar

import tenacity

from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage import retry_budget

T = TypeVar("T")

_PERMANENT: Final = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_PERMANENT_NUMBERS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ENOTSUP})
# Timeout, conflict with a concurrent request, too early, too many requests, server errors.
_TRANSIENT_STATUS: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CODES: Final = frozenset(  # S3 may send these with status 400
    {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
)
_TRANSIENT_NAMES: Final = frozenset(
    {
        "ConnectionError",  # Python's own, botocore's and requests'
        "HTTPClientError",  # botocore: timeouts and broken connections
        "IncompleteReadError",
        "MetadataRetrievalError",
        "ResponseParserError",
        "ServiceRequestError",  # azure: the request could not be sent
        "ServiceResponseError",  # azure: the answer was incomplete
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "TransportError",  # google.auth
        "ChecksumError",  # gcsfs
    }
)
_PERMANENT_NAMES: Final = frozenset({"ClientConnectorCertificateError"})
_REFUSED_CODES: Final = frozenset(  # S3 may send these with status 400
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "RequestExpired",
        "TokenRefreshRequired",
    }
)
_REFUSED_NAMES: Final = frozenset(
    {
        "ClientAuthenticationError",  # azure
        "CredentialRetrievalError",  # botocore
        "NoCredentialsError",
        "RefreshError",  # google.auth
        "TokenRetrievalError",
    }
)


def until_done(call: Callable[..., T], *arguments: Any) -> T:
    """Return what `call` returns; retry failures that may pass, with growing pauses.

    It gives up `retry_budget.seconds()` after the first failure and raises the last one.
    """
    retrying = tenacity.Retrying(
        stop=_GiveUp(retry_budget.seconds()),
        # full jitter: many attempts may meet the same busy server
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
        retry=tenacity.retry_if_exception(is_transient),
        reraise=True,
    )
    return retrying(call, *arguments)


class _GiveUp(tenacity.stop.stop_base):
    """Stop a time after the first failure, so that a long upload that fails gets a second try."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: float | None = None

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        now = retry_state.outcome_timestamp or 0.0
        if self._first is None:
            self._first = now
        return now + retry_state.upcoming_sleep - self._first > self._seconds


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a little later."""
    if isinstance(error, StorageError | tenacity.RetryError):
        return False
    if isinstance(error, Exception):
        error = real(error)
    if isinstance(error, _PERMANENT):
        return False
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT_STATUS or _code_of(error) in _TRANSIENT_CODES
    if isinstance(error, OSError) and str(error).startswith(
        "Forbidden"
    ):  # gcsfs reports 403 like this
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _PERMANENT_NAMES:
        return False
    if names & _TRANSIENT_NAMES or getattr(error, "retryable", False):
        return True
    if isinstance(error, OSError | TimeoutError):
        return getattr(error, "errno", None) not in _PERMANENT_NUMBERS
    return False


def was_unauthorised(error: BaseException) -> bool:
    """Return whether other credentials may help: these have expired, or were replaced."""
    if isinstance(error, Exception):
        error = real(error)
    if isinstance(error, PermissionError) or status_of(error) in (401, 403):
        return True
    if _code_of(error) in _REFUSED_CODES or str(error).startswith("Forbidden"):
        return True
    return any(kind.__name__ in _REFUSED_NAMES for kind in type(error).__mro__)


def had_no_answer(error: BaseException) -> bool:
    """Return whether the server was not reached, as with an old address, proxy or certificate."""
    if isinstance(error, Exception):
        error = real(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    return status_of(error) is None and (is_transient(error) or bool(names & _PERMANENT_NAMES))


def was_refused(error: BaseException) -> bool | None:
    """Return whether an error means that the file already exists; None if it may mean that."""
    if isinstance(error, FileExistsError) or status_of(error) == 412:
        return True
    # some clients have no error for it
    perhaps = isinstance(error, OSError) and error.errno == errno.EINVAL
    return None if perhaps and status_of(error) is None else False


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error, or None if there was no answer."""
    for _ in range(4):  # clients wrap each other's errors
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
    """Return the cause of an error: fsspec's HTTP client reports "not found" for every failure."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        status = status_of(cause)
        if status not in (None, 404) or (status is None and is_transient(cause)):
            return cause
    return error

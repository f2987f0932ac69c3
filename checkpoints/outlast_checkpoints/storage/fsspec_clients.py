"""fsspec's file systems, opened with caching and hidden retries turned off.

Each finds its credentials in its usual way: AWS_* and profiles, AZURE_STORAGE_*,
GOOGLE_APPLICATION_CREDENTIALS and STORAGE_EMULATOR_HOST. Listings are not cached, because other
machines write too. Requests are not repeated by the client: `FsspecStorage.create` has to know
whether an earlier try may have been carried out, and two layers of retries would multiply.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import fsspec

from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.redaction import carries_credentials
from outlast_checkpoints.storage import s3_parts
from outlast_checkpoints.storage.lasting_pool import LastingThreadPool
from outlast_checkpoints.storage.private_rng import use_private_rng
from outlast_checkpoints.storage.s3_parts import PARTS, TRIES, S3Parts

_CONNECT: Final = 5.0  # seconds to connect to a server
_ANSWER: Final = 20.0  # seconds without a byte of the answer

RENEW_EVERY: Final = 30.0  # seconds between two clients for one URL, at least

_EXTRAS: Final = {
    "s3": "s3", "s3a": "s3",
    "gs": "gcs", "gcs": "gcs",
    "az": "azure", "abfs": "azure", "abfss": "azure",
    "http": "http", "https": "http",
}  # fmt: skip
_CREDENTIAL_HINTS: Final = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, instead.",
    "gcs": "Set GOOGLE_APPLICATION_CREDENTIALS instead.",
    "azure": "Set AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING instead.",
    "http": "A file ~/.netrc can hold user and password.",
}


class Client:
    """The file system of one URL, opened once per process.

    Neither an open connection nor the thread that serves it survives a fork, so a forked process
    opens its own file system.

    options: passed to fsspec's file system. filesystem: an open file system to use instead.
    exclusive: whether the store can create exclusively; None until it was probed.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, *, filesystem: Any = None
    ) -> None:
        self.url = url
        self.exclusive: bool | None = None
        self._given = filesystem
        self.scheme = url.partition("://")[0].lower()
        self._options = dict(options or {})
        # File systems of the parent process stay here: they cannot be closed in this one.
        self._opened: dict[tuple[int, bool], Any] = {}
        self._s3_parts: dict[int, S3Parts] = {}
        self._lock = threading.Lock()
        self._renewed = time.monotonic()

    @property
    def files(self) -> Any:
        """The file system. It tries each call once."""
        return self._open(patient=False)

    def files_for(self, size: int) -> Any:
        """Return the file system to transfer a file of `size` bytes with.

        For files that are sent in parts, the client retries a failed part.
        """
        return self._open(patient=self._in_parts(size) and self.scheme in _MAKERS)

    def s3_parts(self, size: int) -> S3Parts | None:
        """Return what transfers a file of `size` bytes in parts; None: `files_for` does."""
        if self._given is not None or _EXTRAS.get(self.scheme) != "s3" or not self._in_parts(size):
            return None
        found = self._s3_parts.get(os.getpid())
        if found is None:
            files = self.files_for(size)
            if not S3Parts.serves(files):
                return None
            found = self._s3_parts[os.getpid()] = S3Parts(files)
            use_private_rng()
        return found

    @staticmethod
    def _in_parts(size: int) -> bool:
        return size >= 2 * s3_parts.PART_SIZE

    @property
    def read_only(self) -> bool:
        """Whether the store is read-only."""
        return self.scheme in ("http", "https")

    @property
    def protocol(self) -> str:
        """fsspec's name of the file system."""
        protocols = self.files.protocol
        return protocols if isinstance(protocols, str) else str(protocols[0])

    def renew(self) -> bool:
        """Have the next call open the file system anew; return False if that is too early.

        A client keeps the credentials, proxies and certificates that it found at its start. Files
        and variables may have changed since: a session token lives for hours, a training for days.
        """
        if self._given is not None or self.scheme not in _MAKERS:
            return False
        with self._lock:
            now = time.monotonic()
            if now - self._renewed < RENEW_EVERY:
                return False
            self._renewed = now
            for key in [key for key in self._opened if key[0] == os.getpid()]:
                del self._opened[key]  # calls in progress finish with it
            self._s3_parts.pop(os.getpid(), None)
        return True

    def sending(self) -> dict[str, Any]:
        """Return the options of `put_file` for a large file."""
        if self.scheme in ("s3", "s3a"):
            return {"chunksize": s3_parts.PART_SIZE, "max_concurrency": PARTS}
        if _EXTRAS.get(self.scheme) == "azure":
            return {"max_concurrency": PARTS, "overwrite": True}
        return {}

    def reading(self) -> dict[str, Any]:
        """Return the options of `cat_file`."""
        # otherwise s3fs asks for the size first, to read in parts
        return {"max_concurrency": 1} if self.scheme in ("s3", "s3a") else {}

    def fetching(self) -> dict[str, Any]:
        """Return the options of `get_file` for a large file."""
        if _EXTRAS.get(self.scheme) in ("s3", "azure"):
            return {"max_concurrency": PARTS}
        return {}

    def remove_folder(self, at: str) -> None:
        """Delete an empty folder, if the store has folders; else raise or do nothing."""
        if self.protocol == "s3":
            self.files.rm_file(f"{at}/")  # a server keeps a folder as an object of this name
        else:
            self.files.rmdir(at)

    def base(self) -> str:
        """Return the prefix of paths below the URL. Raises `UsageError`."""
        if self.scheme in _EXTRAS:
            return str(self.files._strip_protocol(self.url))
        self._open(patient=False)  # raises a UsageError for an unknown URL
        return str(fsspec.core.url_to_fs(self.url, **self._options)[1])

    def _open(self, *, patient: bool) -> Any:
        if self._given is not None:
            return self._given
        key = os.getpid(), patient
        files = self._opened.get(key)
        if files is None:
            files = self._opened[key] = self._make(patient)
            use_private_rng()  # the client is imported now
        return files

    def _make(self, patient: bool) -> Any:
        extra = _EXTRAS.get(self.scheme)
        if extra is not None and carries_credentials(self.url):
            raise UsageError(
                field="storage",
                problem=f"{self.url} carries credentials",
                hint=_CREDENTIAL_HINTS[extra],
            )
        try:
            make = _MAKERS.get(self.scheme)
            if make is not None:
                files = make(self.url, self._options, patient)
                files.loop.call_soon_threadsafe(_use_lasting_pool, files.loop)
                return files
            return fsspec.core.url_to_fs(self.url, **self._options)[0]
        except ImportError as error:
            raise self._missing(error, extra) from error
        except (ValueError, TypeError) as error:
            hint = "Use a folder, or a URL whose fsspec package is installed."
            if extra is not None:
                hint = _CREDENTIAL_HINTS[extra].replace(" instead", "")
            problem = f"{self.url}: {error}"
            raise UsageError(field="storage", problem=problem, hint=hint) from error

    def _missing(self, error: ImportError, extra: str | None) -> UsageError:
        if extra is None:
            hint = "Install the package that fsspec names."
            return UsageError(field="storage", problem=f"{self.url}: {error}", hint=hint)
        return UsageError(
            field="storage",
            problem=f"{self.scheme}:// needs {_package_of(error)}, which is not installed",
            hint=f"pip install 'outlast[{extra}]'",
        )


def _use_lasting_pool(loop: Any) -> None:
    if not isinstance(getattr(loop, "_default_executor", None), LastingThreadPool):
        loop.set_default_executor(LastingThreadPool(thread_name_prefix="outlast-stores"))


def _package_of(error: ImportError) -> str:
    return (error.name or "a package").partition(".")[0]


def _s3(url: str, options: dict[str, Any], patient: bool) -> Any:
    import s3fs
    from aiobotocore.httpsession import AIOHTTPSession

    async def get_session(self: Any, proxy_url: str | None) -> Any:
        return _single(await AIOHTTPSession._get_session(self, proxy_url))

    config = {
        "http_session_cls": type("OneTry", (AIOHTTPSession,), {"_get_session": get_session}),
        "connect_timeout": _CONNECT,
        "read_timeout": _ANSWER,
        "retries": {"mode": "standard", "total_max_attempts": TRIES if patient else 1},
        "max_pool_connections": 4 * PARTS,
        # Some servers send the whole object's checksum with a part. We verify hashes ourselves.
        "response_checksum_validation": "when_required",
        **options.get("config_kwargs", {}),
    }
    given = {"use_listings_cache": False, **options, "config_kwargs": config}
    files = s3fs.S3FileSystem(skip_instance_cache=True, **given)
    files.retries = 1  # otherwise s3fs retries what botocore does not
    return files


def _azure(url: str, options: dict[str, Any], patient: bool) -> Any:
    from adlfs import AzureBlobFileSystem

    given = {
        **AzureBlobFileSystem._get_kwargs_from_urls(url),  # the URL may name the account
        "use_listings_cache": False,
        "assume_container_exists": True,  # saves a request for each file
        "connection_timeout": _CONNECT,
        "read_timeout": _ANSWER,
        **options,
    }
    files = AzureBlobFileSystem(skip_instance_cache=True, **given)
    # adlfs has no option for these
    policy = files.service_client._config.retry_policy
    policy.total_retries = TRIES - 1 if patient else 0
    policy.initial_backoff, policy.increment_base = 0.5, 2
    transport = files.service_client._pipeline._transport
    opened = transport.open

    async def open_single() -> None:
        await opened()
        _single(transport.session)

    transport.open = open_single
    return files


def _single(session: Any) -> Any:
    """Keep aiohttp from repeating an unanswered request, a PUT included."""
    session._retry_connection = False
    return session


def _google(url: str, options: dict[str, Any], patient: bool) -> Any:
    import gcsfs.core
    from aiohttp import ClientTimeout

    # not gcsfs' default class, which first asks over gRPC for the kind of each bucket
    kind = gcsfs.core.GCSFileSystem
    timeout = ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_ANSWER)
    given = {"use_listings_cache": False, "requests_timeout": timeout, **options}
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        given.setdefault("token", "anon")  # otherwise gcsfs looks for Google accounts first
    if not patient:
        # gcsfs tries each request six times and has no option for it: take the plain methods.
        names = ("_request", "_get_file_request")
        single = {name: getattr(kind, name).__wrapped__ for name in names}

        async def set_session(self: Any) -> Any:
            return _single(await kind._set_session(self))

        single["_set_session"] = set_session
        return type("OneTry", (kind,), single)(skip_instance_cache=True, **given)
    return kind(skip_instance_cache=True, **given)


def _web(url: str, options: dict[str, Any], patient: bool) -> Any:
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_ANSWER)
    client = {"trust_env": True, **options.get("client_kwargs", {})}  # proxies, ~/.netrc
    given = {"use_listings_cache": False, "timeout": timeout, **options, "client_kwargs": client}
    return HTTPFileSystem(skip_instance_cache=True, **given)


_MAKERS: Final[dict[str, Callable[[str, dict[str, Any], bool], Any]]] = {
    "s3": _s3, "s3a": _s3,
    "gs": _google, "gcs": _google,
    "az": _azure, "abfs": _azure, "abfss": _azure,
    "http": _web, "https": _web,
}  # fmt: skip

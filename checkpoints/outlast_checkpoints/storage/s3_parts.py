"""Large files to and from S3, in parts that several threads transfer at a time.

fsspec's client runs in one thread, which also computes the checksums and signatures of all parts;
threads overlap them, as botocore's own transfer library does. Memory use does not depend on the
size of a file or of its parts.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from outlast_checkpoints.storage.lasting_pool import LastingThreadPool
from outlast_checkpoints.storage.retry import is_transient

if TYPE_CHECKING:
    from outlast_checkpoints.storage.growing_upload import GrowingUpload

PARTS: Final = 8  # of a file in transfer at a time
PART_SIZE: Final = 16 << 20  # bytes
TRIES: Final = 4  # of one part, so that the whole file is not sent again
_PIECE: Final = 1 << 20  # bytes of a part that are read at once


class S3Parts:
    """Transfers files with a blocking client that has the settings of an s3fs file system."""

    def __init__(self, files: Any) -> None:
        self._files = files
        self._client = _client(files)
        self._options = {**files.s3_additional_kwargs, **files.req_kw}

    @staticmethod
    def serves(files: Any) -> bool:
        """Return whether a blocking client can have the settings of this file system."""
        return files.session is None and not files.cache_regions and not files.version_aware

    def upload(self, local: Path, at: str) -> None:
        """Upload a local file to "bucket/key"."""
        size = local.stat().st_size
        upload = self.upload_growing(local, at, size)
        upload.grown(size)
        upload.finish()

    def upload_growing(self, local: Path, at: str, size: int) -> GrowingUpload:
        """Begin to upload a file that will have `size` bytes to "bucket/key"."""
        from s3transfer.manager import TransferConfig, TransferManager

        from outlast_checkpoints.storage.growing_upload import GrowingUpload

        bucket, key, _ = self._files.split_path(at)
        config = TransferConfig(
            multipart_threshold=2 * PART_SIZE,
            multipart_chunksize=PART_SIZE,
            max_request_concurrency=PARTS,
        )
        extra = self._allowed(TransferManager.ALLOWED_UPLOAD_ARGS)
        return GrowingUpload(self._client, config, local, size, bucket, key, extra)

    def read_into(self, at: str, buffer: memoryview) -> int:
        """Read the first bytes of "bucket/key"; return how many there were."""
        from s3transfer.manager import TransferManager

        bucket, key, _ = self._files.split_path(at)
        extra = self._allowed(TransferManager.ALLOWED_DOWNLOAD_ARGS)

        def receive(start: int) -> int:
            end = min(start + PART_SIZE, len(buffer))
            at = start
            for left in reversed(range(TRIES)):
                found = self._client.get_object(
                    Bucket=bucket, Key=key, Range=f"bytes={at}-{end - 1}", **extra
                )
                if found["ContentLength"] > end - at:
                    raise OSError(errno.EIO, "the server ignores the range of a request")
                try:
                    with closing(found["Body"]) as body:
                        while piece := body.read(_PIECE):
                            buffer[at : at + len(piece)] = piece
                            at += len(piece)
                    break
                except Exception as error:
                    if not left or not is_transient(error):
                        raise
            return at - start

        with LastingThreadPool(PARTS) as pool:
            starts = range(0, len(buffer), PART_SIZE)
            parts = [pool.submit(receive, start) for start in starts]
            try:
                return sum(part.result() for part in parts)
            finally:
                for part in parts:
                    part.cancel()

    def _allowed(self, names: Collection[str]) -> dict[str, Any]:
        return {name: value for name, value in self._options.items() if name in names}


def _client(files: Any) -> Any:
    """Return a blocking client with the credentials and settings of an s3fs file system."""
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    config = {**files.config_kwargs}
    for name in ("http_session_cls", "connector_args"):  # of aiobotocore
        config.pop(name, None)
    keys = {
        "aws_access_key_id": files.key,
        "aws_secret_access_key": files.secret,
        "aws_session_token": files.token,
    }
    given = {"endpoint_url": files.endpoint_url, "use_ssl": files.use_ssl}
    if files.anon:
        config["signature_version"] = UNSIGNED
    else:
        given |= keys
    given = {name: value for name, value in given.items() if value is not None}
    settings = {**given, **files.client_kwargs}
    session = botocore.session.Session(**files.kwargs)
    return session.create_client("s3", config=Config(**config), **settings)

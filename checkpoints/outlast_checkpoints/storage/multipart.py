"""Unfinished multipart uploads to S3. They take up space that no listing shows."""

from __future__ import annotations

from typing import Any

from outlast_checkpoints.storage.base import Unfinished


def unfinished(s3: Any, base: str, *, page: int = 1000) -> list[Unfinished]:
    """Return the unfinished uploads below `base` ("bucket/prefix").

    s3: an s3fs file system. page: how many uploads one request lists.
    """
    bucket, _, prefix = base.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    found: list[Unfinished] = []
    more: dict[str, str] = {}
    while True:
        answer = s3.call_s3(
            "list_multipart_uploads", Bucket=bucket, Prefix=prefix, MaxUploads=page, **more
        )
        for upload in answer.get("Uploads") or ():
            if upload["Key"].startswith(prefix):  # some servers ignore the prefix
                path = upload["Key"][len(prefix) :]
                started = upload["Initiated"].timestamp()
                what = "an unfinished upload"
                found.append(Unfinished(path, started, 0, what, upload["UploadId"]))
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        next_page = {name: answer[where] for name, where in markers.items() if answer.get(where)}
        if not answer.get("IsTruncated") or next_page in ({}, more):
            return found
        more = next_page  # not all servers send both


def abort(s3: Any, path: str, token: str) -> None:
    """Abort an upload and free its space. Raises `FileNotFoundError` if it is gone."""
    bucket, _, key = path.partition("/")
    s3.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=token)

"""Uploads to S3 in parts that nobody finished: they take up space that no listing shows."""

from __future__ import annotations

from typing import Any

from outlast_checkpoints.storage.base import Unfinished


def unfinished(s3: Any, base: str, *, page: int = 1000) -> list[Unfinished]:
    """Return the uploads below `base` ("bucket/prefix") that were begun and not finished.

    s3: the file system of s3fs. page: how many are asked for at a time.
    """
    bucket, _, prefix = base.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    found: list[Unfinished] = []
    more: dict[str, str] = {}
    while True:
        told = s3.call_s3(
            "list_multipart_uploads", Bucket=bucket, Prefix=prefix, MaxUploads=page, **more
        )
        for upload in told.get("Uploads") or ():
            if upload["Key"].startswith(prefix):  # some servers overlook the prefix
                path = upload["Key"][len(prefix) :]
                started = upload["Initiated"].timestamp()
                what = "an upload that was never finished"
                found.append(Unfinished(path, started, 0, what, upload["UploadId"]))
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        next_page = {name: told[where] for name, where in markers.items() if told.get(where)}
        if not told.get("IsTruncated") or next_page in ({}, more):
            return found
        more = next_page  # not all servers tell both


def abort(s3: Any, path: str, token: str) -> None:
    """End one of them and free what has arrived of it. Raises `FileNotFoundError` when gone."""
    bucket, _, key = path.partition("/")
    s3.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=token)

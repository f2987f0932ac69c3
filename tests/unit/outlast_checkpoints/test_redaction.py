"""Credentials are hidden in all output; everything else stays unchanged."""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath

import pytest

from outlast.job.logs import LogFile, make_logger
from outlast_checkpoints.errors import NotFound, StorageError
from outlast_checkpoints.redaction import carries_credentials, names_secret, redact
from outlast_checkpoints.storage import open_storage

URL = "https://host/jobs?sig=hunter22"


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter22@host/jobs/a",
        "cannot open 'https://me:hun@ter22@host:8443/jobs/a' now",
        "https://hunter22@host/jobs",
        "sftp://me:hunter22@host/jobs",
        "https://host/jobs?token=hunter22",
        "https://host/jobs?a=1&access_token=hunter22&b=2",
        "https://x.blob.core.windows.net/c/p?sv=2024&se=2027&sig=hunter22%3D",
        "https://b.s3.amazonaws.com/k?X-Amz-Credential=hunter22&X-Amz-Date=1",
        "https://b.s3.amazonaws.com/k?X-Amz-Security-Token=hunter22",
        "https://b.s3.amazonaws.com/k?AWSAccessKeyId=hunter22&Signature=hunter22&Expires=1",
        "https://storage.googleapis.com/b/k?X-Goog-Signature=hunter22",
        "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=hunter22==;EndpointSuffix=y",
        "BlobEndpoint=https://x;SharedAccessSignature=hunter22",
        "headers {'Authorization': 'Bearer hunter22'}",
        "Authorization: SharedKey hunter22",
        "Authorization: hunter22",
        "s3://AKIAEXAMPLE:wJalr/hunter22/K7MDENG@bucket/jobs",
        "cannot read gs://me:hun/ter22@hunter22@bucket/jobs: 403",
        "login failed: password=hunter22 for me",
        '{"db_password": "hunter22"}',
        "DB_PASSWD=hunter22",
        "api_key='hunter22'",
        "Bearer hunter22",
        "Cookie: session=hunter22; theme=dark",
        "{'Set-Cookie': 'id=hunter22'}",
        "X-Auth-Token: hunter22",
        "clone with ghp_hunter22hunter22hunter22hunter22ab",
        "github_pat_11AAhunter22hunter22hunter22",
        "hf_hunter22hunter22hunter22hunter22",
        "xoxb-123456-hunter22",
        "eyJhbGciOiJIUzI1.eyJzdWIhunter22.hunter22-x_y",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter22\nhunter22\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter22",
    ],
)
def test_credentials_are_hidden(text: str) -> None:
    assert "hunter22" not in redact(text)
    assert "***" in redact(text)
    assert carries_credentials(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/jobs/a/spec.json",
        "abfs://container@account.dfs.core.windows.net/jobs",
        "sftp://me@host/jobs",
        "https://host/jobs/a?page=2&order=key",
        "mail me@host: 3:14 o'clock @ noon",
        "monkey=banana, loss=0.5, --lr=1e-3",
        "file 'a:b@c/d' https://host/ e@f",
        "s3://bucket/run:3@5/spec.json",
        "the bearer of a password waits, max_tokens=100, sort-key=name, token=5",
        "cookies are eaten, key AKIA, ghp_short, sk-learn",
    ],
)
def test_other_text_is_unchanged(text: str) -> None:
    assert redact(text) == text
    assert not carries_credentials(text)


def test_secrets_in_the_environment_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "")
    assert redact("string to sign: hunter22, key AKIA") == "string to sign: ***, key AKIA"


@pytest.mark.parametrize(
    "text", ["key hun/ter+22", "key hun%2Fter%2B22", 'json "hun/ter+22"', "key hun%2fter%2b22"]
)
def test_a_secret_of_the_environment_is_hidden_in_every_spelling(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hun/ter+22")
    assert "***" in redact(text)
    assert "ter" not in redact(text)


def test_names_of_secrets() -> None:
    names = """
        PGPASSWORD DB_PASS MYSQL_PWD PASSPHRASE GITHUB_PAT AUTH COOKIE SESSION SECRETKEY ACCESSKEY
        SASTOKEN BEARER CREDS SLACK_WEBHOOK SENTRY_DSN API_KEY WANDB_API_KEY HF_TOKEN AWS_SECRET
        AWS_ACCESS_KEY_ID PASSWORD --api-key --auth --pass --pwd SLACK_WEBHOOK_URL
    """
    assert [name for name in names.split() if not names_secret(name)] == []
    others = "MAX_TOKENS TOKENIZERS_PARALLELISM KEYBOARD PATH AUTHOR PASSES COMPASS MONKEY"
    assert [name for name in others.split() if names_secret(name)] == []


def test_errors_hide_them_in_every_field() -> None:
    url = "https://me:hunter22@host/jobs"
    reason = f"404, message='Not Found', url='{url}?sig=hunter22'"
    for error in (
        StorageError(action="read", path=f"{url}/spec.json", reason=reason),
        NotFound(path="spec.json", root=url),
    ):
        assert "hunter22" not in str(error)
        assert "host/jobs" in str(error)


def test_a_long_text_is_redacted_quickly() -> None:
    begin = time.process_time()
    for piece in (
        "://",
        "://a:",
        "&key",
        "authorization ",
        "s3://a:",
        "x-a",
        "a_",
        "secret-",
        "eyJaaaaaaaaa.",
    ):
        redact(piece * 100_000)
    assert time.process_time() - begin < 20  # it takes some tenths of a second


def test_the_log_hides_them_in_every_structure(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    log = LogFile(storage, "log.jsonl")
    make_logger(log).warning(
        "away",
        error=f"GET {URL}",
        tries=[{"url": URL}, ("a", URL)],
        path=PurePosixPath("/x?token=hunter22"),
        exception=f"Traceback\n{URL}",
    )
    log.close()
    text = storage.read("log.jsonl").decode()
    assert "hunter22" not in text
    assert text.count("***") == 5


def test_the_log_hides_secrets_that_were_set_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path)
    log = LogFile(storage, "log.jsonl")
    logger = make_logger(log, job="hunter22")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "hunter22")
    logger.info("signed", by=["hunter22"])
    log.close()
    assert storage.read("log.jsonl").decode().count("***") == 2
    assert "hunter22" not in storage.read("log.jsonl").decode()

"""What all local S3 servers have in common: address, keys, clients, buckets, and a certain end."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from typing_extensions import Self


# What all secrets begin with that are made up here. A test that finds one of these words in a log,
# an error or a pickle has found a leak.
SECRET_MARK = "MadeUpSecretKey"  # noqa: S105 - no secret itself
TOKEN_MARK = "MadeUpSessionToken"  # noqa: S105


@dataclass(frozen=True)
class Identity:
    """A user of a `SeaweedServer`.

    actions: of "Admin", "Read", "Write", "List", "Tagging"; "Read:bucket" limits one to a bucket.
    policies: IAM policies as JSON, each allowing more. Give `actions=()` to let them decide alone.
    """

    name: str
    access_key: str
    secret_key: str
    actions: tuple[str, ...] = ("Admin", "Read", "Write", "List", "Tagging")
    policies: tuple[str, ...] = ()


class S3Server:
    """What all servers here have in common: address, keys, clients, buckets.

    directory: folder for the data, created where missing and kept afterwards; a temporary one,
        removed afterwards, if None.
    start_seconds: how long the server may take to answer its first requests.

    `endpoint_url` is set by `start()`, or on entering the `with` block. `session_token` is None
    where the server takes none.
    """

    region = "us-east-1"
    session_token: str | None = None
    _response_checksums: Literal["when_supported", "when_required"] = "when_supported"

    def __init__(self, directory: str | Path | None = None, *, start_seconds: float = 60.0) -> None:
        self.endpoint_url = ""
        self.access_key = "test" + secrets.token_hex(8)
        self.secret_key = SECRET_MARK + secrets.token_hex(16)
        self._directory = directory
        self._start_seconds = start_seconds
        self._cleanup = ExitStack()
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return once it answers.

        Raises MissingServerError without its package, ServerStartError if it doesn't come up.
        """
        self._owner = os.getpid()
        atexit.register(self.stop)
        try:
            self._start(time.monotonic() + self._start_seconds)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and remove its temporary folder; nothing on a second call."""
        # A forked copy of this object must not stop the server of its parent.
        if os.getpid() == self._owner:
            self._cleanup.close()
            atexit.unregister(self.stop)

    def client(self, identity: Identity | None = None, **options: Any) -> S3Client:
        """Return a new boto3 client for this server.

        identity: whose keys to use; the server's own if None.
        options: for `botocore.config.Config`, above the defaults used here.
        """
        config = Config(
            s3={"addressing_style": "path"},
            # {} is not None: a proxy in the environment must not see loopback requests.
            proxies={},
            response_checksum_validation=self._response_checksums,
        ).merge(Config(**options))
        # A session of its own: the default one is shared and not safe between threads.
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=identity.access_key if identity else self.access_key,
            aws_secret_access_key=identity.secret_key if identity else self.secret_key,
            aws_session_token=None if identity else self.session_token,
            config=config,
        )

    def create_bucket(self, name: str) -> None:
        """Create a bucket; raises botocore's ClientError if the server refuses."""
        self.client().create_bucket(Bucket=name)

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket and every object and unfinished upload in it."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=name, Key=entry["Key"])
        try:
            uploads = client.list_multipart_uploads(Bucket=name).get("Uploads", [])
        except client.exceptions.NoSuchUpload:
            uploads = []  # rclone's answer where there are none
        for upload in uploads:
            client.abort_multipart_upload(
                Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        client.delete_bucket(Bucket=name)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a program finds this server and its keys."""
        token = {"AWS_SESSION_TOKEN": self.session_token} if self.session_token else {}
        return {
            **token,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _start(self, deadline: float) -> None:
        raise NotImplementedError

    def _folder(self) -> Path:
        if self._directory is not None:
            folder = Path(self._directory).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder = Path(tempfile.mkdtemp(prefix="torch-s3dcp-"))
        self._cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

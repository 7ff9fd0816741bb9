"""Where saves go: each to a new place, where it is checked and removed afterwards."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import boto3
from botocore.config import Config
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from torch_s3dcp.testing.servers import SeaweedServer

from .cases import Case
from .child import check
from .save_systems import warm_path
from .servers import BUCKET, PREFIX, sink_server
from .sink_server import COUNT

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SERVERS = ("seaweed", "sink", "https-sink")
_METADATA = ".metadata"


class Places(Protocol):
    """Places for one save after another, and the environment that reaches them."""

    environment: dict[str, str]

    def new(self) -> str:
        """The address of a new place."""

    def check(self, case: Case) -> int:
        """Look whether all has arrived at the last place; the bytes that were sent to it.

        Raises:
            SystemExit: It has not.
        """

    def remove(self) -> None:
        """Remove what lies at the last place and beside it."""


class Folders:
    """Folders, for what saves files."""

    def __init__(self, folder: Path) -> None:
        self.environment: dict[str, str] = {}
        self._folder = folder / "saved"

    def new(self) -> str:
        return str(self._folder)

    def check(self, case: Case) -> int:
        return check_files(case, self._folder)

    def remove(self) -> None:
        shutil.rmtree(self._folder)
        shutil.rmtree(warm_path(str(self._folder)), ignore_errors=True)


class Seaweed:
    """Buckets of SeaweedFS. One that is deleted gives its memory back, an object does not."""

    def __init__(self, server: SeaweedServer, folder: Path) -> None:
        self.environment = server.environment()
        self._server = server
        self.client = server.client()
        self._folder = folder / "fetched"
        self._numbers = itertools.count(1)

    def new(self) -> str:
        self._bucket = f"{BUCKET}-{next(self._numbers)}"
        self._server.create_bucket(self._bucket)
        # The first object of a bucket has to wait for room to be made.
        self.client.put_object(Bucket=self._bucket, Key="first", Body=b"first")
        return f"s3://{self._bucket}/{PREFIX}"

    def check(self, case: Case) -> int:
        self._folder.mkdir()
        try:
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{PREFIX}/"):
                for found in page.get("Contents", []):
                    file = self._folder / found["Key"].removeprefix(f"{PREFIX}/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self.client.download_file(self._bucket, found["Key"], str(file))
            return check_files(case, self._folder)
        finally:
            shutil.rmtree(self._folder)

    def remove(self) -> None:
        self._server.delete_bucket(self._bucket)


class Sink:
    """A server that counts what comes and keeps hardly any of it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.client = _client(environment)
        self._numbers = itertools.count(1)

    def new(self) -> str:
        self._bucket = f"{BUCKET}-{next(self._numbers)}"
        self._before = self._received()
        return f"s3://{self._bucket}/{PREFIX}"

    def check(self, case: Case) -> int:
        sent = self._stored(PREFIX)
        with contextlib.suppress(self.client.exceptions.NoSuchKey):
            sent += self._stored(warm_path(PREFIX))
        received = self._received() - self._before
        if received != sent:
            raise SystemExit(f"{received} bytes were received, but {sent} are in the checkpoint")
        return received

    def _stored(self, prefix: str) -> int:
        """The bytes of a checkpoint, whose objects have the sizes that its metadata says."""
        answer = self.client.get_object(Bucket=self._bucket, Key=f"{prefix}/{_METADATA}")
        metadata = answer["Body"].read()
        sizes = sizes_in(pickle.loads(metadata))
        for name, size in sizes.items():
            found = self.client.head_object(Bucket=self._bucket, Key=f"{prefix}/{name}")
            if found["ContentLength"] != size:
                raise SystemExit(f"{name} has {found['ContentLength']} bytes, not {size}")
        return sum(sizes.values()) + len(metadata)

    def remove(self) -> None:
        """Nothing lies there."""

    def _received(self) -> int:
        _, bucket, key = COUNT.split("/")
        return int(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())


@contextlib.contextmanager
def open_places(server: str, folder: Path) -> Iterator[Places]:
    """Places on one of ``SERVERS``; what it needs lies in the folder."""
    if server == "seaweed":
        with SeaweedServer(folder / "seaweed") as seaweed:
            yield Seaweed(seaweed, folder)
    else:
        with sink_server(folder, server == "https-sink") as environment:
            yield Sink(environment)


def check_files(case: Case, folder: Path) -> int:
    """Load a checkpoint with PyTorch alone and compare it with the case; its bytes."""
    state = case.wanted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    check(state, case.saved())
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def sizes_in(metadata: Any) -> dict[str, int]:
    """The sizes of the files that the metadata of a checkpoint speaks of."""
    sizes: dict[str, int] = {}
    for place in metadata.storage_data.values():
        end = place.offset + place.length
        sizes[place.relative_path] = max(end, sizes.get(place.relative_path, 0))
    return sizes


def _client(environment: dict[str, str]) -> S3Client:
    """A client for the server that an environment names."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        verify=environment.get("AWS_CA_BUNDLE"),
        config=Config(proxies={}),
    )

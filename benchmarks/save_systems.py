"""What saves are compared of: each system opens a writer, may send one request, and saves.

Each runs in a process of its own, as those that load do.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from .cases import State, noise
from .sockets import in_threads, send

_PART = 32 * 2**20
_METADATA = ".metadata"


@dataclass(frozen=True)
class Target:
    """Where a save goes, and the bytes of the state that is saved."""

    path: str
    size: int


class System(Protocol):
    """Called in this order; the clock runs for ``save`` alone."""

    storage: Any
    """The storage writer, once it was made; None where there is none."""

    def open(self) -> None:
        """Make the storage writer, and the client if making it is a step of its own."""

    def warm(self) -> None:
        """Send one HEAD: client, name, connection and TLS are there afterwards."""

    def save(self, state: State) -> None:
        """Save the state."""


class Ours:
    """This package, with as many threads as its name says or with its defaults."""

    storage: Any

    def __init__(self, threads: str, target: Target) -> None:
        from torch_s3dcp import S3StorageWriter
        from torch_s3dcp.exceptions import ObjectNotFoundError

        self._make_writer = S3StorageWriter
        self._missing = ObjectNotFoundError
        self._options: dict[str, Any] = {"thread_count": int(threads)} if threads else {}
        self._path = target.path

    def open(self) -> None:
        self.storage = self._make_writer(self._path, **self._options)

    def warm(self) -> None:
        bucket, _, prefix = self._path.removeprefix("s3://").partition("/")
        with contextlib.suppress(self._missing):
            self.storage.transport.head(bucket, f"{prefix}/{_METADATA}")

    def save(self, state: State) -> None:
        save(state, storage_writer=self.storage, no_dist=True)


class _OverFiles:
    """A storage writer of PyTorch's kind: it asks a file system, ``fs``, for files."""

    storage: Any

    def __init__(self, target: Target) -> None:
        self._path = target.path

    def warm(self) -> None:
        if self.storage.fs.exists(f"{self._path}/{_METADATA}"):
            raise SystemExit(f"there is something at {self._path}")

    def save(self, state: State) -> None:
        save(state, storage_writer=self.storage, no_dist=True)


class Connector(_OverFiles):
    """AWS's package, s3torchconnector, with as many threads as its name says."""

    def __init__(self, threads: str, target: Target) -> None:
        super().__init__(target)
        from s3torchconnector.dcp import S3StorageWriter  # type: ignore[import-not-found]

        self._make_writer = S3StorageWriter
        self._threads = int(threads)

    def open(self) -> None:
        self.storage = self._make_writer("us-east-1", self._path, thread_count=self._threads)


class Fsspec(_OverFiles):
    """PyTorch's writer over s3fs."""

    def __init__(self, _: str, target: Target) -> None:
        super().__init__(target)
        # fsspec would import it within the clock.
        import s3fs  # type: ignore[import-not-found] # noqa: F401
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        self._make_writer = FsspecWriter

    def open(self) -> None:
        # S3 has nothing to sync, so PyTorch would sync all file systems of the machine instead.
        self.storage = self._make_writer(self._path, sync_files=False)


class FileSystem(_OverFiles):
    """PyTorch's writer into files, which lie in memory."""

    def __init__(self, _: str, target: Target) -> None:
        super().__init__(target)

    def open(self) -> None:
        self.storage = FileSystemWriter(self._path)

    def warm(self) -> None:
        """There is nothing to connect to."""


class Floor:
    """Raw sockets out of memory that is there: what the server and the kernel allow."""

    storage = None

    def __init__(self, _: str, target: Target) -> None:
        import boto3
        from botocore.config import Config

        # A checksum would have to be known when a URL is signed.
        config = Config(request_checksum_calculation="when_required")
        self._client = boto3.client("s3", config=config)
        bucket, _, prefix = target.path.removeprefix("s3://").partition("/")
        self._key: dict[str, Any] = {"Bucket": bucket, "Key": f"{prefix}/floor"}
        # Noise, as the states are: a server may compress what it can.
        memory = noise((target.size // 2 + 1,), 0).view(torch.uint8)
        self._memory = memoryview(memory.numpy().data)[: target.size]

    def open(self) -> None:
        self._upload = self._client.create_multipart_upload(**self._key)["UploadId"]
        self._parts: list[tuple[int, str, memoryview]] = []
        for number, start in enumerate(range(0, len(self._memory), _PART), 1):
            about = {**self._key, "UploadId": self._upload, "PartNumber": number}
            url = self._client.generate_presigned_url("upload_part", about)
            self._parts.append((number, url, self._memory[start : start + _PART]))

    def warm(self) -> None:
        """The client has a connection; one for each thread costs next to nothing here."""

    def save(self, _: State) -> None:
        self._etags: dict[int, str] = {}
        in_threads(self._parts[0][1], self._parts, self._send)
        parts: Any = [{"PartNumber": n, "ETag": tag} for n, tag in sorted(self._etags.items())]
        self._client.complete_multipart_upload(
            **self._key, UploadId=self._upload, MultipartUpload={"Parts": parts}
        )

    def _send(self, connection: socket.socket, part: tuple[int, str, memoryview]) -> None:
        number, url, memory = part
        self._etags[number] = send(connection, url, memory)


SYSTEMS: dict[str, Callable[[str, Target], System]] = {
    "ours": Ours,
    "s3torchconnector": Connector,
    "fsspec": Fsspec,
    "filesystem": FileSystem,
    "floor": Floor,
}


def warm_path(path: str) -> str:
    """Where a save to warm up goes, beside the one that is measured."""
    return path + "-warm"


def make_system(name: str, target: Target) -> System:
    """The system of a name such as ``ours:4`` or ``floor``."""
    kind, _, setting = name.partition(":")
    return SYSTEMS[kind](setting, target)

"""What is compared: each system opens a checkpoint, may send one request, and loads.

Each runs in a process of its own, in the project's environment or in that of the other
packages, so packages are imported when a system is made.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from .cases import State
from .sockets import in_threads, receive

_PART = 32 * 2**20
_METADATA = ".metadata"


@dataclass(frozen=True)
class Place:
    """Where the checkpoint lies: its address, and the folder with the same files."""

    path: str
    folder: Path


class System(Protocol):
    """Called in this order; ``warm`` is left out of a cold load."""

    def open(self) -> None:
        """Make the storage reader, and the client if making it is a step of its own."""

    def warm(self) -> None:
        """Send one HEAD: client, name, connection and TLS are there afterwards."""

    def load(self, state: State) -> dict[str, int]:
        """Load into ``state``; gives ``requests`` and ``read`` bytes, where they are counted."""


class Ours:
    """This package with one of its readers, counted request by request.

    Args:
        reader: Its name, and after a plus how far it verifies: ``direct+off``.
    """

    def __init__(self, reader: str, place: Place) -> None:
        from torch_s3dcp import S3StorageReader
        from torch_s3dcp.testing.wrappers import RecordingTransport
        from torch_s3dcp.transports import BotoTransport

        self._make_reader = S3StorageReader
        self._make_recording = RecordingTransport
        self._make_boto = BotoTransport
        self._reader, _, integrity = reader.partition("+")
        self._integrity = integrity or "full"
        self._path = place.path

    def open(self) -> None:
        self._boto = self._make_boto()
        # The storage reader would do so, but cannot through what counts requests.
        self._boto.prepare()
        self._recording = self._make_recording(self._boto)
        self._storage = self._make_reader(
            self._path,
            reader_constructor=self._reader,
            transport=self._recording,
            integrity=self._integrity,
        )

    def warm(self) -> None:
        bucket, _, prefix = self._path.removeprefix("s3://").partition("/")
        self._boto.head(bucket, f"{prefix}/{_METADATA}")

    def load(self, state: State) -> dict[str, int]:
        load(state, storage_reader=self._storage, no_dist=True)
        requests = self._recording.requests
        return {"requests": len(requests), "read": sum(request.bytes for request in requests)}


class _OverFiles:
    """A storage reader of PyTorch's kind: it asks a file system, ``fs``, for files."""

    storage: Any

    def __init__(self, path: str) -> None:
        self._path = path

    def warm(self) -> None:
        if not self.storage.fs.exists(f"{self._path}/{_METADATA}"):
            raise SystemExit(f"nothing at {self._path}")

    def load(self, state: State) -> dict[str, int]:
        load(state, storage_reader=self.storage, no_dist=True)
        return {}


class Connector(_OverFiles):
    """AWS's package, s3torchconnector, with one of its readers."""

    def __init__(self, reader: str, place: Place) -> None:
        super().__init__(place.path)
        from s3torchconnector import S3ReaderConstructor  # type: ignore[import-not-found]
        from s3torchconnector.dcp import S3StorageReader  # type: ignore[import-not-found]

        self._constructor = getattr(S3ReaderConstructor, reader)()
        self._make_reader = S3StorageReader

    def open(self) -> None:
        self.storage = self._make_reader(
            "us-east-1", self._path, reader_constructor=self._constructor
        )


class Fsspec(_OverFiles):
    """PyTorch's reader over s3fs."""

    def __init__(self, _: str, place: Place) -> None:
        super().__init__(place.path)
        # fsspec would import it within the clock.
        import s3fs  # type: ignore[import-not-found] # noqa: F401
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        self._make_reader = FsspecReader

    def open(self) -> None:
        self.storage = self._make_reader(self._path)


class FileSystem(_OverFiles):
    """PyTorch's reader over files, which lie in memory."""

    def __init__(self, _: str, place: Place) -> None:
        super().__init__(str(place.folder))

    def open(self) -> None:
        self.storage = FileSystemReader(self._path)

    def warm(self) -> None:
        """There is nothing to connect to."""


class Floor:
    """Raw sockets into memory that is there: what the server and the kernel allow."""

    def __init__(self, _: str, place: Place) -> None:
        import boto3

        client = boto3.client("s3")
        bucket, _, prefix = place.path.removeprefix("s3://").partition("/")
        self._parts: list[tuple[str, int, memoryview]] = []
        for file in sorted(place.folder.glob("*.distcp")):
            url = client.generate_presigned_url(
                "get_object", {"Bucket": bucket, "Key": f"{prefix}/{file.name}"}
            )
            memory = memoryview(torch.ones(file.stat().st_size, dtype=torch.uint8).numpy().data)
            for start in range(0, len(memory), _PART):
                self._parts.append((url, start, memory[start : start + _PART]))

    def open(self) -> None:
        """There is nothing to open."""

    def warm(self) -> None:
        """A connection for each thread costs next to nothing here."""

    def load(self, _: State) -> dict[str, int]:
        in_threads(self._parts[0][0], self._parts, self._receive)
        read = sum(len(memory) for _, _, memory in self._parts)
        return {"requests": len(self._parts), "read": read}

    def _receive(self, connection: socket.socket, part: tuple[str, int, memoryview]) -> None:
        receive(connection, *part)


SYSTEMS: dict[str, Callable[[str, Place], System]] = {
    "ours": Ours,
    "s3torchconnector": Connector,
    "fsspec": Fsspec,
    "filesystem": FileSystem,
    "floor": Floor,
}


def make_system(name: str, place: Place) -> System:
    """The system of a name such as ``ours:direct`` or ``floor``."""
    kind, _, setting = name.partition(":")
    return SYSTEMS[kind](setting, place)

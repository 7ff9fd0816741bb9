"""What uploads in one request and in parts share: bodies, and how they are sent."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..checksums import CRC64, Checksum
from ..exceptions import StorageError
from .blocks import Blocks
from .contract import BlockSource, Uploaded
from .errors import translated

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Body:
    """Bytes to send, and where in the object they begin."""

    source: BlockSource
    start: int
    blocks: Blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def checksum(self, asked: Checksum | None) -> int:
        """The checksum to send with it, on its first use."""
        # The source keeps these, whatever is sent.
        value = self.source.checksum(self.start, self.blocks)
        return value if asked is None or asked is CRC64 else asked.of(self.blocks)

    def release(self) -> None:
        """It is stored."""
        self.source.release(self.start, len(self))


@dataclass(frozen=True)
class Target:
    """The object that is being written, and how.

    Args:
        options: What every request about its bytes carries.
        storing: What the request carries that creates it.
        checksum: The one to send; None: none.
        copying: What requests carry about objects that they copy from.
    """

    bucket: str
    key: str
    options: Mapping[str, Any] = field(repr=False)  # a customer's key may be among them
    storing: Mapping[str, Any]
    checksum: Checksum | None
    copying: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _answers: list[int] = field(default_factory=list)

    @property
    def place(self) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self.key, **self.options}

    @property
    def given_up(self) -> dict[str, Any]:
        """Of giving up an upload: that takes no customer's key."""
        return {n: value for n, value in self.place.items() if not n.startswith("SSECustomer")}

    def with_data(self, value: int) -> dict[str, Any]:
        """How a request with data says its checksum."""
        return self.checksum.with_data(value) if self.checksum else {}

    def said(self, value: int) -> dict[str, Any]:
        """How a request says a checksum."""
        return {self.checksum.member: self.checksum.text(value)} if self.checksum else {}

    def count(self, answer: Any) -> None:
        """Count a request that was answered. Called by several threads."""
        self._answers.append(answer.get("ResponseMetadata", {}).get("RetryAttempts", 0))

    def uploaded(self, size: int) -> Uploaded:
        """What the upload came to."""
        return Uploaded(size, len(self._answers), sum(self._answers))


class Room:
    """Bytes that may be in flight; a part larger than that goes alone."""

    def __init__(self, size: int) -> None:
        self._free = self._size = size
        self._changed = threading.Condition()

    def enter(self, size: int) -> None:
        """Wait until there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= min(size, self._size))
            self._free -= size

    def leave(self, size: int) -> None:
        """Make room."""
        with self._changed:
            self._free += size
            self._changed.notify_all()


@dataclass
class Sender:
    """Sends bodies through a boto3 client, many at once over all uploads.

    Args:
        client: Signs and sends, again where that fails.
        concurrency: Parts in flight at most.
        memory_budget: Their bytes at most.
    """

    client: Any
    concurrency: int
    memory_budget: int
    _room: Room = field(init=False)
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._room = Room(self.memory_budget)
        self._pool = ThreadPoolExecutor(self.concurrency, "s3dcp-upload")

    def begin(self, size: int, send: Any) -> Future[Any]:
        """Have a part sent, when there is room for its bytes."""
        self._room.enter(size)
        try:
            future: Future[Any] = self._pool.submit(send)
        except BaseException:
            self._room.leave(size)
            raise
        future.add_done_callback(lambda _: self._room.leave(size))
        return future

    def confirmed(
        self, target: Target, answer: Any, size: int, said: Mapping[str, str]
    ) -> Uploaded:
        """What was uploaded; a server that did not repeat its checksum is asked what it has."""
        if not said or any(answer.get(name) != value for name, value in said.items()):
            with translated("HeadObject", target.bucket, target.key):
                found = self.look(target)
            if not is_as_sent(found, size, said):
                raise StorageError(
                    f"the object was sent with {size} bytes and stored with "
                    f"{found['ContentLength']}, or its checksum is another; save again",
                    bucket=target.bucket,
                    key=target.key,
                    operation="HeadObject",
                )
        return target.uploaded(size)

    def look(self, target: Target) -> Any:
        """What the server says of the object."""
        answer = self.client.head_object(**target.place, ChecksumMode="ENABLED")
        target.count(answer)
        return answer


def is_as_sent(found: Any, size: int, said: Mapping[str, str]) -> bool:
    """Whether an object has the size, and the checksum where the server knows one."""
    # That of parts joined says nothing about the whole.
    composite = found.get("ChecksumType") == "COMPOSITE"
    wrong = not composite and any(found.get(n, value) != value for n, value in said.items())
    return bool(found["ContentLength"] == size and not wrong)

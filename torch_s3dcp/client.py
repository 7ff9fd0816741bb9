"""Objects as files: readers over ranged requests, writers over uploads.

The shape of the reference's client, over any transport.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from .config import S3ClientConfig, check_config
from .exceptions import (
    EndpointError,
    ObjectChangedError,
    S3DCPError,
    TruncatedObjectError,
    WrongRangeError,
)
from .readers.contract import ReaderConstructor, S3Reader
from .registry import resolve_reader
from .segments import SegmentStream
from .transports import BotoTransport, ListPage, ObjectBody, ObjectInfo, Transport

if TYPE_CHECKING:
    from typing_extensions import Buffer

DEFAULT_READER = "sequential"

_WRITE_BLOCK = 8 * 1024 * 1024
_WRITE_AHEAD = 2


class S3Client:
    """Reads and writes objects through a transport.

    Args:
        region: Region of the buckets; None: as boto3 finds it.
        endpoint: Server to talk to; short for ``S3ClientConfig(endpoint_url=...)``.
        user_agent: Text that is added to the user agent.
        s3client_config: Settings of the connection.
        transport: Does the requests; by default boto3 with the settings above.
    """

    def __init__(
        self,
        region: str | None = None,
        *,
        endpoint: str | None = None,
        user_agent: str = "",
        s3client_config: S3ClientConfig | None = None,
        transport: Transport | None = None,
    ) -> None:
        config = check_config(s3client_config)
        if endpoint is not None:
            config = config.replace(endpoint_url=endpoint)
        self.region = region
        self.s3client_config = config
        self.transport = transport or BotoTransport(region, config, user_agent)

    def get_object(
        self,
        bucket: str,
        key: str,
        *,
        object_info: ObjectInfo | None = None,
        reader_constructor: ReaderConstructor | str | None = None,
    ) -> S3Reader:
        """A reader over one object. No request is made before the reader needs one.

        All requests of the reader see one version of the object: when it is replaced in
        between, reading raises :class:`ObjectChangedError`.

        Args:
            object_info: What is known of the object already; saves the HEAD request.
            reader_constructor: Constructor or registered name; default: sequential.
        """
        constructor = resolve_reader(reader_constructor, DEFAULT_READER)
        source = self.pin(bucket, key, object_info)
        return constructor(bucket, key, source.info, source.stream)

    def pin(self, bucket: str, key: str, object_info: ObjectInfo | None = None) -> PinnedObject:
        """Access to one version of an object: the one that the first request finds."""
        attempts = self.s3client_config.max_attempts
        return PinnedObject(self.transport, bucket, key, object_info, attempts)

    def put_object(self, bucket: str, key: str, storage_class: str | None = None) -> S3Writer:
        """A file to write an object through; the object appears when it is closed."""
        return S3Writer(self.transport, bucket, key, storage_class)

    def head_object(self, bucket: str, key: str) -> ObjectInfo:
        """Size and ETag of an object."""
        return self.transport.head(bucket, key)

    def delete_object(self, bucket: str, key: str) -> None:
        """Remove an object; one that does not exist is no error."""
        self.transport.delete(bucket, [key])

    def copy_object(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        """Copy an object on the server."""
        self.transport.copy(src_bucket, src_key, dst_bucket, dst_key)

    def list_objects(
        self, bucket: str, prefix: str = "", delimiter: str = "", max_keys: int = 1000
    ) -> Iterator[ListPage]:
        """Pages of objects; ``max_keys`` is the size of a page."""
        return self.transport.list(bucket, prefix, delimiter=delimiter, page_size=max_keys)


class PinnedObject:
    """One version of one object: the ETag of the first answer binds all later requests."""

    def __init__(
        self,
        transport: Transport,
        bucket: str,
        key: str,
        info: ObjectInfo | None,
        attempts: int,
    ) -> None:
        self._transport = transport
        self._bucket = bucket
        self._key = key
        self._info = info
        self._attempts = attempts
        self._lock = threading.Lock()

    def info(self) -> ObjectInfo:
        if self._info is None:
            found = self._transport.head(self._bucket, self._key)
            with self._lock:
                self._info = self._info or found
        return self._info

    def stream(self, start: int | None = None, end: int | None = None) -> ResumingStream:
        return ResumingStream(self._open, start or 0, end, self._attempts)

    def _open(self, start: int, end: int | None) -> ObjectBody:
        etag = self._info.etag if self._info else None
        body = self._transport.get(self._bucket, self._key, start, end, if_match=etag)
        with self._lock:
            known = self._info = self._info or body.info
        if not _same_version(known, body.info):
            # Not every server knows If-Match, and a first answer may come while waiting.
            body.close()
            raise ObjectChangedError(
                "the object was replaced while it was being read; load again",
                bucket=self._bucket,
                key=self._key,
            )
        return body


def _same_version(known: ObjectInfo, served: ObjectInfo) -> bool:
    comparable = known.etag is not None and served.etag is not None
    return known.size == served.size and (not comparable or known.etag == served.etag)


class ResumingStream(io.RawIOBase):
    """A byte range that survives broken connections.

    A body that breaks is continued at the next missing byte by a new request. Progress
    resets the count of attempts.

    Args:
        open_range: Requests ``[start, end)``.
        start: First byte.
        end: End, exclusive; None: the end of the object.
        attempts: Tries without a single new byte, after which the error is raised.
    """

    def __init__(
        self,
        open_range: Callable[[int, int | None], ObjectBody],
        start: int,
        end: int | None,
        attempts: int,
    ) -> None:
        self._open_range = open_range
        self._attempts = attempts
        self._failures = 0
        self._body = open_range(start, end)
        self._end = self._body.end

    @property
    def info(self) -> ObjectInfo:
        """Describes the whole object."""
        return self._body.info

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        while True:
            try:
                count = self._body.readinto(buffer)
            except (EndpointError, TruncatedObjectError) as error:
                self._resume(error)
            else:
                if count:
                    self._failures = 0
                return count

    def __iter__(self) -> Iterator[bytes]:
        return iter(partial(self.read, 1024 * 1024), b"")

    def close(self) -> None:
        self._body.close()
        super().close()

    def _resume(self, error: S3DCPError) -> None:
        position = self._body.position
        self._body.close()
        while True:
            self._failures += 1
            if self._failures >= self._attempts or self.closed:
                raise error.locate(attempts=self._failures)
            try:
                # What the transport tries again by itself and gives up on comes out of here.
                self._body = self._open_range(position, self._end)
                return
            except WrongRangeError as again:
                error = again


class S3Writer(io.RawIOBase):
    """A write-only file that becomes an object when it is closed.

    Used as a context manager: an exception inside leaves no object. Beside two
    blocks of 8 MiB, the upload holds a part of about 66 MiB: nobody knows how much will come.

    Raises:
        S3DCPError: From ``write`` or ``close``, when the upload failed.
    """

    def __init__(
        self, transport: Transport, bucket: str, key: str, storage_class: str | None = None
    ) -> None:
        self.bucket = bucket
        self.key = key
        self._pending = bytearray()
        self._size = 0
        self._blocks: queue.Queue[bytes | BaseException | None] = queue.Queue(_WRITE_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._upload,
            args=(transport, SegmentStream(self._produce()), storage_class),
            name=f"upload {key}",
            daemon=True,
        )
        self._thread.start()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Buffer, /) -> int:
        """Hand bytes over; returns when there is room, not when they have arrived."""
        if self.closed:
            raise ValueError("write to a closed S3Writer")
        size = memoryview(data).nbytes
        if size:
            self._pending += memoryview(data).cast("B")
        self._size += size
        while len(self._pending) >= _WRITE_BLOCK:
            self._send(bytes(self._pending[:_WRITE_BLOCK]))
            del self._pending[:_WRITE_BLOCK]
        return size

    def close(self) -> None:
        """Finish the upload. When it returns, the object is there."""
        if self.closed:
            return
        try:
            if self._pending:
                self._send(bytes(self._pending))
            self._send(None)
        finally:
            self._finish()
        if self._error is not None:
            raise self._error

    def abort(self, reason: BaseException | None = None) -> None:
        """Give up: no object appears."""
        if not self.closed:
            self._send(reason or InterruptedError("the upload was aborted"))
            self._finish()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self.abort(error)

    def _finish(self) -> None:
        self._thread.join()
        self._pending = bytearray()
        super().close()

    def _send(self, block: bytes | BaseException | None) -> None:
        """Hand a block over, unless the upload has ended already."""
        while self._thread.is_alive():
            try:
                self._blocks.put(block, timeout=0.1)
                return
            except queue.Full:
                continue
        if self._error is not None and not isinstance(block, BaseException):
            raise self._error

    def _produce(self) -> Iterator[memoryview]:
        while (block := self._blocks.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield memoryview(block)

    def _upload(
        self, transport: Transport, stream: SegmentStream, storage_class: str | None
    ) -> None:
        try:
            transport.upload(
                self.bucket, self.key, stream, expected_size=None, storage_class=storage_class
            )
        except BaseException as error:  # noqa: BLE001 - raised by close(), in the caller's thread
            self._error = error

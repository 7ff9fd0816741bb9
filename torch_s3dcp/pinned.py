"""One version of one object, read over connections that may break."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from .exceptions import (
    EndpointError,
    ObjectChangedError,
    S3DCPError,
    TruncatedObjectError,
    WrongRangeError,
)
from .transports import ObjectBody, ObjectInfo, Transport
from .transports.effort import Effort, making
from .transports.failures import kind_of
from .transports.retries import Limits

if TYPE_CHECKING:
    from typing_extensions import Buffer


class PinnedObject:
    """One version of one object: the ETag of the first answer binds all later requests."""

    def __init__(
        self,
        transport: Transport,
        bucket: str,
        key: str,
        info: ObjectInfo | None,
        limits: Limits,
    ) -> None:
        self._transport = transport
        self._bucket = bucket
        self._key = key
        self._info = info
        # Whether its size is known from more than an answer that may have been cut short.
        self._sure = True
        self._limits = limits
        self._lock = threading.Lock()

    def info(self) -> ObjectInfo:
        if self._info is None:
            found = self._transport.head(self._bucket, self._key)
            with self._lock:
                self._info = self._info or found
        return self._info

    def stream(self, start: int | None = None, end: int | None = None) -> ResumingStream:
        return ResumingStream(self._open, start or 0, end, self._limits)

    def _open(self, start: int, end: int | None) -> ObjectBody:
        etag = self._info.etag if self._info else None
        body = self._transport.get(self._bucket, self._key, start, end, if_match=etag)
        try:
            with self._lock:
                # What is sent without a range says of itself alone how long it is.
                self._agree(body.info, sure=start > 0 or end is not None)
        except S3DCPError:
            body.close()
            raise
        return body

    def _agree(self, served: ObjectInfo, *, sure: bool) -> None:
        """Compare an answer with what is known, and learn from it.

        Args:
            served: What the answer says of the object.
            sure: Whether its size is that of the object, even if the answer was cut short.
        """
        known = self._info
        comparable = known is not None and known.etag is not None and served.etag is not None
        if known is None:
            self._info, self._sure = served, sure
        elif known.etag != served.etag if comparable else known.size != served.size:
            raise self._changed()
        elif known.size == served.size:
            self._sure = self._sure or sure
        elif sure and self._sure:
            # Servers exist whose ETags stay as they are.
            raise self._changed()
        elif sure or (not self._sure and served.size > known.size):
            # The answer before was cut short.
            self._info, self._sure = served, sure
        else:
            raise WrongRangeError(
                f"the server sent an object of {served.size} bytes, which has {known.size}",
                bucket=self._bucket,
                key=self._key,
            )

    def _changed(self) -> ObjectChangedError:
        # Not every server knows If-Match, and a first answer may come while waiting.
        return ObjectChangedError(
            "the object was replaced while it was being read; load again",
            bucket=self._bucket,
            key=self._key,
        )


class ResumingStream(io.RawIOBase):
    """A byte range that survives broken connections.

    A body that breaks is continued at the next missing byte by a new request. All of its
    requests are one effort; progress resets the count of attempts.

    Args:
        open_range: Requests ``[start, end)``.
        start: First byte.
        end: End, exclusive; None: the end of the object.
        limits: How long to insist.
    """

    def __init__(
        self,
        open_range: Callable[[int, int | None], ObjectBody],
        start: int,
        end: int | None,
        limits: Limits,
    ) -> None:
        self._open_range = open_range
        self._effort = Effort(limits)
        self._start = start
        self._retries = 0
        self._closing = False
        self._lock = threading.Lock()
        self._end = end
        self._body = self._begin(start, end)
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
                    self._effort.progress(self._body.position - self._start)
                return count

    def __iter__(self) -> Iterator[bytes]:
        return iter(partial(self.read, 1024 * 1024), b"")

    def close(self) -> None:
        # First of all: closing the body wakes who waits for it, who is not to begin another.
        with self._lock:
            self._closing = True
            body = self._body
        body.close()
        super().close()

    @property
    def retries(self) -> int:
        """Requests that failed so far, here or inside the transport."""
        return self._retries + self._body.retries

    def _resume(self, error: S3DCPError) -> None:
        position = self._body.position
        self._body.close()
        self._retries += self._body.retries
        self._failed(error)
        body = self._begin(position, self._end)
        with self._lock:
            closing = self._closing
            if not closing:
                self._body = body
        if closing:
            # Whoever closes the stream did not see this one.
            body.close()
            raise ValueError("the stream was closed while it was continued")

    def _begin(self, position: int, end: int | None) -> ObjectBody:
        while True:
            try:
                # What the transport tries again by itself and gives up on comes out of here.
                with making(self._effort):
                    body = self._open_range(position, end)
            except WrongRangeError as error:
                self._failed(error)
            else:
                return body

    def _failed(self, error: S3DCPError) -> None:
        self._retries += 1
        effort = self._effort
        kind = None if self._closing else kind_of(error)
        if self._end is not None:
            error = error.locate(byte_range=(self._start, self._end))
        if not effort.failed(kind, error) or self._closing:
            raise error.locate(attempts=effort.failures) from error

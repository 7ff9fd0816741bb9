"""A file that becomes an object when it is closed."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .segments import SegmentStream
from .transports import Transport

if TYPE_CHECKING:
    from typing_extensions import Buffer

_WRITE_BLOCK = 8 * 1024 * 1024
_WRITE_AHEAD = 2


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

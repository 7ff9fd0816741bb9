# ruff: noqa: S101 - a suite is made of assertions
"""What transports promise that put objects together, as tests. Inherit it beside the other suite::

    class TestMyTransport(ComposeSuite, TransportSuite): ...

Needs ``pytest``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import pytest

from ..checksums import CRC64
from ..exceptions import IntegrityError, ObjectNotFoundError, PreconditionFailedError
from ..transports import Composes, CopiedRange
from .transport_suite import MIB, StreamFailed, Uneven, content

if TYPE_CHECKING:
    from ..transports import Transport

    class _Composing(Transport, Composes): ...


SOURCE = content(13 * MIB)


def _range(transport: Transport, bucket: str, start: int, end: int) -> CopiedRange:
    etag = transport.head(bucket, "source").etag
    checksum = CRC64.update(memoryview(SOURCE)[start:end], 0)
    return CopiedRange(bucket, "source", start, end, etag, checksum)


class ComposeSuite:
    """What a transport must do that is a :class:`~torch_s3dcp.transports.Composes`.

    Attributes:
        checks_versions: Whether the server heeds the version that is asked for.
        checks_copies: Whether it says the checksum of what it copied.
    """

    checks_versions: ClassVar[bool] = True
    checks_copies: ClassVar[bool] = True

    def open_uploads(self, bucket: str) -> int:
        """How many multipart uploads are open in the bucket."""
        return 0

    @pytest.mark.parametrize("size", [0, 1, 11 * MIB + 1])
    def test_ranges_come_first_and_then_the_stream(
        self, transport: _Composing, bucket: str, size: int
    ) -> None:
        transport.put(bucket, "source", SOURCE)
        spans = [(7, 5 * MIB + 8), (5 * MIB + 9, 13 * MIB), (1000, 5 * MIB + 1000)]
        pieces = [_range(transport, bucket, *span) for span in spans]
        done = transport.compose(bucket, "object", pieces, Uneven(size), expected_size=size)
        with transport.get(bucket, "object") as body:
            found = body.readall()
        assert found == b"".join(SOURCE[a:b] for a, b in spans) + content(size)
        assert done.size == len(found)
        assert self.open_uploads(bucket) == 0

    def test_the_last_range_may_be_short(self, transport: _Composing, bucket: str) -> None:
        transport.put(bucket, "source", SOURCE)
        pieces = [_range(transport, bucket, 0, 6 * MIB), _range(transport, bucket, 5, 15)]
        transport.compose(bucket, "object", pieces, Uneven(0), expected_size=0)
        with transport.get(bucket, "object") as body:
            assert body.readall() == SOURCE[: 6 * MIB] + SOURCE[5:15]

    @pytest.mark.parametrize("size", [0, 11 * MIB])
    def test_what_is_gone_is_named(self, transport: _Composing, bucket: str, size: int) -> None:
        transport.put(bucket, "source", SOURCE)
        there = _range(transport, bucket, 0, 6 * MIB)
        gone = dataclasses.replace(there, key="gone")
        with pytest.raises(ObjectNotFoundError) as caught:
            transport.compose(bucket, "object", [there, gone], Uneven(size), expected_size=size)
        assert caught.value.context["key"] == "gone"
        self._nothing_is_left(transport, bucket)

    def test_another_version_is_not_taken(self, transport: _Composing, bucket: str) -> None:
        if not self.checks_versions:
            pytest.skip("declared to ignore versions")
        transport.put(bucket, "source", SOURCE)
        piece = _range(transport, bucket, 0, 6 * MIB)
        transport.put(bucket, "source", SOURCE[::-1])
        with pytest.raises(PreconditionFailedError):
            transport.compose(bucket, "object", [piece], Uneven(3), expected_size=3)
        self._nothing_is_left(transport, bucket)

    def test_other_bytes_are_not_taken(self, transport: _Composing, bucket: str) -> None:
        if not self.checks_copies:
            pytest.skip("declared to take no checksums of copies")
        transport.put(bucket, "source", SOURCE)
        piece = _range(transport, bucket, 0, 6 * MIB)
        wrong = dataclasses.replace(piece, checksum=piece.checksum ^ 1)
        with pytest.raises(IntegrityError):
            transport.compose(bucket, "object", [wrong], Uneven(3), expected_size=3)
        self._nothing_is_left(transport, bucket)

    def test_a_failing_stream_leaves_no_ranges_behind(
        self, transport: _Composing, bucket: str
    ) -> None:
        transport.put(bucket, "source", SOURCE)
        piece = _range(transport, bucket, 0, 6 * MIB)
        stream = Uneven(9 * MIB, error=StreamFailed("mine"))
        with pytest.raises(StreamFailed):
            transport.compose(bucket, "object", [piece], stream, expected_size=9 * MIB)
        self._nothing_is_left(transport, bucket)

    def _nothing_is_left(self, transport: Transport, bucket: str) -> None:
        with pytest.raises(ObjectNotFoundError):
            transport.head(bucket, "object")
        assert self.open_uploads(bucket) == 0

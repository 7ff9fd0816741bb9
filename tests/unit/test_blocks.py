"""Bodies in blocks are the bytes of their blocks; checksums of pieces are those of the whole."""

from __future__ import annotations

import base64
import io
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.checksums import combinable
from torch_s3dcp.transports.blocks import Blocks

SIZES = st.integers(0, 60) | st.integers(16_000, 17_000)
PIECES = st.lists(SIZES.map(lambda size: random.Random(size).randbytes(size)), max_size=8)
MIB = 2**20


def blocks_of(pieces: list[bytes]) -> Blocks:
    return Blocks(memoryview(piece) for piece in pieces)


@given(PIECES)
def test_blocks_are_sent_in_order(pieces: list[bytes]) -> None:
    body = blocks_of(pieces)
    whole = b"".join(pieces)
    assert len(body) == len(whole)
    assert b"".join(body) == whole
    assert b"".join(body) == whole, "another try sends all of it again"
    assert b"".join(iter(lambda: body.read(1000), b"")) == whole


@given(PIECES, st.lists(st.tuples(st.sampled_from(["read", "set", "end"]), st.integers(0, 70_000))))
def test_it_reads_like_a_file(pieces: list[bytes], steps: list[tuple[str, int]]) -> None:
    body, oracle = blocks_of(pieces), io.BytesIO(b"".join(pieces))
    for kind, number in steps:
        if kind == "read":
            assert body.read(number) == oracle.read(number)
        elif kind == "set":
            # Beyond the end there is nothing to send.
            assert body.seek(number) == oracle.seek(min(number, len(body)))
        else:
            assert body.seek(0, io.SEEK_END) == oracle.seek(0, io.SEEK_END)
        assert body.tell() == oracle.tell()
    assert body.read() == oracle.read()


def test_large_memory_is_not_copied_and_small_memory_is_joined() -> None:
    large = memoryview(bytearray(3 * MIB + 5))
    sent = list(Blocks([memoryview(b"a"), memoryview(b"bc"), large, memoryview(b"d")]))
    assert [len(block) for block in sent] == [3, MIB, MIB, MIB, 5, 1]
    assert all(block.obj is large.obj for block in sent[1:5])


@pytest.mark.parametrize("name", ["CRC64NVME", "CRC32C", "CRC32"])
@given(data=st.data())
def test_checksums_of_pieces_make_that_of_the_whole(name: str, data: Any) -> None:
    pieces = data.draw(PIECES)
    checksum = combinable(name)
    assert checksum is not None
    whole = checksum.of([memoryview(b"".join(pieces))])
    assert checksum.of(map(memoryview, pieces)) == whole
    total = 0
    for piece in pieces:
        total = checksum.combine(total, checksum.of([memoryview(piece)]), len(piece))
    assert total == whole


def test_values_are_those_that_s3_documents() -> None:
    """The check value of "123456789" of each polynomial; CRC-32 is zlib's."""
    digits = [memoryview(b"123456789")]
    expected = {
        "CRC64NVME": 0xAE8B14860A799888.to_bytes(8, "big"),
        "CRC32C": 0xE3069283.to_bytes(4, "big"),
        "CRC32": zlib.crc32(digits[0]).to_bytes(4, "big"),
    }
    for name, value in expected.items():
        checksum = combinable(name)
        assert checksum is not None
        assert checksum.text(checksum.of(digits)) == base64.b64encode(value).decode()
    assert combinable(None) == combinable("CRC64NVME")
    assert combinable("SHA256") is None

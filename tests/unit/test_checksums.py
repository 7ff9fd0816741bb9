"""Checksums against zlib and bit by bit, with and without what makes them faster."""

from __future__ import annotations

import importlib.util
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torch_s3dcp.checksums
from torch_s3dcp.checksums import CRC64, ZIP_CRC

BLOCKS = st.lists(st.binary(max_size=3000), max_size=5)


def crc64_bit_by_bit(content: bytes) -> int:
    """By the definition: polynomial 0xAD93D23594C93659, reflected, all ones before and after."""
    value = 2**64 - 1
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x9A6C9329AC4BC9B5 if value & 1 else 0)
    return value ^ (2**64 - 1)


@given(BLOCKS)
def test_crc_32_is_that_of_zlib(blocks: list[bytes]) -> None:
    joined = b"".join(blocks)
    assert ZIP_CRC.of(map(memoryview, blocks)) == zlib.crc32(joined)
    value = 0
    for block in blocks:
        value = ZIP_CRC.combine(value, ZIP_CRC.update(memoryview(block), 0), len(block))
    assert value == zlib.crc32(joined)


@given(st.binary(max_size=200))
def test_crc_64_is_as_it_is_defined(content: bytes) -> None:
    assert CRC64.update(memoryview(content), 0) == crc64_bit_by_bit(content)


def test_the_faster_crc_32_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    spec = torch_s3dcp.checksums.__spec__
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, without)
    spec.loader.exec_module(without)
    assert without.ZIP_CRC.update is zlib.crc32
    assert without.ZIP_CRC.of([memoryview(b"123456789")]) == 0xCBF43926

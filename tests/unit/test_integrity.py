"""What an item is compared with, at each level. torch.save and zlib are the oracles."""

from __future__ import annotations

import io
import zlib
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.archive import LayoutError, predict_data_offset
from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.integrity import DamagedItem, Level, Verification, check_level, joined
from torch_s3dcp.plan import StoredItem
from torch_s3dcp.ranges import ItemRange

DATA = torch.arange(1000, dtype=torch.int32)
NBYTES = DATA.numel() * 4


def archive() -> bytearray:
    output = io.BytesIO()
    torch.save(DATA, output)
    return bytearray(output.getvalue())


def data_offset(whole: bytearray) -> int:
    offset = predict_data_offset(len(whole), NBYTES)
    assert offset is not None
    return offset


def stored(**settings: Any) -> StoredItem:
    return StoredItem("file", ItemRange(0, len(archive())), **settings)


@pytest.mark.parametrize("level", get_args(Level))
def test_a_damaged_archive_is_found_only_if_all_is_to_be_verified(level: Level) -> None:
    whole = archive()
    sound, damaged = Verification(stored(), level), Verification(stored(), level)
    sound.archive(memoryview(whole))
    assert sound.enough is (level == "full")
    whole[data_offset(whole) + 7] ^= 1
    if level == "full":
        with pytest.raises(DamagedItem):
            damaged.archive(memoryview(whole))
    else:
        damaged.archive(memoryview(whole))
    assert not damaged.enough


def test_nothing_is_known_of_transformed_items() -> None:
    verification = Verification(stored(transforms=("zstd",)), "full")
    verification.archive(memoryview(b"PK\x03\x04 is how they may begin by chance"))
    assert not verification.enough


@pytest.mark.parametrize("level", get_args(Level))
def test_the_trailer_tells_the_checksum_of_the_data(level: Level) -> None:
    whole = archive()
    begin = data_offset(whole)
    data, trailer = whole[begin : begin + NBYTES], memoryview(whole)[begin + NBYTES :]
    verification = Verification(stored(), level)
    crc = zlib.crc32(data)
    assert verification.trailer(trailer, NBYTES) == (0 if level == "off" else crc)
    if level != "off":
        with pytest.raises(LayoutError):
            verification.trailer(trailer, NBYTES + 4)


def test_the_checksum_of_the_data_decides_where_there_is_one() -> None:
    verification = Verification(stored(), "full")
    verification.compare(5, 5)
    assert verification.enough
    verification.compare(0, 5)
    assert not verification.enough
    with pytest.raises(DamagedItem):
        verification.compare(6, 5)


@given(st.lists(st.binary(min_size=1, max_size=50)), st.randoms(use_true_random=False))
def test_checksums_of_pieces_are_joined_in_order(pieces: list[bytes], random: Any) -> None:
    sums, end = [], 0
    for piece in pieces:
        sums.append((end, end + len(piece), zlib.crc32(piece)))
        end += len(piece)
    random.shuffle(sums)
    assert joined(sums) == zlib.crc32(b"".join(pieces))


def test_levels_are_checked() -> None:
    assert [check_level(level) for level in get_args(Level)] == list(get_args(Level))
    with pytest.raises(ConfigurationError, match="integrity"):
        check_level("most")

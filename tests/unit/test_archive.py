"""The layout of torch.save archives. torch itself and zipfile are the oracles."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.archive import LayoutError, parse_header, parse_trailer, predict_data_offset

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def archive_of(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def data_offset(archive: bytes) -> int:
    """Where zipfile finds the raw data."""
    info = zipfile.ZipFile(io.BytesIO(archive)).getinfo("archive/data/0")
    name, extra = struct.unpack_from("<HH", archive, info.header_offset + 26)
    return info.header_offset + 30 + name + extra


@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 5), max_size=9))
def test_the_offset_is_predicted_from_two_numbers(dtype, shape) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    archive = archive_of(tensor)
    assert predict_data_offset(len(archive), tensor.nbytes) == data_offset(archive)


@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 5), max_size=5))
def test_header_and_trailer_describe_the_tensor(dtype, shape) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    archive, size = archive_of(tensor), tensor.nbytes
    start = data_offset(archive)
    stored = parse_header(archive[:start])
    assert f"torch.{stored.dtype}" == str(dtype)
    assert stored.shape == tuple(shape)
    assert stored.strides == tensor.stride()
    assert stored.contiguous
    assert parse_trailer(archive[start + size :], size) == zlib.crc32(archive[start : start + size])


@pytest.mark.parametrize("size", [2**32 - 2, 2**32 - 1, 2**32, 5 * 2**30])
def test_archives_beyond_4_gib(size) -> None:
    # Lengths of archives of so many bytes, as torch 2.13 wrote them.
    overhead = {2**32 - 2: 1611, 2**32 - 1: 1630}.get(size, 1629)
    assert predict_data_offset(size + overhead, size) == 704


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(10.0)[2:5],
        torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.zeros(1).expand(4),
    ],
)
def test_other_strides_are_seen(tensor) -> None:
    archive = archive_of(tensor)
    assert not parse_header(archive[: data_offset(archive)]).contiguous


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex64).conj(),
        torch._neg_view(torch.ones(3)),
        torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
    ],
)
def test_what_is_more_than_a_plain_tensor_is_refused(tensor) -> None:
    archive = archive_of(tensor)
    with pytest.raises(LayoutError):
        parse_header(archive[: data_offset(archive)])


def test_several_storages_are_refused() -> None:
    buffer = io.BytesIO()
    torch.save([torch.zeros(3), torch.ones(3)], buffer)
    archive = buffer.getvalue()
    with pytest.raises(LayoutError):
        parse_header(archive[: data_offset(archive)])


def test_a_length_that_no_layout_has_is_not_predicted() -> None:
    assert predict_data_offset(100, 0) is None
    assert predict_data_offset(100, 200) is None
    assert predict_data_offset(10_000, 400) is None


@pytest.mark.parametrize("more", range(1, 200, 3))
def test_a_wrong_prediction_is_found_out(more) -> None:
    archive = archive_of(torch.zeros(100))
    guess = predict_data_offset(len(archive) + more, 400)
    if guess is not None and guess != data_offset(archive):
        with pytest.raises(LayoutError):
            parse_header(archive[:guess])
    assert data_offset(archive) == 704


@given(st.data())
def test_a_changed_byte_never_gives_another_tensor(data) -> None:
    tensor = torch.zeros(7, dtype=torch.int32)
    archive = bytearray(archive_of(tensor))
    start = data_offset(bytes(archive))
    at = data.draw(st.integers(0, start - 1))
    archive[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        stored = parse_header(bytes(archive[:start]))
    except LayoutError:
        return
    # Padding, times and checksums of the small records do not matter; what does may differ
    # only so that the caller's comparison with the metadata sees it.
    assert stored.data_offset == start


@given(st.binary(max_size=900))
def test_random_bytes_give_a_layout_error(noise) -> None:
    with pytest.raises(LayoutError):
        parse_header(noise)
    with pytest.raises(LayoutError):
        parse_trailer(noise, 10)

"""Archives made from a mould are the very bytes of torch.save; other moulds are not used."""

from __future__ import annotations

import io
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp.archive import predict_data_offset
from torch_s3dcp.envelopes import Envelope
from torch_s3dcp.items import serialize_tensor, storage_view

DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64, torch.uint16]


def saved(tensor: torch.Tensor) -> bytes:
    out = io.BytesIO()
    torch.save(tensor, out)
    return out.getvalue()


def parts_of(tensor: torch.Tensor) -> tuple[bytes, bytes, bytes]:
    """Header, data and trailer of an archive."""
    archive, data = saved(tensor), bytes(storage_view(tensor))
    place = predict_data_offset(len(archive), len(data))
    assert place is not None
    return archive[:place], data, archive[place + len(data) :]


def random(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, shape, generator=source).to(dtype)


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.permutations(range(5)),
    st.integers(0, 1000),
)
def test_another_tensor_of_the_kind_is_stored_as_torch_does(
    dtype: torch.dtype, shape: list[int], order: list[int], seed: int
) -> None:
    dims = [dim for dim in order if dim < len(shape)]
    first, second = (random(dtype, shape, seed + n).permute(dims) for n in (0, 1))
    assert b"".join(serialize_tensor(first)) == saved(first)
    assert b"".join(serialize_tensor(second)) == saved(second)
    header, data, trailer = parts_of(first)
    envelope = Envelope.around(header, trailer, len(data))
    assert envelope is not None
    crc = zlib.crc32(storage_view(second))
    filled = envelope.header + bytes(storage_view(second)) + envelope.trailer_for(crc)
    assert filled == saved(second)


@pytest.mark.parametrize("place", range(0, 880, 7))
def test_a_mould_that_is_not_understood_is_not_used(place: int) -> None:
    header, data, trailer = parts_of(random(torch.float32, [50], 1))
    _, others, expected = map(bytearray, parts_of(random(torch.float32, [50], 2)))
    damaged = bytearray(trailer)
    for archive in (damaged, expected):
        archive[place % len(trailer)] ^= 0x15
    mould = Envelope.around(header, bytes(damaged), len(data))
    # What it does not look at it hands on; all that it fills in must have been right.
    assert mould is None or mould.trailer_for(zlib.crc32(others)) == expected


@given(st.binary(max_size=1000), st.binary(max_size=1000), st.integers(0, 2**40))
def test_noise_is_no_mould(header: bytes, trailer: bytes, size: int) -> None:
    assert Envelope.around(header, trailer, size) is None


def test_tensors_with_more_to_tell_are_left_to_torch() -> None:
    plain = torch.arange(10.0)
    serialize_tensor(plain)
    marked = torch.arange(10.0)
    marked.note = "kept"  # type: ignore[attr-defined]
    for tensor in (marked, plain.clone().requires_grad_(), torch._neg_view(plain), plain[2:5]):
        assert b"".join(serialize_tensor(tensor)) == saved(tensor)

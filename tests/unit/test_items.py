"""Items: the very bytes of torch.save, without copying the data."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint._extension import ExtensionRegistry, ZStandard

from torch_s3dcp.decoding import copy_into, load_tensor, narrow, open_item
from torch_s3dcp.exceptions import InvalidCheckpointError, S3DCPError, SizeMismatchError
from torch_s3dcp.items import (
    descriptors_of,
    serialize_bytes,
    serialize_tensor,
    to_stored_form,
)
from torch_s3dcp.segments import RangeView, address_of

# Without those that torch.save itself refuses: some quantised ones, and those of less than a byte.
DTYPES = sorted(
    {
        dtype
        for name, dtype in vars(torch).items()
        if isinstance(dtype, torch.dtype) and not re.match(r"q|bit|u?int[1-7]$", name)
    },
    key=str,
)
ORDINARY = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def saved(value: Any) -> bytes:
    """The oracle: what torch itself writes."""
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def joined(tensor: torch.Tensor, *extensions: Any) -> bytes:
    return b"".join(serialize_tensor(tensor, extensions))


def loaded(data: bytes) -> torch.Tensor:
    return load_tensor(io.BytesIO(data))


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of random bytes; bools are 0 or 1."""
    count = torch.empty(shape, dtype=dtype, device="meta").nbytes
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor: torch.Tensor) -> bytes:
    if not tensor.numel():
        return b""
    plain = tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return bytes(plain.flatten().view(torch.uint8).numpy())


class Subclass(torch.Tensor):
    """A tensor subclass, as many libraries have one."""


def subclass() -> torch.Tensor:
    return torch.arange(6.0).as_subclass(Subclass)


VIEWS: dict[str, Callable[[], torch.Tensor]] = {
    "0-d": lambda: torch.tensor(3.5),
    "empty": lambda: torch.zeros(0, 3),
    "one element": lambda: torch.ones(1),
    "big": lambda: some(torch.float32, 1024, 1025),
    "transposed": lambda: some(torch.float32, 5, 7).t(),
    "permuted": lambda: some(torch.bfloat16, 3, 4, 5).permute(2, 0, 1),
    "channels last": lambda: some(torch.float32, 2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: some(torch.float32, 3, 1).expand(3, 50),
    "rows": lambda: some(torch.float32, 10, 4)[3:6],
    "columns": lambda: some(torch.float32, 10, 4)[:, 1:3],
    "steps": lambda: some(torch.int64, 30)[5:25:3],
    "conjugated": lambda: some(torch.complex64, 4, 4).conj(),
    "negated": lambda: torch.arange(8).to(torch.complex64).conj().imag,
    "imaginary part": lambda: some(torch.complex64, 4).imag,
    "quantised": lambda: torch.quantize_per_tensor(torch.arange(9.0), 0.5, 3, torch.quint8),
    "quantised by channel": lambda: torch.quantize_per_channel(
        torch.ones(2, 3), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8
    ),
    "parameter": lambda: torch.nn.Parameter(torch.arange(4.0)),
    "needs a gradient": lambda: torch.arange(4.0, requires_grad=True),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse rows": lambda: torch.eye(4).to_sparse_csr(),
}
each_view = pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse CSR", "ignore:.*quantiz", "ignore:ComplexHalf", "ignore:TypedStorage"
)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (4, 6)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_stored_as_torch_does(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = some(dtype, *shape)
    data = joined(tensor)
    assert data == saved(tensor)
    back = loaded(data)
    assert (back.dtype, back.shape, back.stride()) == (dtype, tensor.shape, tensor.stride())
    assert bits(back) == bits(tensor)


def test_no_dtype_is_forgotten() -> None:
    assert {torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.complex32} <= set(DTYPES)


@each_view
def test_every_kind_is_stored_as_torch_does(make: Callable[[], torch.Tensor]) -> None:
    tensor = make()
    assert joined(tensor) == saved(tensor)


@each_view
def test_the_stored_form_has_the_same_values(make: Callable[[], torch.Tensor]) -> None:
    tensor = make()
    stored = to_stored_form(tensor)
    assert not stored.requires_grad
    assert stored.shape == tensor.shape
    assert stored.dtype == tensor.dtype
    assert joined(stored) == saved(stored)
    back = loaded(joined(stored))
    assert back.layout == tensor.layout
    if tensor.is_quantized:
        back, tensor = back.dequantize(), tensor.dequantize()
    if tensor.layout is not torch.strided:
        back, tensor = back.to_dense(), tensor.to_dense()
    assert bits(back) == bits(tensor.detach())


@pytest.mark.parametrize("name", ["rows", "columns", "steps", "expanded", "imaginary part"])
def test_the_stored_form_of_a_view_leaves_the_rest_behind(name: str) -> None:
    tensor = VIEWS[name]()
    stored = to_stored_form(tensor)
    assert stored.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("name", ["big", "transposed", "channels last", "0-d", "quantised"])
def test_the_stored_form_of_a_whole_tensor_is_no_copy(name: str) -> None:
    tensor = VIEWS[name]()
    stored = to_stored_form(tensor)
    assert stored.data_ptr() == tensor.data_ptr()
    assert stored.stride() == tensor.stride()


def test_a_subclass_is_stored_as_torch_does() -> None:
    assert joined(subclass()) == saved(subclass())
    assert type(torch.load(io.BytesIO(joined(subclass())), weights_only=False)) is Subclass
    with pytest.raises(InvalidCheckpointError, match="Subclass"):
        loaded(joined(subclass()))
    with torch.serialization.safe_globals([Subclass]):
        assert bits(loaded(joined(subclass()))) == bits(torch.arange(6.0))


LARGE = {
    "whole": lambda: torch.randn(300, 400),
    "transposed": lambda: torch.randn(300, 400).t(),
    "channels last": lambda: torch.randn(4, 3, 100, 100).to(memory_format=torch.channels_last),
    "parameter": lambda: torch.nn.Parameter(torch.randn(300, 400)),
    "negated": lambda: torch._neg_view(torch.randn(300, 400)),
    "rows": lambda: to_stored_form(torch.randn(900, 400)[300:600]),
    "rows of bfloat16": lambda: to_stored_form(torch.randn(900, 400).bfloat16()[1:600]),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_data_is_not_copied(name: str) -> None:
    tensor = LARGE[name]()
    assert joined(tensor) == saved(tensor)
    storage = tensor.untyped_storage()
    blocks = serialize_tensor(tensor)
    places = [address_of(block) for block in blocks]
    assert (storage.data_ptr(), storage.nbytes()) in places
    copied = sum(size for start, size in places if start != storage.data_ptr())
    assert copied < 4096


def test_a_change_before_the_upload_shows_through() -> None:
    tensor = torch.zeros(50_000)
    blocks = serialize_tensor(tensor)
    tensor.fill_(7)
    assert torch.equal(loaded(b"".join(blocks)), torch.full((50_000,), 7.0))


def test_rows_of_a_larger_tensor_are_stored_from_where_they_lie() -> None:
    whole = torch.randn(900, 400)
    stored = to_stored_form(whole[300:600])
    assert stored.data_ptr() == whole[300:].data_ptr()
    assert joined(stored) == saved(whole[300:600].clone())
    del whole
    torch.zeros(900, 400).fill_(9.0)
    assert torch.equal(loaded(joined(stored)), stored)


def test_blocks_keep_the_data_alive() -> None:
    blocks = serialize_tensor(torch.full((100_000,), 3.0))
    for _ in range(5):
        torch.zeros(100_000).fill_(9.0)
    assert torch.equal(loaded(b"".join(blocks)), torch.full((100_000,), 3.0))


@given(
    st.sampled_from(ORDINARY),
    st.lists(st.integers(0, 5), max_size=4),
    st.randoms(use_true_random=False),
    st.data(),
)
def test_any_view_makes_the_trip(
    dtype: torch.dtype, shape: list[int], order: Any, data: st.DataObject
) -> None:
    dims = list(range(len(shape)))
    order.shuffle(dims)
    tensor = some(dtype, *shape).permute(dims)
    for dim in range(tensor.dim()):
        start = data.draw(st.integers(0, tensor.size(dim)))
        step = data.draw(st.integers(1, 3))
        tensor = tensor[(slice(None),) * dim + (slice(start, None, step),)]
    assert joined(tensor) == saved(tensor)
    stored = to_stored_form(tensor)
    assert joined(stored) == saved(stored)
    assert bits(loaded(joined(stored))) == bits(tensor)


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
def test_narrow_is_slicing(shape: list[int], data: st.DataObject) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    offsets = [data.draw(st.integers(0, size)) for size in shape]
    places = list(zip(shape, offsets, strict=True))
    lengths = [data.draw(st.integers(0, size - offset)) for size, offset in places]
    slices = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
    part = narrow(tensor, offsets, lengths)
    assert torch.equal(part, tensor[slices])
    assert part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [
        ([0, 0], [3, 5]),
        ([0, 0], [4, 4]),
        ([2, 0], [2, 4]),
        ([1, 0], [3, 4]),
        ([-1, 0], [1, 4]),
        ([0, 0], [-1, 4]),
        ([0], [3]),
        ([0, 0, 0], [3, 4, 1]),
        ([], []),
        ([0, 0], [3]),
    ],
)
def test_a_part_that_is_not_there_is_refused(offsets: list[int], lengths: list[int]) -> None:
    with pytest.raises(SizeMismatchError, match=r"\[3, 4\]"):
        narrow(torch.zeros(3, 4), offsets, lengths)


def test_copying_casts_but_never_broadcasts() -> None:
    target = torch.zeros(2, 3, dtype=torch.float16)
    copy_into(target, torch.arange(6).reshape(2, 3))
    assert target.tolist() == [[0, 1, 2], [3, 4, 5]]
    for shape in [(3,), (1, 3), (6,), (3, 2), ()]:
        with pytest.raises(SizeMismatchError, match=r"\[2, 3\]"):
            copy_into(target, torch.zeros(shape))


def through_zstd(data: bytes) -> tuple[bytes, list[str]]:
    extensions = [ZStandard()]
    blocks = serialize_bytes(data, extensions)
    descriptors = descriptors_of(extensions)
    assert descriptors
    return b"".join(blocks), descriptors


@each_view
def test_zstd_makes_the_trip(make: Callable[[], torch.Tensor]) -> None:
    tensor = to_stored_form(make())
    extensions = [ZStandard()]
    data, descriptors = joined(tensor, *extensions), descriptors_of(extensions)
    assert data[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame"
    # Several requests read one item: it lies in the middle of an object.
    view = RangeView(io.BytesIO(b"before" + data + b"after"), 6, 6 + len(data))
    item = open_item(view, descriptors or [], ExtensionRegistry())  # type: ignore[arg-type]
    assert joined(load_tensor(item)) == joined(loaded(saved(tensor)))


@given(st.binary(max_size=3000))
def test_blobs_make_the_trip(data: bytes) -> None:
    assert b"".join(serialize_bytes(data)) == data
    stored, descriptors = through_zstd(data)
    item = open_item(io.BytesIO(stored), descriptors, ExtensionRegistry())
    assert item.read(-1) == data
    assert descriptors_of([]) is None


def test_a_blob_is_not_copied() -> None:
    data = bytes(100_000)
    (block,) = serialize_bytes(data)
    assert address_of(block) == address_of(data)


@pytest.mark.parametrize("descriptor", ["nobody.knows", "", "stream.zstd/999"])
def test_an_unknown_extension_is_named(descriptor: str) -> None:
    with pytest.raises(InvalidCheckpointError, match="extension") as caught:
        open_item(io.BytesIO(), [descriptor], ExtensionRegistry())
    assert descriptor in str(caught.value)


ITEM = saved(torch.arange(64.0).reshape(8, 8))


@given(st.integers(0, len(ITEM) - 1))
def test_half_an_item_is_refused(end: int) -> None:
    with pytest.raises(InvalidCheckpointError, match="cannot be decoded"):
        loaded(ITEM[:end])


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidCheckpointError):
        loaded(data)


@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    damaged = bytearray(ITEM)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(ITEM) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = loaded(bytes(damaged))
    except InvalidCheckpointError:
        return
    assert isinstance(value, torch.Tensor)


@given(st.data())
def test_damage_to_a_compressed_item_is_refused(data: st.DataObject) -> None:
    stored, descriptors = through_zstd(ITEM)
    end = data.draw(st.integers(0, len(stored) - 1))
    junk = stored[:end] + data.draw(st.binary(max_size=20))
    if junk[: len(stored)] == stored:
        return
    item = open_item(io.BytesIO(junk), descriptors, ExtensionRegistry())
    with pytest.raises(InvalidCheckpointError):
        load_tensor(item)


@pytest.mark.parametrize("value", [{"a": torch.ones(1)}, [1, 2], "text", None])
def test_what_is_not_a_tensor_is_refused(value: Any) -> None:
    with pytest.raises(InvalidCheckpointError, match=f"{type(value).__name__}, not a tensor"):
        loaded(saved(value))


def test_code_in_an_item_does_not_run(tmp_path: Any) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return (tmp_path / "executed").touch, ()

    with pytest.raises(InvalidCheckpointError):
        loaded(saved(Touch()))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("error", [S3DCPError("planned"), ConnectionResetError("planned")])
def test_what_the_reader_raises_is_not_called_damage(error: Exception) -> None:
    class Broken(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            raise error

        def read(self, size: int | None = -1, /) -> bytes:
            raise error

    with pytest.raises(type(error), match="planned"):
        load_tensor(Broken(ITEM))


def test_an_item_is_a_stock_archive() -> None:
    with zipfile.ZipFile(io.BytesIO(joined(torch.arange(64.0)))) as archive:
        assert archive.testzip() is None
        assert {name.split("/", 1)[1] for name in archive.namelist()} >= {"data.pkl", "data/0"}

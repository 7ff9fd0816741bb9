"""What a pickle may take: its own bytes some times, never more than that on its word."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from campaigns._gadgets import archive
from torch_s3dcp.blobs import vetted
from torch_s3dcp.decoding import copy_into, load_tensor, narrow
from torch_s3dcp.exceptions import InvalidCheckpointError
from torch_s3dcp.limits import Allowance, TooMuchError

MIB = 2**20


def text(size: int) -> bytes:
    """Pushes a text and remembers it as number 0."""
    return b"X" + size.to_bytes(4, "little") + b"a" * size + b"q\0"


def encoded(size: int) -> tuple[bytes, bytes]:
    first = b"c_codecs\nencode\nq\1" + text(size) + b"X\6\0\0\0latin1q\2"
    return first + b"\x86R", b"h\1h\0h\2\x86R"


def in_bytearrays(size: int) -> tuple[bytes, bytes]:
    first, _ = encoded(size)
    return first + b"q\3cbuiltins\nbytearray\nq\4h\3\x85R", b"h\4h\3\x85R"


def in_paths(size: int) -> tuple[bytes, bytes]:
    return b"cpathlib\nPurePosixPath\nq\1" + text(size) + b"\x85R", b"h\1h\0\x85R"


def in_attributes(size: int) -> tuple[bytes, bytes]:
    items = b"".join(b"X\6\0\0\0%06dK\1" % number for number in range(size // 16))
    first = b"cargparse\nNamespace\nq\1)R}q\0(" + items + b"ub"
    return first, b"h\1)Rh\0b"


def in_sets(size: int) -> tuple[bytes, bytes]:
    items = b"".join(b"M" + (number % 2**16).to_bytes(2, "little") for number in range(size // 3))
    return b"cbuiltins\nset\nq\1](" + items + b"eq\0\x85R", b"h\1h\0\x85R"


def in_arrays(size: int) -> tuple[bytes, bytes]:
    made, _ = encoded(size)
    # Remembers what it makes as numbers 0 to 5.
    dtype = pickle.dumps(np.dtype("u1"), 2)[2:-1]
    build = b"cnumpy.core.multiarray\n_reconstruct\nqAcnumpy\nndarray\nqBK\0\x85C\1b\x87R"
    shape = b"J" + size.to_bytes(4, "little") + b"\x85"
    # The state is made once, and given to every array.
    first = made + b"qC" + build + b"(K\1" + shape + dtype + b"\x89hCtqDb"
    return first, b"hAhBK\0\x85C\1b\x87RhDb"


def in_ranges(size: int) -> tuple[bytes, bytes]:
    number = b"\x8b" + size.to_bytes(4, "little") + b"\x7f" * size
    return b"cbuiltins\nrange\nq\1" + number + b"\x85q\2R", b"h\1h\2R"


def in_numbers(size: int) -> tuple[bytes, bytes]:
    return b"\x8b" + size.to_bytes(4, "little") + b"\x7f" * size + b"q\0", b"h\0"


def in_ordered_dicts(size: int) -> tuple[bytes, bytes]:
    items = b"".join(b"J" + number.to_bytes(4, "little") + b"K\1" for number in range(size // 7))
    return b"ccollections\nOrderedDict\nq\1}(" + items + b"u\x85q\2R", b"h\1h\2R"


def in_parameters(size: int) -> tuple[bytes, bytes]:
    """Attributes of tensors, in a tuple in a tuple."""
    items = b"".join(b"X\6\0\0\0%06dK\1" % number for number in range(size // 16))
    tensor = b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nint8\n"
    tensor += b"K\4\x85K\1\x85\x89tR"
    call = b"ctorch._tensor\n_rebuild_from_type_v2\nq\1"
    what = b"(ctorch._utils\n_rebuild_parameter_with_state\nctorch.nn.parameter\nParameter\n"
    state = b"}(" + items + b"uN\x86"
    return call + what + b"(" + tensor + b"\x89}" + state + b"tNtq\2R", b"h\1h\2R"


def in_sizes(size: int) -> tuple[bytes, bytes]:
    """A shape of a million dimensions."""
    made = b"ctorch\nSize\n](" + b"K\1" * (size // 2) + b"e\x85Rq\0"
    call = b"0ctorch._utils\n_rebuild_meta_tensor_no_storage\nq\1"
    return made + call + b"(ctorch\nint8\nh\0h\0\x89tq\2R", b"h\1h\2R"


def in_states(size: int) -> tuple[bytes, bytes]:
    """Of a class that torch declares safe."""
    items = b"".join(b"X\6\0\0\0%06dK\1" % number for number in range(size // 16))
    first = b"ctorch.distributed.tensor._dtensor_spec\nDTensorSpec\nq\1}(" + items + b"uq\0"
    return first, b"h\1)\x81h\0b"


FORMS = [encoded, in_bytearrays, in_paths, in_attributes, in_sets, in_arrays, in_ranges]
FORMS += [in_numbers, in_ordered_dicts, in_parameters]
NEVER_GOOD = [in_sizes, in_states]


@pytest.mark.parametrize("form", FORMS)
def test_what_an_item_repeats_is_counted(form: Callable[[int], tuple[bytes, bytes]]) -> None:
    first, again = form(MIB)
    few = archive(b"\x80\2](" + first + again * 3 + b"e.")
    value = torch.load(io.BytesIO(vetted(few)), weights_only=False)
    assert len(value) in (4, 5)
    with pytest.raises(InvalidCheckpointError, match=r"far more than its \d+ bytes; if you trust"):
        vetted(archive(b"\x80\2](" + first + again * 2_000_000 + b"e."))


@pytest.mark.parametrize("form", NEVER_GOOD)
def test_what_is_no_value_is_counted_too(form: Callable[[int], tuple[bytes, bytes]]) -> None:
    first, again = form(MIB)
    with pytest.raises(InvalidCheckpointError, match="far more than its"):
        vetted(archive(b"\x80\2](" + first + again * 2_000_000 + b"e."))


def test_quantised_tensors_over_one_storage_are_counted() -> None:
    class Call:
        def __init__(self, *made: Any) -> None:
            self.made = made

        def __reduce__(self) -> Any:
            return self.made

    class Pickler(pickle.Pickler):
        def persistent_id(self, one: Any) -> Any:
            return one if type(one) is tuple and one[:1] == ("storage",) else None

    def saved(count: int) -> bytes:
        storage = ("storage", torch.QInt8Storage, "0", "cpu", MIB)
        how = (torch.per_tensor_affine, 1.0, 0)
        made = (storage, 0, (MIB,), (1,), how, False, {})
        output, file = io.BytesIO(), io.BytesIO()
        Pickler(output, 2).dump([Call(torch._utils._rebuild_qtensor, made) for _ in range(count)])
        with zipfile.ZipFile(file, "w") as new:
            new.writestr("archive/data.pkl", output.getvalue())
            new.writestr("archive/data/0", bytes(MIB))
        return file.getvalue()

    vetted(saved(8))
    with pytest.raises(InvalidCheckpointError, match="far more than its"):
        vetted(saved(300))


CALL = b"\x80\2ctorch._utils\n_rebuild_sparse_tensor\nctorch\nsparse_coo\n("
DENSE = pickle.dumps(np.zeros((1, 1), np.int64), 2)[2:-1]


@pytest.mark.parametrize(
    ("indices", "values", "size"),
    [
        (b"](](K\0ee", b"](](K\1K\1eq\0h\0h\0e", b"K\1K\3K\2\x87"),
        (DENSE, DENSE, b"K\1K\1\x86"),
        (b"](](K\0ee", DENSE, b"](K\1K\1e"),
    ],
)
def test_sparse_tensors_are_made_of_tensors(indices: bytes, values: bytes, size: bytes) -> None:
    with pytest.raises(InvalidCheckpointError, match="of something unusual"):
        vetted(archive(CALL + indices + values + size + b"t\x86R."))


def test_usual_values_are_far_from_it() -> None:
    shared = np.arange(4 * MIB // 8)
    values = [shared.copy() for _ in range(40)], [shared] * 1000, [bytes(MIB)] * 1000
    tensors = [torch.zeros(MIB)] * 1000 + [torch.zeros(1).expand(2**40)]
    named = [collections.OrderedDict(zip("abc", range(3), strict=True)) for _ in range(10_000)]
    output = io.BytesIO()
    torch.save((values, tensors, named), output)
    found = torch.load(io.BytesIO(vetted(output.getvalue())), weights_only=False)
    assert found[2] == named
    assert np.array_equal(found[0][0][39], shared)


def test_nothing_is_made_beyond_an_allowance() -> None:
    allowance = Allowance(1000)
    text, nested = "abc" * 1000, ((b"x" * 1000,), None)
    allowance.weigh((text, [1, 2, 3], nested, 17), set())
    allowance.spend(2**28 + 4000)
    allowance.weigh((text, nested), {id(nested)})
    with pytest.raises(TooMuchError, match="its 1000 bytes"):
        allowance.weigh((text, nested), {id(text)})


KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "dense": lambda: torch.ones(4, 4),
    "meta": lambda: torch.ones(4, 4, device="meta"),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "compressed": lambda: torch.eye(4).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    "bits": lambda: torch.ones(4, 4, dtype=torch.uint8).view(torch.bits8),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stored", sorted(set(KINDS) - {"dense"}))
def test_what_torch_cannot_copy_is_said_to_be_of_another_kind(stored: str) -> None:
    source, target = KINDS[stored](), torch.zeros(4, 4)
    with pytest.raises(InvalidCheckpointError, match=r"loaded into one that is torch\.float32,"):
        copy_into(target, source)
    assert not target.any()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"compressed"}))
def test_each_kind_is_copied_into_its_own(kind: str) -> None:
    source, target = KINDS[kind](), KINDS[kind]()
    copy_into(target, source)
    assert target.dtype == source.dtype


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compressed_tensor_of_another_count_is_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="the same number of specified elements"):
        copy_into(torch.eye(3).to_sparse_csr(), torch.ones(3, 3).to_sparse_csr())


def test_what_cannot_be_written_to_says_so() -> None:
    with pytest.raises(InvalidCheckpointError, match="single memory location"):
        copy_into(torch.zeros(1).expand(4), torch.ones(4, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_scale_of_a_whole_tensor_stays() -> None:
    def quantised(size: int, scale: float, channels: bool) -> torch.Tensor:
        values = torch.ones(size, 2)
        if not channels:
            return torch.quantize_per_tensor(values, scale, 0, torch.qint8)
        scales, zeros = torch.tensor([scale, 1.0]), torch.zeros(2, dtype=torch.int64)
        return torch.quantize_per_channel(values, scales, zeros, 1, torch.qint8)

    for channels in (False, True):
        whole = quantised(4, 0.1, channels)
        if not channels:
            copy_into(whole[:2], quantised(2, 0.1, channels))
        before = whole.dequantize()
        with pytest.raises(InvalidCheckpointError, match="another scale"):
            copy_into(whole[:2], quantised(2, 0.5, channels))
        assert torch.equal(whole.dequantize(), before)


def test_a_broken_tensor_of_a_class_is_no_error_of_ours() -> None:
    class Call:
        def __reduce__(self) -> Any:
            made = (DTensor, torch.float32, (4,), (1,), 0, torch.strided, "cpu", False)
            return torch._utils._rebuild_wrapper_subclass, made

    class Pickler(pickle.Pickler):
        dispatch_table = {  # noqa: RUF012 - this is how picklers are told
            torch.layout: lambda layout: (torch.serialization._get_layout, (str(layout),))
        }

    output = io.BytesIO()
    Pickler(output, 2).dump(Call())
    broken = load_tensor(io.BytesIO(archive(output.getvalue())))
    assert type(broken) is DTensor
    with pytest.raises(InvalidCheckpointError, match="cannot be loaded"):
        copy_into(torch.zeros(4), broken)
    with pytest.raises(InvalidCheckpointError, match="of which no part"):
        narrow(broken, [0], [1])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_part_of_a_nested_tensor_can_be_taken() -> None:
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
        with pytest.raises(InvalidCheckpointError, match="of which no part"):
            narrow(nested, [0, 0], [1, 2])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_part_of_a_compressed_tensor_can_be_taken() -> None:
    whole = KINDS["compressed"]()
    assert narrow(whole, [0, 0], [4, 4]) is whole
    with pytest.raises(InvalidCheckpointError, match="sparse_csr, of which no part"):
        narrow(whole, [0, 0], [2, 4])


def test_archives_without_a_byte_order_are_read_as_torch_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved, plain = io.BytesIO(), io.BytesIO()
    torch.save(torch.arange(4), saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(plain, "w") as new:
        for name in old.namelist():
            if not name.endswith("byteorder"):
                new.writestr(name, old.read(name))
    for order in (None, *torch.serialization.LoadEndianness):
        torch.serialization.set_default_load_endianness(order)
        try:
            plain.seek(0)
            expected = torch.load(plain, weights_only=True)
            assert torch.equal(load_tensor(plain), expected)
        finally:
            torch.serialization.set_default_load_endianness(None)

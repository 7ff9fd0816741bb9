"""Items that do harm without naming anything forbidden, and values that must not change."""

from __future__ import annotations

import collections
import enum
import io
import struct
import sys
import tracemalloc
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint._extension import ExtensionRegistry, ZStandard
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.tensor import Replicate
from torch.distributed.tensor._dtensor_spec import TensorMeta

from campaigns._gadgets import archive
from campaigns._unmarked import alike_numbers, alike_tuples, archives_that_allocate
from torch_s3dcp.blobs import vetted
from torch_s3dcp.decoding import load_tensor, most_bytes, open_item
from torch_s3dcp.exceptions import InvalidCheckpointError
from torch_s3dcp.items import serialize_bytes
from torch_s3dcp.records import archive_of

# 45 levels that each hold the one below twice; 200,000 levels of one.
WIDE = b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(45))
DEEP = b")" + b"\x85" * 200_000


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


KEYS = {
    "key": b"}%bNs",
    "key beside a name": name("torch", "float32") + b"0}%bNs",
    "keys": b"}(%bNu",
    "dict": b"(%bNd",
    "set": name("builtins", "set") + b"](%be\x85R",
    "set items": b"\x8f(%b\x90",
    "frozen set": b"(%b\x91",
    "pair": name("collections", "OrderedDict") + b"](](%bNee\x85R",
}


@pytest.mark.parametrize("nested", [WIDE, DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize("form", KEYS.values(), ids=KEYS)
def test_a_key_that_takes_for_ever_to_hash_is_refused(form: bytes, nested: bytes) -> None:
    with pytest.raises(InvalidCheckpointError, match="a key has too many parts"):
        vetted(archive(b"\x80\x04" + form % nested + b"."))


ALIKE = {"numbers": alike_numbers(300), "tuples": alike_tuples(8)}


@pytest.mark.parametrize("keys", ALIKE.values(), ids=ALIKE)
def test_keys_that_all_hash_alike_are_refused(keys: bytes) -> None:
    with pytest.raises(InvalidCheckpointError, match="same hash"):
        vetted(archive(b"\x80\x04" + keys + b"."))


def test_usual_keys_are_kept() -> None:
    large = {2**70 + n: (n, -n) for n in range(1000)}
    assert loaded(large) == large
    many = [{(n, -1): 0, (n, -2): 1} for n in range(1000)]
    assert loaded(many) == many
    value = {(1, ("a", 2)): frozenset([1, (2, 3)]), 2**70: {(4, 5)}, "x": None}
    assert loaded(value) == value


@pytest.mark.parametrize(
    "bag", [name("types", "SimpleNamespace"), name("argparse", "Namespace")], ids=["simple", "args"]
)
def test_no_module_is_imported_through_a_namespace(bag: bytes) -> None:
    # Saving it anew would call str for a name, and look for it in the module.
    keywords = b"}(" + text("__reduce_ex__") + name("builtins", "str")
    keywords += text("__module__") + text("stringprep") + b"u"
    sys.modules.pop("stringprep", None)
    with pytest.raises(InvalidCheckpointError):
        vetted(archive(b"\x80\x04" + bag + b")" + keywords + b"\x92."))
    assert "stringprep" not in sys.modules


def test_no_device_mesh_is_made() -> None:
    mesh = name("torch.distributed.device_mesh", "DeviceMesh")
    layout = name("torch.distributed._mesh_layout", "_MeshLayout")
    endless = name("builtins", "range") + b"J\0\0\0\x7f\x85R"
    for made in (mesh + text("cpu") + b"]K\0a\x86R", layout + endless + b"\x85R"):
        with pytest.raises(InvalidCheckpointError, match="makes a device mesh"):
            vetted(archive(b"\x80\x02" + made + b"."))


def test_arrays_of_nothing_have_no_length() -> None:
    make = name("numpy._core.multiarray", "_reconstruct") + name("numpy", "ndarray")
    make += b"K\0\x85C\x01b\x87R"
    dtype = name("numpy", "dtype") + text("S0") + b"\x89\x88\x87R"
    state = b"(K\x01\x8a\x08" + struct.pack("<q", 2**61) + b"\x85" + dtype + b"\x89C\0tb."
    with pytest.raises(InvalidCheckpointError, match=r"numpy\.ndarray"):
        vetted(archive(b"\x80\x04" + make + state))


def loaded(value: Any) -> Any:
    """Through our hands, then decoded as a planner does."""
    stored = io.BytesIO()
    torch.save(value, stored)
    return torch.load(io.BytesIO(vetted(stored.getvalue())), weights_only=False)


def test_lazily_conjugated_tensors_keep_their_values() -> None:
    whole = torch.tensor([1 + 2j, 3 - 4j])
    imag = whole.clone().conj().imag
    assert imag.is_neg()
    assert torch.equal(loaded([imag])[0], imag)
    assert torch.equal(loaded([whole.conj()])[0], whole.conj())


@pytest.mark.parametrize("of", ["untyped_storage", "storage"])
@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_storage_does_not_come_back_as_a_tensor(of: str) -> None:
    stored = io.BytesIO()
    torch.save({"memory": getattr(torch.arange(4.0), of)()}, stored)
    with pytest.raises(InvalidCheckpointError, match="storage"):
        vetted(stored.getvalue())


def test_counts_by_default_are_kept() -> None:
    value = collections.defaultdict(int, a=1)
    found = loaded(value)
    assert found == value
    assert found.default_factory is int


@pytest.mark.parametrize("name", ["builtins.getattr", "posix.system", "runpy.run"])
def test_nobody_is_advised_to_allow_what_allows_all(name: str) -> None:
    module, _, attribute = name.partition(".")
    pickled = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b")R."
    with pytest.raises(InvalidCheckpointError) as caught:
        vetted(archive_of(pickled))
    assert "trust_checkpoint" in str(caught.value)
    assert "safe_globals" not in str(caught.value)


class Owner(enum.Enum):
    ONE = 1


class Other:
    kept = (1,)

    @classmethod
    def _unpickle(cls) -> str:
        return "made"

    @classmethod
    def made(cls) -> str:
        return "made"

    @staticmethod
    def plain() -> str:
        return "plain"


def got(owner: type, attribute: str, call: bytes = b"") -> bytes:
    asked = name("builtins", "getattr") + name(owner.__module__, owner.__name__) + text(attribute)
    return archive(b"\x80\2" + asked + b"\x86R" + call + b".")


def test_what_is_got_by_getattr_is_of_allowed_classes() -> None:
    for data, expected in (
        (got(Owner, "ONE"), Owner.ONE),
        (got(Other, "_unpickle", b")R"), "made"),
    ):
        with pytest.raises(InvalidCheckpointError, match=f"{__name__}.O"):
            vetted(data)
        found = vetted(data, [Owner, Other])
        assert torch.load(io.BytesIO(found), weights_only=False) == expected


def test_who_allows_getattr_gets_it() -> None:
    made = name("builtins", "getattr") + text("a") + text("join") + b"\x86R"
    found = vetted(archive(b"\x80\2" + made + b"."), [getattr])
    assert torch.load(io.BytesIO(found), weights_only=False)(["1", "2"]) == "1a2"


def test_members_of_enumerations_stay_as_they_are() -> None:
    state = b"}" + text("_value_") + b"K\7sb"
    with pytest.raises(InvalidCheckpointError, match="may not be given a state"):
        vetted(got(Owner, "ONE", state), [Owner])
    assert Owner.ONE.value == 1


@pytest.mark.parametrize(
    "data",
    [
        got(Owner, "__class__"),
        got(Owner, "TWO"),
        got(Other, "made"),
        got(Other, "_unpickle", b")}\x92"),
        got(Other, "_unpickle", b")\x81"),
        got(Replicate, "_make_replicate_tensor"),
        got(TensorMeta, "_make"),
        got(Other, "plain"),
        got(Other, "kept"),
        got(Other, "mro"),
        got(Other, "__init_subclass__"),
        got(Other, "__subclasses__"),
        archive(b"\x80\2" + name("builtins", "getattr") + text("a") + text("join") + b"\x86R."),
        archive(
            b"\x80\2"
            + name("builtins", "getattr")
            + name("builtins", "str")
            + text("maketrans")
            + b"\x86R."
        ),
        archive(b"\x80\2" + name("builtins", "getattr") + b")R."),
        archive(b"\x80\2" + name("builtins", "getattr") + b")\x81."),
    ],
)
def test_nothing_else_is_got_by_getattr(data: bytes) -> None:
    with pytest.raises(InvalidCheckpointError) as caught:
        vetted(data, [Owner, Other, Replicate, TensorMeta])
    assert "trust_checkpoint" in str(caught.value)
    assert "safe_globals" not in str(caught.value)


TAKES_MUCH = dict(archives_that_allocate())


@pytest.mark.parametrize("kind", TAKES_MUCH)
def test_a_tensor_takes_no_memory_on_its_word(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidCheckpointError) as caught:
            load_tensor(io.BytesIO(TAKES_MUCH[kind]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "MemoryError" not in str(caught.value)
    assert peak < 16 * 2**20


def test_what_is_compressed_without_end_is_cut_off() -> None:
    about = TensorStorageMetadata(
        TensorProperties(),
        torch.Size([10]),
        [ChunkStorageMetadata(torch.Size([0]), torch.Size([10]))],
    )
    limit = most_bytes(about)
    assert limit is not None
    extensions = [ZStandard()]
    bomb = b"".join(serialize_bytes(bytes(2**28), extensions))
    assert len(bomb) < 2**16
    names = [extensions[0].get_descriptor()]
    tracemalloc.start()
    try:
        with pytest.raises(InvalidCheckpointError, match="metadata accounts for"):
            load_tensor(open_item(io.BytesIO(bomb), names, ExtensionRegistry(), limit))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * 2**20

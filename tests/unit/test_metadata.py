"""Metadata: read like torch reads it, whoever wrote it, and without running code from it."""

from __future__ import annotations

import enum
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor import metadata as legacy
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from torch_s3dcp.checkpoint_metadata import (
    data_paths,
    dump_metadata,
    load_metadata,
    metadata_name,
    stored_item,
)
from torch_s3dcp.exceptions import IntegrityError, InvalidCheckpointError
from torch_s3dcp.plan import StoredItem
from torch_s3dcp.ranges import ItemRange

STATE = {
    "model": {"weight": torch.ones(4, 6), "half": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {"state": [{"exp_avg": torch.zeros(2)}, {"step": torch.tensor(3.0)}]},
    "empty": torch.zeros(0, 3),
    "step": 7,
    "note": "any object",
    "bytes": b"blob",
}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The ``.metadata`` of a checkpoint that torch's own writer made."""
    folder = tmp_path_factory.mktemp("stock")
    dcp.save(STATE, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    return (folder / ".metadata").read_bytes()


def simple(path: Any = "__0_0.distcp", offset: Any = 0, length: Any = 10, **extra: Any) -> Metadata:
    return Metadata(
        {"x": BytesStorageMetadata()},
        storage_data={MetadataIndex("x"): StorageInfo(path, offset, length, **extra)},
    )


def tensor_metadata(properties: Any, size: Any = (2, 3)) -> Metadata:
    size = torch.Size(size)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
    metadata = simple()
    metadata.state_dict_metadata["t"] = TensorStorageMetadata(properties, size, [chunk])
    return metadata


def plain(data: bytes) -> Metadata:
    """What plain pickle reads, but with the path as text."""
    metadata: Metadata = pickle.loads(data)
    assert metadata.storage_meta is not None
    metadata.storage_meta.checkpoint_id = str(metadata.storage_meta.checkpoint_id)
    return metadata


def test_stock_metadata_reads_as_with_plain_pickle(stock: bytes) -> None:
    expected, found = plain(stock), load_metadata(stock)
    assert found == expected
    assert list(found.storage_data) == list(expected.storage_data)
    assert len(found.storage_data) > 5
    # To the last attribute, and of the real classes: the same pickle again.
    assert pickle.dumps(found) == pickle.dumps(expected)


def test_what_is_written_reads_with_plain_pickle(stock: bytes) -> None:
    expected = plain(stock)
    written = dump_metadata(load_metadata(stock))
    assert pickle.loads(written) == expected
    assert load_metadata(written) == expected


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_reads(stock: bytes, protocol: int) -> None:
    expected = plain(stock)
    assert load_metadata(pickle.dumps(expected, protocol)) == expected


def properties_state(data: bytes) -> tuple[Any, ...]:
    """The state that a pickle gives to TensorProperties."""
    states: list[Any] = []

    class Spy:
        def __setstate__(self, state: Any) -> None:
            states.append(state)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return Spy if name == "TensorProperties" else super().find_class(module, name)

    Unpickler(io.BytesIO(data)).load()
    (state,) = states
    return tuple(state)


def test_the_state_of_properties_is_what_older_torch_reads() -> None:
    state = properties_state(dump_metadata(tensor_metadata(TensorProperties(torch.float16))))
    assert len(state) == 5
    assert state[0] is torch.float16


PROPERTIES = [
    TensorProperties(dtype, requires_grad=grad, pin_memory=pin, memory_format=form)
    for dtype, grad, pin, form in [
        (torch.float32, False, False, torch.contiguous_format),
        (torch.bfloat16, True, False, torch.channels_last),
        (torch.float8_e4m3fn, False, True, torch.preserve_format),
        (torch.complex64, True, True, torch.contiguous_format),
    ]
] + [TensorProperties(torch.float64, layout=torch.sparse_coo)]


@pytest.mark.parametrize("properties", PROPERTIES, ids=lambda p: str(p.dtype))
def test_properties_survive(properties: TensorProperties) -> None:
    found = load_metadata(dump_metadata(tensor_metadata(properties)))
    read = found.state_dict_metadata["t"].properties
    assert read == properties
    assert type(read) is TensorProperties


@pytest.fixture
def torch_2_15(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets TensorProperties pickle with a sixth value, as torch 2.15 does."""
    five: Any = TensorProperties.__getstate__
    monkeypatch.setattr(TensorProperties, "__getstate__", lambda self: (*five(self), "sixth"))


@pytest.mark.usefixtures("torch_2_15")
@pytest.mark.parametrize("properties", PROPERTIES, ids=lambda p: str(p.dtype))
def test_metadata_of_torch_2_15(properties: TensorProperties) -> None:
    metadata = tensor_metadata(properties)
    theirs = pickle.dumps(metadata)
    assert len(properties_state(theirs)) == 6
    assert load_metadata(theirs) == metadata
    assert len(properties_state(dump_metadata(metadata))) == 5


def test_properties_of_old_torch() -> None:
    old = legacy.TensorProperties(dtype=torch.float16, requires_grad=True)
    found = load_metadata(pickle.dumps(tensor_metadata(old)))
    read = found.state_dict_metadata["t"].properties
    assert read == old
    assert read.dtype is torch.float16
    assert read.memory_format == torch.contiguous_format


def test_sizes_are_sizes() -> None:
    found = load_metadata(dump_metadata(tensor_metadata(PROPERTIES[0], size=(7, 0, 9))))
    tensor = found.state_dict_metadata["t"]
    assert isinstance(tensor.size, torch.Size)
    assert (tensor.size, tensor.chunks[0].offsets) == ((7, 0, 9), (0, 0, 0))
    scalar = load_metadata(dump_metadata(tensor_metadata(PROPERTIES[0], size=())))
    assert scalar.state_dict_metadata["t"].size == torch.Size([])


@pytest.mark.parametrize(
    "path", [Path("a/b.distcp"), PurePosixPath("a/b.distcp"), "a/b.distcp", PurePosixPath("é ?#")]
)
def test_paths_become_strings(path: Any) -> None:
    found = load_metadata(pickle.dumps(simple(path)))
    (info,) = found.storage_data.values()
    assert info.relative_path == str(path)
    assert type(info.relative_path) is str
    assert data_paths(found) == {str(path)}
    assert stored_item(info) == StoredItem(str(path), ItemRange(0, 10))


def test_transforms_reach_the_plan() -> None:
    found = load_metadata(dump_metadata(simple("f", 5, 7, transform_descriptors=["zstd", "x"])))
    (info,) = found.storage_data.values()
    assert stored_item(info) == StoredItem("f", ItemRange(5, 12), ("zstd", "x"))


def test_the_prefix_in_plans_of_older_versions() -> None:
    metadata = simple()
    metadata.planner_data = dcp.filesystem._StoragePrefix("__0_")
    data = pickle.dumps(metadata)
    assert b"_StoragePrefix" in data
    assert load_metadata(data).storage_data == metadata.storage_data


def test_what_else_torch_stores() -> None:
    metadata = simple()
    metadata.planner_data = OrderedDict(a=("model", "weight"), b=("list", 0))
    metadata.storage_meta = dcp_metadata.StorageMeta("s3://b/k", "save", "load", ["inline"])
    assert load_metadata(dump_metadata(metadata)) == metadata


def test_unknown_attributes_are_kept() -> None:
    metadata: Any = simple()
    metadata.hint = {"checksums": [1, 2]}
    (info,) = metadata.storage_data.values()
    object.__setattr__(info, "data_offset", 64)
    found: Any = load_metadata(dump_metadata(metadata))
    assert found.hint == {"checksums": [1, 2]}
    assert next(iter(found.storage_data.values())).data_offset == 64


@pytest.mark.parametrize(
    ("rank", "name"), [(None, ".metadata"), (0, "__0.metadata"), (12, "__12.metadata")]
)
def test_names(rank: int | None, name: str) -> None:
    assert metadata_name(rank) == name


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def named(module: str, name: str) -> bytes:
    """A pickle that calls ``module.name`` with a command that would leave a file behind."""
    return f"c{module}\n{name}\n(Vtouch executed\ntR.".encode()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("subprocess", "call"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "open"),
        ("builtins", "__import__"),
        ("__builtin__", "eval"),
        ("runpy", "run_path"),
        ("pty", "spawn"),
        ("torch", "load"),
        ("torch", "save"),
        ("torch", "ops"),
        ("torch", "nn"),
        ("torch", "hub.load"),
        ("torch", "Tensor"),
        ("torch.serialization", "load"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.metadata", "torch"),
        ("torch.distributed.checkpoint.filesystem", "os"),
        ("torch.distributed.checkpoint.filesystem", "FileSystem"),
        ("torch_s3dcp.checkpoint_metadata", "load_metadata"),
        ("pathlib", "Path.unlink"),
        ("pathlib", "os"),
        ("collections", "namedtuple"),
        ("copyreg", "_reconstructor"),
        ("a_module_that_nobody_has", "x"),
    ],
)
def test_nothing_else_may_be_named(
    module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Also in the middle of metadata that is fine otherwise.
    body = pickle.dumps(simple(), 2)
    for data in (named(module, name), body[:-1] + b"0" + named(module, name)):
        with pytest.raises(InvalidCheckpointError, match="no checkpoint needs") as caught:
            load_metadata(data)
        assert f"{module}.{name}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_call_hidden_in_a_value_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    metadata = simple()
    metadata.planner_data = {"deep": [Calls(os.system, f"touch {marker}")]}
    data = pickle.dumps(metadata)
    with pytest.raises(InvalidCheckpointError, match=r"\.system"):
        load_metadata(data)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists(), "the attack itself does not work, so the test shows nothing"


@pytest.mark.parametrize(
    "name",
    [
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "ChunkStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ],
)
def test_a_pickle_cannot_change_the_classes_themselves(name: str) -> None:
    module = "torch.distributed.checkpoint.metadata"
    # BUILD with a state (None, {"evil": 1}) is setattr(..., "evil", 1).
    data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"N}U\x04evilK\x01s\x86b."
    with pytest.raises(InvalidCheckpointError):
        load_metadata(data)
    assert not hasattr(getattr(dcp_metadata, name), "evil")
    target = pickle.loads(data)
    assert target.evil == 1, "the attack itself does not work, so the test shows nothing"
    del target.evil


@pytest.mark.parametrize(
    "path",
    ["..", "../x", "a/../x", "a/..", "/etc/passwd", "/", "", "s3://other/x", "//x", Path("../x")],
)
def test_data_outside_of_the_checkpoint_is_refused(path: Any) -> None:
    with pytest.raises(InvalidCheckpointError, match="outside of the checkpoint") as caught:
        load_metadata(pickle.dumps(simple(path)))
    assert caught.value.tensor == "x"


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 4), (0, -4), (1.5, 4), (0, "4"), ([0], 4), (-(2**62), 1)],
)
def test_an_impossible_place_is_refused(offset: Any, length: Any) -> None:
    with pytest.raises(InvalidCheckpointError, match="impossible place") as caught:
        load_metadata(pickle.dumps(simple("f", offset, length)))
    assert caught.value.tensor == "x"


@pytest.mark.parametrize("values", [("f", None, 4), ("f", 0, None), (None, 0, 4)])
def test_a_place_that_lacks_something_is_refused(values: tuple[Any, ...]) -> None:
    # A StorageInfo pickles without what is None.
    with pytest.raises(InvalidCheckpointError):
        load_metadata(pickle.dumps(simple(*values)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        [],
        {},
        "text",
        torch.Size([2]),
        MetadataIndex("x"),
        Metadata,
        Metadata({}),
        Metadata(None, storage_data={}),
        Metadata([], storage_data={}),  # type: ignore[arg-type]
        Metadata({}, storage_data=[1]),
        Metadata({}, storage_data={MetadataIndex("x"): 5}),
        Metadata({}, storage_data={"x": Path("y")}),
    ],
    ids=repr,
)
def test_what_is_not_metadata_is_refused(value: Any) -> None:
    with pytest.raises(InvalidCheckpointError):
        load_metadata(pickle.dumps(value))


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(lambda b: b"\x80\x04" + b)))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((InvalidCheckpointError, IntegrityError)):
        load_metadata(data)


@given(data=st.data())
def test_half_a_file_is_refused(stock: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(stock) - 1))
    with pytest.raises(InvalidCheckpointError):
        load_metadata(stock[:end])


@given(data=st.data())
def test_damage_is_noticed_or_harmless(stock: bytes, data: st.DataObject) -> None:
    damaged = bytearray(stock)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(stock) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = load_metadata(bytes(damaged))
    except (InvalidCheckpointError, IntegrityError):
        return
    for info in found.storage_data.values():
        item = stored_item(info)
        assert not item.path.startswith("/")
        assert ".." not in item.path.split("/")


@given(data=st.data())
def test_any_flipped_bit_is_noticed(stock: bytes, data: st.DataObject) -> None:
    whole = dump_metadata(load_metadata(stock))
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IntegrityError):
        load_metadata(bytes(damaged))


@pytest.mark.parametrize(
    "chunk",
    [
        ChunkStorageMetadata(torch.Size([0]), torch.Size([2, 3])),
        ChunkStorageMetadata(torch.Size([0, 1]), torch.Size([2, 3])),
        ChunkStorageMetadata(torch.Size([-1, 0]), torch.Size([2, 3])),
        ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([2, -3])),
        ChunkStorageMetadata((0, 0), (2, 3)),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_impossible_parts_are_refused(chunk: ChunkStorageMetadata) -> None:
    metadata = tensor_metadata(PROPERTIES[0])
    metadata.state_dict_metadata["t"].chunks[:] = [chunk]
    with pytest.raises(InvalidCheckpointError, match="'t'") as caught:
        load_metadata(dump_metadata(metadata))
    assert caught.value.tensor == "t"


class _EarlyPickler(pickle.Pickler):
    """Pickles members of enumerations as Python 3.11.2 does."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return getattr, (type(value), value.name)
        return NotImplemented


@pytest.mark.parametrize("protocol", [2, 4])
def test_members_are_found_as_early_pythons_name_them(protocol: int) -> None:
    about = TensorStorageMetadata(TensorProperties(), torch.Size([2]), [])
    metadata = Metadata({"x": about}, None, {})
    output = io.BytesIO()
    _EarlyPickler(output, protocol).dump(metadata)
    assert b"getattr" in output.getvalue()
    assert load_metadata(output.getvalue()) == metadata
    assert b"getattr" not in dump_metadata(metadata)


@pytest.mark.parametrize(
    "asked",
    [
        (dcp_metadata._MEM_FORMAT_ENCODING, "__class__"),
        (dcp_metadata._MEM_FORMAT_ENCODING, "__members__"),
        (dcp_metadata._MEM_FORMAT_ENCODING, "TORCH_PRESERVE_FORMAT_"),
        (MetadataIndex, "__init__"),
        ("text", "join"),
        (torch.Size, "__class__"),
    ],
)
def test_nothing_else_is_got_by_getattr(asked: tuple[Any, Any]) -> None:
    class Asking:
        def __reduce__(self) -> Any:
            return getattr, asked

    with pytest.raises(InvalidCheckpointError, match=r"builtins.getattr"):
        load_metadata(pickle.dumps(Asking()))

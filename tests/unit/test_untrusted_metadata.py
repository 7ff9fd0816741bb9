"""Metadata that is hostile, damaged or impossible: refused, and nothing of it runs."""

from __future__ import annotations

import enum
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.metadata import simple, stock_metadata, tensor_metadata
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from torch_s3dcp.checkpoint_metadata import (
    dump_metadata,
    load_metadata,
    stored_item,
)
from torch_s3dcp.exceptions import IntegrityError, InvalidCheckpointError


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return stock_metadata(tmp_path_factory.mktemp("stock"))


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
    metadata = tensor_metadata(TensorProperties())
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

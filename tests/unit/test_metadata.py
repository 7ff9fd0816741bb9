"""Metadata: read like torch reads it, whoever wrote it, and without running code from it."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.metadata import simple, stock_metadata, tensor_metadata
from torch.distributed._shard.sharded_tensor import metadata as legacy
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.metadata import (
    Metadata,
    TensorProperties,
)

from torch_s3dcp.checkpoint_metadata import (
    data_paths,
    dump_metadata,
    load_metadata,
    metadata_name,
    stored_item,
)
from torch_s3dcp.plan import StoredItem
from torch_s3dcp.ranges import ItemRange


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return stock_metadata(tmp_path_factory.mktemp("stock"))


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

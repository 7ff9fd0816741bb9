"""Interchange with torch's own reader and writer on a folder: both ways, bit for bit."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_main
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import (
    _load_state_dict,
    _load_state_dict_from_keys,
)

from torch_s3dcp import (
    BinaryPrefixStrategy,
    HexPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3ClientConfig,
    S3ReaderConstructor,
    S3StorageReader,
    S3StorageWriter,
    available_readers,
)
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport, MemoryTransport, Transport

BUCKET, FOLDER = "bucket", "run/step-100"
ADDRESS = f"s3://{BUCKET}/{FOLDER}"

# Options of the writer, and how many data objects they make; None: one for each item.
LAYOUTS: dict[str, tuple[Callable[[], dict[str, Any]], int | None]] = {
    "one_file": (dict, 1),
    "three_files": (lambda: {"thread_count": 3}, 3),
    "file_per_item": (lambda: {"single_file_per_rank": False, "thread_count": 2}, None),
    "binary": (lambda: {"prefix_strategy": BinaryPrefixStrategy(min_prefix_length=3)}, 1),
    "hex_epoch": (lambda: {"prefix_strategy": HexPrefixStrategy(5), "thread_count": 2}, 2),
    "round_robin": (lambda: {"prefix_strategy": RoundRobinPrefixStrategy(["a/b"], 2)}, 1),
    "zstd": (lambda: {"_extensions": [ZStandard()], "thread_count": 2}, 2),
}
SUB_FOLDERS = {"binary": "000", "hex_epoch": "0000000000/epoch_5", "round_robin": "a/b/epoch_2"}
READERS: dict[str, Any] = {
    **{name: name for name in available_readers()},
    "range_unbuffered": S3ReaderConstructor.range_based(buffer_size=0),
    "range_small": S3ReaderConstructor.range_based(buffer_size=1000),
    "dcp_no_gaps": S3ReaderConstructor.dcp_optimized(max_gap_size=0),
    "dcp_one_stream": S3ReaderConstructor.dcp_optimized(max_gap_size=float("inf")),
}


@pytest.fixture
def store() -> MemoryTransport:
    return MemoryTransport(BUCKET)


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """Digests of the state itself."""
    with peer_main.quiet():
        return peer_main.digests(peer_main.everything())


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state as torch's own writer saves it."""
    folder = tmp_path_factory.mktemp("torch")
    peer_main.save_everything(dcp.FileSystemWriter(folder))
    return folder


def copy_down(store: Transport, folder: Path, bucket: str = BUCKET) -> Path:
    """What `aws s3 cp --recursive` would do."""
    for page in store.list(bucket, f"{FOLDER}/"):
        for info in page.object_info:
            target = folder / info.key.removeprefix(f"{FOLDER}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with store.get(bucket, info.key) as body:
                target.write_bytes(body.readall())
    return folder


def copy_up(folder: Path, store: Transport, bucket: str = BUCKET) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            key = f"{FOLDER}/{file.relative_to(folder).as_posix()}"
            store.put(bucket, key, file.read_bytes())


def read_metadata(folder: Path) -> Metadata:
    """As any program would that has torch and not this package's safe decoder."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    assert type(metadata) is Metadata
    return metadata


def stored_items(folder: Path) -> dict[str, bytes]:
    """The bytes of each item, by name."""
    items = {}
    for index, info in read_metadata(folder).storage_data.items():
        data = (folder / info.relative_path).read_bytes()
        items[index.fqn] = data[info.offset : info.offset + info.length]
        assert len(items[index.fqn]) == info.length > 0
    return items


def saved_by_torch(value: Any) -> bytes:
    """What torch.save gives for a leaf; of a view, for the part that it shows."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.untyped_storage().nbytes() != value.numel() * value.element_size():
            value = value.clone()
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_loads_what_we_write(
    layout: str, store: MemoryTransport, tmp_path: Path, expected: dict[str, str]
) -> None:
    options, files = LAYOUTS[layout]
    peer_main.save_everything(S3StorageWriter(ADDRESS, transport=store, **options()))
    folder = copy_down(store, tmp_path)

    assert peer_main.load_everything(dcp.FileSystemReader(folder)) == expected
    data_files = list(folder.rglob("*.distcp"))
    assert len(data_files) == (files or len(read_metadata(folder).storage_data))
    for file in data_files:
        assert file.parent == folder / SUB_FOLDERS.get(layout, "")
    assert {file.name for file in folder.rglob("*") if file.is_file()} == {
        ".metadata",
        *(file.name for file in data_files),
    }


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "zstd"])
def test_items_are_the_bytes_of_torch_save(
    layout: str, store: MemoryTransport, tmp_path: Path, torch_folder: Path
) -> None:
    writer = S3StorageWriter(ADDRESS, transport=store, **LAYOUTS[layout][0]())
    peer_main.save_everything(writer)
    items = stored_items(copy_down(store, tmp_path))
    with peer_main.quiet():
        leaves, _ = flatten_state_dict(peer_main.everything())
        wanted = {name: saved_by_torch(value) for name, value in leaves.items()}

    assert {name for name in wanted if items[name] != wanted[name]} == set()
    assert items == stored_items(torch_folder)


def test_compressed_items_hold_the_bytes_of_torch_save(
    store: MemoryTransport, tmp_path: Path, torch_folder: Path
) -> None:
    peer_main.save_everything(S3StorageWriter(ADDRESS, transport=store, _extensions=[ZStandard()]))
    folder = copy_down(store, tmp_path)

    infos = read_metadata(folder).storage_data.values()
    assert {tuple(info.transform_descriptors) for info in infos} == {("stream.zstd/1",)}
    packed = stored_items(folder)
    unpacked = {
        name: ZStandard().transform_from(io.BytesIO(data)).read(-1) for name, data in packed.items()
    }
    assert unpacked == stored_items(torch_folder)
    assert len(packed["dtypes.float32"]) < len(unpacked["dtypes.float32"])


def test_metadata_says_what_torch_would_say(
    store: MemoryTransport, tmp_path: Path, torch_folder: Path
) -> None:
    peer_main.save_everything(S3StorageWriter(ADDRESS, transport=store))
    ours, theirs = read_metadata(copy_down(store, tmp_path)), read_metadata(torch_folder)

    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.version == theirs.version
    assert set(ours.storage_data) == set(theirs.storage_data)
    assert ours.storage_meta.checkpoint_id == ADDRESS
    for info in ours.storage_data.values():
        # Any other attribute may surprise an older torch. Ours is a tuple of plain values.
        known = {"relative_path", "offset", "length", "transform_descriptors"}
        assert set(vars(info)) <= {*known, "s3dcp_checksums"}
        assert {type(value) for value in info.s3dcp_checksums} <= {int, bytes}
        assert type(info.relative_path) is str


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(dict, id="one_file"),
        pytest.param(lambda: {"thread_count": 3}, id="three_files"),
        pytest.param(lambda: {"single_file_per_rank": False}, id="file_per_item"),
        pytest.param(lambda: {"_extensions": [ZStandard()]}, id="zstd"),
    ],
)
def test_we_load_what_torch_writes(
    options: Callable[[], dict[str, Any]],
    reader: str,
    store: MemoryTransport,
    tmp_path: Path,
    expected: dict[str, str],
) -> None:
    peer_main.save_everything(dcp.FileSystemWriter(tmp_path, sync_files=False, **options()))
    copy_up(tmp_path, store)
    ours = S3StorageReader(ADDRESS, transport=store, reader_constructor=READERS[reader])
    assert peer_main.load_everything(ours) == expected


@pytest.mark.server
@pytest.mark.parametrize("reader", available_readers())
def test_both_ways_over_a_real_server(
    reader: str,
    seaweed: SeaweedServer,
    seaweed_bucket: str,
    tmp_path: Path,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    address = f"s3://{seaweed_bucket}/{FOLDER}"
    ours = S3StorageReader(address, reader_constructor=reader)
    remote: Transport = BotoTransport(None, S3ClientConfig(), "test")

    peer_main.save_everything(dcp.FileSystemWriter(tmp_path / "up", sync_files=False))
    copy_up(tmp_path / "up", remote, seaweed_bucket)
    assert peer_main.load_everything(ours) == expected

    peer_main.save_everything(S3StorageWriter(address, thread_count=2))
    folder = copy_down(remote, tmp_path / "down", seaweed_bucket)
    assert peer_main.load_everything(dcp.FileSystemReader(folder)) == expected


def test_without_collectives_the_names_are_those_of_torch(
    store: MemoryTransport, tmp_path: Path, expected: dict[str, str]
) -> None:
    writer = S3StorageWriter(ADDRESS, transport=store)
    with peer_main.quiet():
        dcp.save(peer_main.everything(), storage_writer=writer, use_collectives=False)
    folder = copy_down(store, tmp_path)

    assert [file.name for file in folder.glob("*.metadata")] == ["__0.metadata"]
    for reader in (dcp.FileSystemReader(folder), S3StorageReader(ADDRESS, transport=store)):
        assert peer_main.load_everything(reader) == expected


# What `keys` selects: a name or a folder of names, as in torch's own documentation.
KEYS = {
    # A quantised item can't be made from the metadata alone, by any reader.
    "nearly_all": {
        *("scalar", "count", "empty", "model", "strided", "lazy", "dtypes", "mask"),
        *("subclass", "progress"),
    },
    "folder": "model",
    "leaf": "model.weight",
    "several": {"scalar", "strided.transposed", "progress"},
    "bytes_only": {"progress.step"},
}


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("reader", READERS)
def test_keys_load_without_a_state_dict(
    keys: str,
    reader: str,
    store: MemoryTransport,
    torch_folder: Path,
    expected: dict[str, str],
) -> None:
    copy_up(torch_folder, store)
    readers = {
        "ours": S3StorageReader(ADDRESS, transport=store, reader_constructor=READERS[reader]),
        "torch": dcp.FileSystemReader(torch_folder),
    }
    with peer_main.quiet(), torch.serialization.safe_globals([peer_main.Tagged]):
        found = {
            name: peer_main.digests(_load_state_dict_from_keys(KEYS[keys], storage_reader=reader))
            for name, reader in readers.items()
        }
    assert found["ours"] == found["torch"]
    if keys == "nearly_all":
        assert found["ours"] == {k: v for k, v in expected.items() if ".quantised." not in k}
    # The digests show a list's entries one by one.
    many = {"nearly_all": len(expected) - 2, "folder": 5, "several": 9}
    assert len(found["ours"]) == many.get(keys, 1)


def test_a_checkpoint_becomes_one_file_as_with_dcp_to_torch_save(
    store: MemoryTransport, tmp_path: Path
) -> None:
    state = {name: v for name, v in peer_main.everything().items() if name != "quantised"}
    with peer_main.quiet(), torch.serialization.safe_globals([peer_main.Tagged]):
        dcp.save(state, storage_writer=S3StorageWriter(ADDRESS, transport=store))
        loaded: dict[str, Any] = {}
        reader = S3StorageReader(ADDRESS, transport=store)
        _load_state_dict(
            loaded, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True
        )
        dcp_to_torch_save(copy_down(store, tmp_path / "folder"), tmp_path / "file.pt")
        by_torch = torch.load(tmp_path / "file.pt", weights_only=False)
        assert peer_main.digests(loaded) == peer_main.digests(by_torch)
        assert peer_main.digests(loaded) == peer_main.digests(state)

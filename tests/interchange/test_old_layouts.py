"""Checkpoints of other torch versions, made here by recipe, and of other settings of this one.

torch's own reader loads the same fixtures wherever this torch can: a fixture that it refused
would prove nothing.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import peer_main
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as ShardedProperties
from torch.distributed.checkpoint.filesystem import _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.metadata import Metadata, TensorProperties, TensorStorageMetadata
from torch.utils.serialization import config as serialization

from torch_s3dcp import S3StorageReader, S3StorageWriter, available_readers
from torch_s3dcp.transports import MemoryTransport

BUCKET, FOLDER = "bucket", "old"
ADDRESS = f"s3://{BUCKET}/{FOLDER}"
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

# Which records an archive holds, in which order, and where that puts the raw data.
RECORDS: dict[str, tuple[Sequence[str], int]] = {
    "older": (("data.pkl", "data/0", "version"), 320),
    "torch_2.3": (
        ("data.pkl", "byteorder", "data/0", "version", ".data/serialization_id"),
        448,
    ),
    "torch_2.7": (
        (
            *("data.pkl", ".format_version", ".storage_alignment", "byteorder"),
            *("data/0", "version", ".data/serialization_id"),
        ),
        704,
    ),
}


def state() -> dict[str, Any]:
    ramp = torch.arange(1, 97, dtype=torch.float32).reshape(8, 12)
    return {
        "plain": ramp,
        "half": ramp.bfloat16(),
        "transposed": ramp.t(),
        "scalar": torch.tensor(2.5),
        "doubles": [ramp.double(), {"mask": ramp > 7}],
        "step": 9,
        "words": ["a", "b"],
    }


@pytest.fixture
def store() -> MemoryTransport:
    return MemoryTransport(BUCKET)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with peer_main.quiet():
        yield


def archive(records: Sequence[tuple[str, bytes]]) -> bytes:
    """A zip as torch writes it: stored, data aligned to 64 bytes, sizes behind the data."""
    body, directory = bytearray(), bytearray()
    for name, data in records:
        path, offset, crc = f"archive/{name}".encode(), len(body), zlib.crc32(data)
        padding = -(offset + 30 + len(path) + 4) % 64
        extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
        header = (0, 0x0808, 0, 0, 0, 0, 0, 0, len(path), len(extra))
        body += b"PK\3\4" + struct.pack("<5H3I2H", *header) + path + extra + data
        if data:
            body += b"PK\7\x08" + struct.pack("<3I", crc, len(data), len(data))
        entry = (0, 0, 0x0808, 0, 0, 0, crc, len(data), len(data), len(path), 0, 0, 0, 0, 0, offset)
        directory += b"PK\1\2" + struct.pack("<6H3I5H2I", *entry) + path
    count, start, size = len(records), len(body), len(directory)
    body += directory
    end = (44, 0x031E, 45, 0, 0, count, count, size, start)
    body += b"PK\6\6" + struct.pack("<Q2H2I4Q", *end)
    body += b"PK\6\7" + struct.pack("<IQI", 0, start + size, 1)
    return bytes(body + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, count, count, size, start, 0))


def records_of(item: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(item)) as file:
        return {name.removeprefix("archive/"): file.read(name) for name in file.namelist()}


def data_offset(item: bytes) -> int:
    """Where an archive's raw data begins, from the headers."""
    with zipfile.ZipFile(io.BytesIO(item)) as file:
        start = file.getinfo("archive/data/0").header_offset
    name, extra = struct.unpack("<2H", item[start + 26 : start + 30])
    return int(start + 30 + name + extra)


def rebuilt(item: bytes, version: str) -> bytes:
    """The item as that version of torch would have written it."""
    found = records_of(item)
    return archive([(name, found[name]) for name in RECORDS[version][0] if name in found])


def written_by_torch(folder: Path) -> tuple[Metadata, dict[Any, bytes]]:
    """A checkpoint of this torch: its metadata and the bytes of each item."""
    dcp.save(state(), storage_writer=dcp.FileSystemWriter(folder, sync_files=False))
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    items = {}
    for index, info in metadata.storage_data.items():
        data = (folder / info.relative_path).read_bytes()
        items[index] = data[info.offset : info.offset + info.length]
    return metadata, items


def make_checkpoint(
    folder: Path, store: MemoryTransport, version: str, pickled: Callable[[Metadata], bytes]
) -> None:
    """A checkpoint of that version in a folder and in a store: two files, items in turn."""
    metadata, items = written_by_torch(folder)
    (folder / "__0_0.distcp").unlink()
    files = {"__0_0.distcp": b"", "__0_1.distcp": b""}
    metadata.storage_data = {}
    for number, (index, item) in enumerate(items.items()):
        old, name = rebuilt(item, version), f"__0_{number % 2}.distcp"
        metadata.storage_data[index] = _StorageInfo(name, len(files[name]), len(old))
        files[name] += old
    files[".metadata"] = pickled(metadata)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        store.put(BUCKET, f"{FOLDER}/{name}", data)


def load(reader: Any) -> dict[str, str]:
    target = peer_main.blank(state())
    dcp.load(target, storage_reader=reader)
    return peer_main.digests(target)


def expect_loads(reader: str, store: MemoryTransport, folder: Path | None) -> None:
    expected = peer_main.digests(state())
    if folder is not None:
        assert load(dcp.FileSystemReader(folder)) == expected
    assert load(S3StorageReader(ADDRESS, transport=store, reader_constructor=reader)) == expected


# Metadata of other versions.


def as_2_3(metadata: Metadata) -> bytes:
    """Fields that came later are absent; what a plan left behind is present."""
    for name in ("version", "storage_meta"):
        del metadata.__dict__[name]
    metadata.storage_prefix = _StoragePrefix("__0_")  # type: ignore[attr-defined]
    data = pickle.dumps(metadata)
    for name in (b"transform_descriptors", b"version", b"storage_meta", b"save_id"):
        assert name not in data
    assert b"_StoragePrefix" in data
    return data


def as_2_2(metadata: Metadata) -> bytes:
    """Tensor properties were those of sharded tensors."""
    for entry in metadata.state_dict_metadata.values():
        if isinstance(entry, TensorStorageMetadata):
            known = entry.properties
            entry.properties = ShardedProperties(known.dtype, known.layout)  # type: ignore[assignment]
    data = as_2_3(metadata)
    assert b"sharded_tensor.metadata" in data
    return data


def with_paths(metadata: Metadata) -> bytes:
    """Paths of files as pathlib objects."""
    for info in metadata.storage_data.values():
        info.relative_path = Path(info.relative_path)
    data = pickle.dumps(metadata)
    assert b"pathlib" in data
    return data


def with_pure_paths(metadata: Metadata) -> bytes:
    for info in metadata.storage_data.values():
        info.relative_path = PurePosixPath(info.relative_path)
    return pickle.dumps(metadata)


def as_2_15(metadata: Metadata) -> bytes:
    """Tensor properties have a sixth value: strides, or None."""

    class Pickler(pickle.Pickler):
        strides = 0

        def reducer_override(self, value: Any) -> Any:
            if type(value) is not TensorProperties:
                return NotImplemented
            self.strides += 1
            sixth = (12, 1) if self.strides % 2 else None
            new = (copyreg.__newobj__, (TensorProperties,))  # type: ignore[attr-defined]
            return (*new, (*value.__getstate__()[:5], sixth))

    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol=2)
    pickler.dump(metadata)
    assert pickler.strides > 1
    return buffer.getvalue()


METADATA: dict[str, Callable[[Metadata], bytes]] = {
    "torch_2.2": as_2_2,
    "torch_2.3": as_2_3,
    "torch_2.15": as_2_15,
    "paths": with_paths,
    "pure_paths": with_pure_paths,
    "protocol_2": lambda metadata: pickle.dumps(metadata, protocol=2),
    "protocol_5": lambda metadata: pickle.dumps(metadata, protocol=5),
}


@pytest.mark.skipif(TORCH < (2, 7), reason="this torch writes other records")
def test_the_recipe_makes_what_torch_makes(tmp_path: Path) -> None:
    _, items = written_by_torch(tmp_path)
    for index, item in items.items():
        assert rebuilt(item, "torch_2.7") == item, index


@pytest.mark.parametrize("version", RECORDS)
def test_the_recipe_puts_the_data_where_that_version_did(version: str, tmp_path: Path) -> None:
    _, items = written_by_torch(tmp_path)
    tensors = [item for item in items.values() if "data/0" in records_of(item)]
    assert len(tensors) == 6
    for item in tensors:
        old = rebuilt(item, version)
        assert data_offset(old) == RECORDS[version][1]
        before, after = (
            torch.load(io.BytesIO(archived), weights_only=True) for archived in (item, old)
        )
        assert torch.equal(before, after)
        assert before.stride() == after.stride()


@pytest.mark.parametrize("reader", available_readers())
@pytest.mark.parametrize("version", RECORDS)
def test_items_of_other_versions_load(
    version: str, reader: str, store: MemoryTransport, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path, store, version, pickle.dumps)
    expect_loads(reader, store, tmp_path)


@pytest.mark.parametrize("reader", available_readers())
@pytest.mark.parametrize("version", METADATA)
def test_metadata_of_other_versions_loads(
    version: str, reader: str, store: MemoryTransport, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path, store, "torch_2.3", METADATA[version])
    readable = version != "torch_2.15" or TORCH >= (2, 15)
    if not readable:
        with pytest.raises(ValueError, match="too many values"):
            dcp.FileSystemReader(tmp_path).read_metadata()
    expect_loads(reader, store, tmp_path if readable else None)


def test_a_load_without_a_state_dict_takes_old_metadata_too(
    store: MemoryTransport, tmp_path: Path
) -> None:
    for version in ("torch_2.2", "torch_2.15"):
        make_checkpoint(tmp_path, store, "torch_2.3", METADATA[version])
        metadata = S3StorageReader(ADDRESS, transport=store).read_metadata()
        for name in ("plain", "half", "scalar", "doubles.1.mask"):
            entry = metadata.state_dict_metadata[name]
            wanted = {"half": torch.bfloat16, "doubles.1.mask": torch.bool}
            assert entry.properties.dtype == wanted.get(name, torch.float32)
            assert entry.properties.memory_format == torch.contiguous_format
        assert metadata.storage_meta.load_id


@pytest.mark.parametrize("reader", available_readers())
@pytest.mark.parametrize(
    ("setting", "value"), [("storage_alignment", 4096), ("compute_crc32", False)]
)
def test_items_saved_with_other_settings(
    setting: str, value: Any, reader: str, store: MemoryTransport, tmp_path: Path
) -> None:
    _, usual = written_by_torch(tmp_path)
    with serialization.patch({f"save.{setting}": value}):
        _, items = written_by_torch(tmp_path)
        dcp.save(state(), storage_writer=S3StorageWriter(ADDRESS, transport=store))
    # Ours, in the same setting, are the same bytes.
    ours = S3StorageReader(ADDRESS, transport=store).read_metadata()
    for index, info in ours.storage_data.items():
        key = f"{FOLDER}/{info.relative_path}"
        with store.get(BUCKET, key, info.offset, info.offset + info.length) as body:
            assert body.readall() == items[index], index.fqn
    plain = next(index for index in items if index.fqn == "plain")
    assert items[plain] != usual[plain]
    assert data_offset(items[plain]) == (20480 if setting == "storage_alignment" else 704)
    expect_loads(reader, store, tmp_path)

    for name in ("__0_0.distcp", ".metadata"):
        store.put(BUCKET, f"{FOLDER}/{name}", (tmp_path / name).read_bytes())
    expect_loads(reader, store, None)

"""What a save notes beside its items, against the bytes that are stored; its figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from awscrt import checksums as oracle
from support.dcp import Place, assert_same, blank, everything, quiet
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import S3StorageReader, S3StorageWriter
from torch_s3dcp.checkpoint_metadata import CHECKSUMS
from torch_s3dcp.chunk_checksums import parse_checksums
from torch_s3dcp.stats import SaveProgress, SaveStats
from torch_s3dcp.transports import BotoTransport, Uploaded

MIB = 2**20
STATE = {
    "large": torch.arange(3 * MIB + 77, dtype=torch.float32),
    "turned": torch.arange(600 * 400, dtype=torch.float64).reshape(600, 400).t(),
    "small": torch.arange(100),
    "empty": torch.zeros(0),
    "scalar": torch.tensor(3),
    "blob": b"x" * 200_000,
    "step": 7,
}


def save(state: Any, writer: S3StorageWriter) -> SaveStats:
    with quiet():
        dcp.save(state, storage_writer=writer)
    assert writer.stats is not None
    return writer.stats


def check_items(place: Place, address: str) -> int:
    """Compare every stored checksum with the stored bytes; how many items have some."""
    path = address.removeprefix(f"s3://{place.bucket}/")
    metadata = S3StorageReader(address, transport=place.transport).read_metadata()
    verified = 0
    for index, info in metadata.storage_data.items():
        stored = getattr(info, CHECKSUMS, None)
        if stored is None:
            continue
        checksums = parse_checksums(stored, info.length)
        assert checksums is not None, index
        item = place.read(f"{path}/{info.relative_path}")[info.offset :][: info.length]
        ends = 0
        for start, end, value in checksums.pieces(info.length):
            assert start == ends, index
            assert value == oracle.crc64nvme(item[start:end]), (index, start, end)
            ends = end
        assert ends == info.length, index
        verified += 1
    return verified


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_have_the_checksums_of_the_stored_bytes(place: Place, threads: int) -> None:
    address = place.url("run")
    writer = S3StorageWriter(address, transport=place.transport, thread_count=threads)
    stats = save(STATE, writer)
    assert check_items(place, address) == len(STATE)
    assert (stats.items, stats.unverifiable_items) == (len(STATE), 0)
    assert stats.files == threads
    data = place.listing("run/__")
    assert stats.bytes_stored == sum(len(place.read(key)) for key in data)
    assert stats.data_requests >= threads
    assert stats.upload_seconds > 0
    assert stats.commit_seconds > 0


def test_every_kind_of_item_has_some(memory: Place) -> None:
    stats = save(everything(), memory.writer("run"))
    assert check_items(memory, memory.url("run")) == stats.items > 50


@pytest.mark.server
@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256"])
def test_whatever_checksum_is_sent_the_stored_ones_are_the_same(
    on_seaweed: Place, algorithm: str
) -> None:
    assert isinstance(on_seaweed.transport, BotoTransport)
    config = on_seaweed.transport.config.replace(checksum_algorithm=algorithm)
    other = on_seaweed.over(BotoTransport(on_seaweed.transport.region, config))
    save(STATE, other.writer("run"))
    assert check_items(other, other.url("run")) == len(STATE)


def test_data_begins_at_a_cut(memory: Place) -> None:
    """So that aligned slices need no other bytes."""
    save(STATE, memory.writer("run"))
    storage_data = memory.reader("run").read_metadata().storage_data
    (info,) = [info for index, info in storage_data.items() if index.fqn == "large"]
    begin, end, _, _ = getattr(info, CHECKSUMS)
    raw = memory.read(f"run/{info.relative_path}")[info.offset :][: info.length][begin:end]
    assert raw == STATE["large"].numpy().tobytes()


class Blind:
    """A transport that takes blocks without asking for their checksums."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def upload(self, bucket: str, key: str, stream: Any, **_: Any) -> Any:
        data = b"".join(stream.take(10**9))
        self.inner.put(bucket, key, data)
        return Uploaded(len(data))


def test_items_without_are_counted_and_load(memory: Place) -> None:
    transport: Any = Blind(memory.transport)
    stats = save(STATE, S3StorageWriter(memory.url("run"), transport=transport))
    assert stats.unverifiable_items == 3, "those that are large"
    assert check_items(memory, memory.url("run")) == len(STATE) - 3
    assert_same(memory.load(blank(STATE), "run"), STATE)


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_is_told_until_all_is_done(place: Place, threads: int) -> None:
    told: list[SaveProgress] = []
    writer = place.writer("run", thread_count=threads, progress=told.append)
    stats = save(STATE, writer)
    done = [step.bytes_done for step in told]
    assert done == sorted(done)
    assert all(step.bytes_done <= step.bytes_total for step in told)
    assert [step.files_done for step in told] == sorted(step.files_done for step in told)
    size = stats.bytes_stored
    assert told[-1] == SaveProgress(size, size, threads, threads)


def test_an_error_in_the_progress_callback_fails_the_save(place: Place) -> None:
    def broken(_: SaveProgress) -> None:
        raise RuntimeError("the display is gone")

    with pytest.raises(CheckpointException, match="the display is gone"):
        save(STATE, place.writer("run", progress=broken, thread_count=2))
    assert place.listing() == []


@pytest.mark.server
def test_a_callback_may_save_by_itself(on_seaweed: Place) -> None:
    """Nothing of the upload waits for it."""
    saved: list[int] = []

    def also(step: SaveProgress) -> None:
        if not saved:
            saved.append(step.bytes_done)
            save({"step": step.bytes_done}, on_seaweed.writer("beside"))

    large = {f"w{n}": torch.full((5 * MIB,), float(n)) for n in range(3)}
    save(large, on_seaweed.writer("run", progress=also))
    assert_same(on_seaweed.load({"step": -1}, "beside"), {"step": saved[0]})
    assert_same(on_seaweed.load(blank(large), "run"), large)

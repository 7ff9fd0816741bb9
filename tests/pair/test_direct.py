"""The direct strategy: which bytes it asks for, where they land, and what it counts."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, failures, quiet, randn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

from torch_s3dcp import S3ClientConfig, S3StorageReader
from torch_s3dcp.exceptions import (
    EndpointError,
    IntegrityError,
    InvalidCheckpointError,
    WrongRangeError,
)
from torch_s3dcp.readers.direct import DirectReaders
from torch_s3dcp.stats import LoadStats
from torch_s3dcp.testing.wrappers import Fault, FaultTransport, RecordingTransport

BIG = (1024, 1024)
MIB = 2**20


def load(
    place: Place,
    state: dict[str, Any],
    planner: Any = None,
    integrity: str = "full",
    **settings: Any,
) -> tuple[LoadStats, RecordingTransport]:
    """Load through ``direct``; return its figures and its requests."""
    transport = RecordingTransport(place.transport)
    reader = S3StorageReader(
        place.url("run"),
        transport=transport,
        reader_constructor=DirectReaders(**settings),
        integrity=integrity,
    )
    with quiet():
        dcp.load(state, storage_reader=reader, planner=planner)
    assert reader.stats is not None
    return reader.stats, transport


class WaitsForCollector(RecordingTransport):
    """Gives no data before the garbage collector runs, or 10 s are over."""

    waited = 0.0

    def get(self, bucket: str, key: str, *where: Any, **conditions: Any) -> Any:
        begin = time.monotonic()
        while not (key.endswith(".metadata") or gc.isenabled()) and self.waited < 10:
            time.sleep(0.01)
            self.waited = time.monotonic() - begin
        return super().get(bucket, key, *where, **conditions)


def test_garbage_is_collected_while_a_server_is_slow(memory: Place) -> None:
    memory.save({"w": randn(*BIG)}, "run")
    transport = WaitsForCollector(memory.transport)
    reader = S3StorageReader(memory.url("run"), transport=transport)
    with quiet():
        dcp.load({"w": torch.zeros(BIG)}, storage_reader=reader)
    assert transport.waited < 5
    assert gc.isenabled()


class Slice(dcp.DefaultLoadPlanner):
    """Wants a box of every tensor, into a destination of its own."""

    def __init__(self, box: tuple[slice, ...]) -> None:
        super().__init__()
        self.box = box
        self.got: dict[str, torch.Tensor] = {}

    def finish_plan(self, plan: LoadPlan) -> LoadPlan:
        items = []
        for item in plan.items:
            offsets = torch.Size(part.start for part in self.box)
            lengths = torch.Size(part.stop - part.start for part in self.box)
            items.append(
                ReadItem(item.type, item.dest_index, offsets, item.storage_index, offsets, lengths)
            )
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        size = tuple(read_item.lengths)
        return self.got.setdefault(read_item.dest_index.fqn, torch.zeros(size))


def test_large_tensors_are_received_in_place_and_without_head(memory: Place) -> None:
    saved = {f"w{n}": randn(*BIG, seed=n) for n in range(4)}
    memory.save(saved, "run", thread_count=2)
    state = {name: torch.zeros(BIG) for name in saved}
    stats, transport = load(memory, state)
    assert_same(state, saved)
    assert (stats.direct_items, stats.scratch_items, stats.fallback_items) == (4, 0, 0)
    assert stats.peak_scratch < 64 * 1024
    assert [call.operation for call in transport.requests] == ["get"] * stats.requests
    assert stats.bytes_read == stats.bytes_needed


def test_many_small_tensors_share_requests(memory: Place) -> None:
    saved = {f"w{n}": randn(64, seed=n) for n in range(500)}
    memory.save(saved, "run")
    state = {name: torch.zeros(64) for name in saved}
    stats, _ = load(memory, state)
    assert_same(state, saved)
    assert (stats.metadata_requests, stats.data_requests, stats.requests) == (1, 1, 2)
    assert stats.scratch_items == 500


@pytest.mark.parametrize(
    ("box", "exact"),
    [
        ((slice(256, 384), slice(0, 1024)), True),
        ((slice(0, 1024), slice(128, 256)), False),
        ((slice(100, 101), slice(7, 8)), True),
    ],
    ids=["rows", "columns", "element"],
)
def test_a_slice_costs_its_own_bytes(memory: Place, box: Any, exact: bool) -> None:
    saved = {"w": randn(*BIG)}
    memory.save(saved, "run")
    planner = Slice(box)
    gap = 64 * 1024
    stats, _ = load(memory, {"w": torch.zeros(BIG)}, planner, "headers", max_gap_size=gap)
    assert torch.equal(planner.got["w"], saved["w"][box])
    wanted = planner.got["w"].nbytes
    if exact:
        assert stats.bytes_read <= wanted + 2048
    assert stats.bytes_read <= saved["w"].nbytes
    assert (stats.verified_items, stats.unverified_items) == (0, 1)


@pytest.mark.parametrize(
    ("rows", "chunks"), [((256, 384), 1), ((250, 300), 2), ((0, 512), 2), ((7, 8), 1)]
)
def test_a_verified_slice_costs_its_pieces(
    memory: Place, rows: tuple[int, int], chunks: int
) -> None:
    saved = {"w": randn(*BIG)}
    memory.save(saved, "run")
    planner = Slice((slice(*rows), slice(0, 1024)))
    stats, _ = load(memory, {"w": torch.zeros(BIG)}, planner, max_gap_size=0)
    assert torch.equal(planner.got["w"], saved["w"][slice(*rows)])
    assert chunks * MIB < stats.bytes_read <= chunks * MIB + 2048
    assert stats.bytes_needed <= planner.got["w"].nbytes + 2048
    assert (stats.verified_items, stats.unverified_items) == (1, 0)


def test_columns_without_gaps_are_fetched_run_by_run(memory: Place) -> None:
    saved = {"w": randn(64, 1024)}
    memory.save(saved, "run")
    planner = Slice((slice(0, 64), slice(0, 512)))
    stats, _ = load(memory, {"w": torch.zeros(64, 1024)}, planner, "headers", max_gap_size=0)
    assert torch.equal(planner.got["w"], saved["w"][:, :512])
    assert stats.data_requests == 64
    assert stats.bytes_read <= planner.got["w"].nbytes + 2048


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(BIG, dtype=torch.float64),
        lambda: torch.zeros(BIG).t(),
        lambda: torch.zeros(1024, 2048)[:, ::2],
    ],
    ids=["dtype", "transposed", "strided"],
)
def test_other_destinations_are_filled_through_scratch(memory: Place, make: Any) -> None:
    saved = randn(*BIG)
    memory.save({"w": saved}, "run")
    state = {"w": make()}
    stats, _ = load(memory, state)
    assert torch.equal(state["w"].float(), saved)
    assert (stats.direct_items, stats.scratch_items) == (0, 1)


@pytest.mark.parametrize(
    "stored",
    [randn(*BIG).t(), randn(256, 512, dtype=torch.complex64).conj()],
    ids=["strides", "conj"],
)
def test_a_surprise_in_the_envelope_goes_to_torch(memory: Place, stored: torch.Tensor) -> None:
    memory.save({"w": stored}, "run")
    state = {"w": torch.zeros(stored.shape, dtype=stored.dtype)}
    stats, _ = load(memory, state)
    assert torch.equal(state["w"], stored)
    assert (stats.direct_items, stats.fallback_items) == (0, 1)


def test_a_damaged_envelope_is_an_error_and_commits_nothing(memory: Place) -> None:
    memory.save({"w": randn(*BIG)}, "run")
    (path,) = memory.listing("run/__")
    whole = bytearray(memory.read(path))
    whole[0:4] = b"\0\0\0\0"
    memory.transport.put(memory.bucket, path, bytes(whole))
    for integrity, kind in {"full": IntegrityError, "headers": InvalidCheckpointError}.items():
        with pytest.raises(CheckpointException) as caught:
            load(memory, {"w": torch.zeros(BIG)}, None, integrity)
        (error,) = failures(caught.value)
        assert type(error) is kind
        assert error.tensor == "w"


def test_the_gap_decides_between_reading_through_and_asking_again(memory: Place) -> None:
    saved = {f"w{n}": randn(*BIG, seed=n) for n in range(5)}
    memory.save(saved, "run")
    wanted = {"w0": torch.zeros(BIG), "w4": torch.zeros(BIG)}
    apart, _ = load(memory, dict(wanted), max_gap_size=0)
    through, _ = load(memory, dict(wanted), max_gap_size=2**30, part_size=2**30)
    assert (apart.data_requests, apart.bytes_wasted) == (2, 0)
    assert through.data_requests == 1
    assert through.bytes_wasted > saved["w1"].nbytes


def test_other_readers_know_what_concerns_items(memory: Place) -> None:
    memory.save({"w": randn(10)}, "run")
    reader = memory.reader("run", reader_constructor="sequential")
    with quiet():
        dcp.load({"w": torch.zeros(10)}, storage_reader=reader)
    assert reader.stats is not None
    assert (reader.stats.metadata_requests, reader.stats.data_requests) == (1, 0)
    assert (reader.stats.fallback_items, reader.stats.verified_items) == (1, 1)
    assert reader.stats.bytes_needed > 40


def load_many(place: Place, transport: Any, **limits: int) -> LoadStats:
    """Save 16 tensors and load them, a request for each MiB; return the load's figures."""
    saved = {f"w{n}": randn(*BIG, seed=n) for n in range(16)}
    place.save(saved, "run")
    state = {name: torch.zeros(BIG) for name in saved}
    reader = S3StorageReader(
        place.url("run"),
        transport=transport,
        s3client_config=S3ClientConfig(**limits),
        reader_constructor=DirectReaders(part_size=MIB),
    )
    with quiet():
        dcp.load(state, storage_reader=reader)
    assert_same(state, saved)
    assert reader.stats is not None
    return reader.stats


class Busy(RecordingTransport):
    """Every answer comes after a refusal that the transport got over by itself."""

    def get(self, *where: Any, **conditions: Any) -> Any:
        body = super().get(*where, **conditions)
        body.retries = 1
        return body


def test_a_server_that_refuses_is_asked_less(memory: Place) -> None:
    stats = load_many(memory, Busy(memory.transport), initial_concurrency=4)
    assert stats.retries == stats.data_requests
    assert stats.concurrency == 4
    assert stats.requests == 1 + 2 * stats.data_requests


def test_the_number_of_requests_in_flight_is_bounded(memory: Place) -> None:
    stats = load_many(memory, memory.transport, initial_concurrency=2, max_concurrency=3)
    assert stats.concurrency <= 3
    assert stats.peak_in_flight <= 3 * MIB


@pytest.mark.parametrize(
    "fault",
    [
        Fault("get", error=WrongRangeError("other bytes"), nth=3),
        Fault("get", body="cut", after=100_000, nth=3),
        Fault("get", body="truncate", after=5, nth=2),
    ],
    ids=["wrong range", "cut", "truncated"],
)
def test_what_goes_wrong_once_is_made_good_and_counted(memory: Place, fault: Fault) -> None:
    saved = {f"w{n}": randn(*BIG, seed=n) for n in range(3)}
    memory.save(saved, "run")
    state = {name: torch.zeros(BIG) for name in saved}
    reader = S3StorageReader(
        memory.url("run"),
        transport=FaultTransport(memory.transport, [fault]),
        reader_constructor=DirectReaders(part_size=2 * MIB),
    )
    with quiet():
        dcp.load(state, storage_reader=reader)
    assert_same(state, saved)
    assert reader.stats is not None
    assert reader.stats.retries == 1


def test_a_connection_that_stays_broken_ends_the_load(memory: Place) -> None:
    memory.save({"w": randn(*BIG)}, "run")
    transport = FaultTransport(
        memory.transport, [Fault("get", error=EndpointError("no route"), nth=2, times=None)]
    )
    reader = S3StorageReader(memory.url("run"), transport=transport)
    with quiet(), pytest.raises(CheckpointException) as caught:
        dcp.load({"w": torch.zeros(BIG)}, storage_reader=reader)
    (error,) = failures(caught.value)
    assert type(error) is EndpointError
    assert (error.bucket, error.tensor) == (memory.bucket, "w")


def test_scratch_stays_within_the_budget(memory: Place) -> None:
    saved = {f"w{n}": randn(2048, 2048, seed=n) for n in range(6)}
    memory.save(saved, "run")
    state = {name: torch.zeros(2048, 2048, dtype=torch.float64) for name in saved}
    config = S3ClientConfig(memory_budget=16 * MIB)
    reader = S3StorageReader(memory.url("run"), transport=memory.transport, s3client_config=config)
    with quiet():
        dcp.load(state, storage_reader=reader)
    assert_same(state, {name: value.double() for name, value in saved.items()})
    assert reader.stats is not None
    assert reader.stats.scratch_items == 6
    # One request may begin just below the budget.
    assert reader.stats.peak_scratch <= (16 + 16) * MIB

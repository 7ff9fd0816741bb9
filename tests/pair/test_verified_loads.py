"""Damaged bytes: a load gives what was saved, or an error that says where the damage is."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import READERS, Place, assert_same, blank, failures, quiet, randn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

from torch_s3dcp import S3StorageReader
from torch_s3dcp.checkpoint_metadata import CHECKSUMS
from torch_s3dcp.exceptions import ConfigurationError, IntegrityError
from torch_s3dcp.readers.direct import DirectReaders
from torch_s3dcp.stats import LoadStats
from torch_s3dcp.testing.wrappers import Call, Fault, FaultTransport, TransportWrapper
from torch_s3dcp.transports.contract import RawBody

MIB = 2**20
STATE: dict[str, Any] = {
    "large": randn(700, 1037),
    "turned": randn(300, 200).t(),
    "middle": randn(100, 200),
    "small": {f"s{n}": randn(50, seed=n) for n in range(20)},
    "scalar": torch.tensor(3.5),
    "blob": bytes(range(256)) * 3000,
    "step": 7,
}


class Flips(TransportWrapper):
    """Turns round one bit of an object's data wherever it is received, ``times`` times.

    The first ``skipped`` times it arrives well.
    """

    def __init__(self, inner: Any, offset: int, times: int | None = 1, skipped: int = 0) -> None:
        super().__init__(inner)
        self.offset = offset
        self.times = times
        self.skipped = skipped
        self.struck = 0
        self.left = 0
        self.lock = threading.Lock()

    def reconnect(self) -> None:
        self.left += 1

    def body(self, call: Call, raw: RawBody) -> RawBody:
        return raw if (call.key or "").endswith(".metadata") else _Flipping(raw, call, self)


class _Flipping:
    def __init__(self, raw: RawBody, call: Call, flips: Flips) -> None:
        self.raw, self.flips, self.position = raw, flips, call.start or 0

    def readinto(self, buffer: memoryview) -> int:
        count = self.raw.readinto(buffer) or 0
        at = self.flips.offset - self.position
        with self.flips.lock:
            if 0 <= at < count and self.flips.struck != self.flips.times:
                if self.flips.skipped:
                    self.flips.skipped -= 1
                else:
                    self.flips.struck += 1
                    buffer[at] ^= 0x10
        self.position += count
        return count

    def close(self) -> None:
        self.raw.close()


def load(place: Place, state: Any, flips: Flips, planner: Any = None, **options: Any) -> LoadStats:
    reader = S3StorageReader(place.url("run"), transport=flips, **options)
    with quiet():
        dcp.load(state, storage_reader=reader, planner=planner)
    assert reader.stats is not None
    return reader.stats


def items_of(place: Place) -> dict[str, Any]:
    """Where each item lies, by name."""
    stored = place.reader("run").read_metadata().storage_data
    return {index.fqn: info for index, info in stored.items()}


def telling_offsets(place: Place) -> dict[str, int]:
    """One byte of every region of every kind of item, and those at the edges of pieces."""
    found = {}
    for name, info in items_of(place).items():
        if name.startswith("small.") and name != "small.s11":
            continue
        found[f"{name} first"] = info.offset
        found[f"{name} last"] = info.offset + info.length - 1
        begin, end, chunk, _ = getattr(info, CHECKSUMS)
        for place_, what in ((begin, "data"), (begin + chunk, "chunk 2"), (end, "trailer")):
            if 0 < place_ < info.length:
                found[f"{name} {what}"] = info.offset + place_
                found[f"{name} before {what}"] = info.offset + place_ - 1
        found[f"{name} middle"] = info.offset + info.length // 2
    return found


@pytest.mark.parametrize("reader", READERS)
def test_one_flip_anywhere_is_repaired(memory: Place, reader: str) -> None:
    memory.save(STATE, "run")
    for what, offset in telling_offsets(memory).items():
        state, flips = blank(STATE), Flips(memory.transport, offset)
        stats = load(memory, state, flips, reader_constructor=reader)
        assert_same(state, STATE, what)
        assert (flips.struck, stats.damaged_chunks, stats.unverified_items) == (1, 1, 0), what
        assert flips.left == 1, "it left its connections"


@pytest.mark.parametrize("reader", READERS)
def test_a_flip_that_stays_is_named(memory: Place, reader: str) -> None:
    memory.save(STATE, "run")
    places = items_of(memory)
    for what, offset in telling_offsets(memory).items():
        flips = Flips(memory.transport, offset, times=None)
        with pytest.raises(CheckpointException) as caught:
            load(memory, blank(STATE), flips, reader_constructor=reader)
        (error,) = failures(caught.value)
        assert type(error) is IntegrityError, what
        name = what.split()[0]
        assert (error.bucket, error.tensor) == ("bucket", name)
        assert error.key == f"run/{places[name].relative_path}"
        assert error.byte_range is not None
        assert error.byte_range[0] <= offset < error.byte_range[1], what
        assert flips.struck == 3


class Part(dcp.DefaultLoadPlanner):
    """Wants boxes of a tensor, each into a destination of its own."""

    def __init__(self, boxes: list[tuple[slice, ...]], make: Any = torch.zeros) -> None:
        super().__init__()
        self.boxes = boxes
        self.make = make
        self.got: list[torch.Tensor] = []
        self.committed: list[tuple[int, ...]] = []

    def finish_plan(self, plan: LoadPlan) -> LoadPlan:
        (item,) = plan.items
        return LoadPlan([self.wanted(item, box) for box in self.boxes])

    @staticmethod
    def wanted(item: ReadItem, box: tuple[slice, ...]) -> ReadItem:
        offsets = torch.Size(part.start for part in box)
        lengths = torch.Size(part.stop - part.start for part in box)
        return ReadItem(item.type, item.dest_index, offsets, item.storage_index, offsets, lengths)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        self.got.append(self.make(*read_item.lengths))
        return self.got[-1]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        box = zip(read_item.storage_offsets, read_item.lengths, strict=True)
        where = tuple(slice(start, start + size) for start, size in box)
        assert torch.equal(tensor.to(WIDE.dtype), WIDE[where])
        self.committed.append(tuple(tensor.shape))


WIDE = torch.arange(1500 * 1111, dtype=torch.float64).reshape(1500, 1111)
BOXES = {
    "rows": [(slice(201, 777), slice(0, 1111))],
    "one row": [(slice(5, 6), slice(0, 1111))],
    "columns": [(slice(0, 1500), slice(100, 300))],
    "inner": [(slice(300, 900), slice(1000, 1110))],
    "element": [(slice(700, 701), slice(30, 31))],
    "two halves": [(slice(0, 731), slice(0, 1111)), (slice(731, 1500), slice(0, 1111))],
    "overlapping": [(slice(0, 731), slice(0, 1111)), (slice(600, 900), slice(0, 1111))],
    "twice": [(slice(100, 731), slice(50, 90)), (slice(100, 731), slice(50, 90))],
    "whole": [(slice(0, 1500), slice(0, 1111))],
}
MAKERS = {
    "dense": lambda *shape: torch.zeros(shape, dtype=torch.float64),
    "cast": lambda *shape: torch.zeros(shape, dtype=torch.float32),
    "turned": lambda *shape: torch.zeros(shape[::-1], dtype=torch.float64).t(),
}


@pytest.mark.parametrize("gap", [0, 10_000])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("boxes", BOXES)
def test_slices_are_repaired(memory: Place, boxes: str, make: str, gap: int | None) -> None:
    memory.save({"w": WIDE}, "run")
    info = items_of(memory)["w"]
    begin = getattr(info, CHECKSUMS)[0]
    readers = DirectReaders(max_gap_size=gap, part_size=2 * MIB)
    for box in BOXES[boxes]:
        first = (box[0].start * 1111 + box[1].start) * 8
        last = ((box[0].stop - 1) * 1111 + box[1].stop) * 8 - 1
        for place in (first, last):
            flips = Flips(memory.transport, info.offset + begin + place)
            planner = Part(BOXES[boxes], MAKERS[make])
            stats = load(memory, {"w": WIDE * 0}, flips, planner, reader_constructor=readers)
            assert len(planner.committed) == len(BOXES[boxes])
            assert stats.damaged_chunks == flips.struck
            assert flips.struck == 1


def test_what_is_read_for_a_slice_is_bounded(memory: Place) -> None:
    """Whole pieces, and a piece only once for one box."""
    memory.save({"w": WIDE}, "run")
    whole = items_of(memory)["w"].length
    for boxes in BOXES.values():
        if len(boxes) > 1:
            continue
        planner = Part(boxes, MAKERS["dense"])
        readers = DirectReaders(max_gap_size=0)
        flips = Flips(memory.transport, -1)
        stats = load(memory, {"w": WIDE * 0}, flips, planner, reader_constructor=readers)
        (box,) = boxes
        covering = (box[0].stop - box[0].start) * 1111 * 8
        assert stats.bytes_read <= min(whole, covering + 2 * MIB + 2048)


def torch_saved(place: Place, state: Any, folder: Path) -> None:
    with quiet():
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder))
    place.copy_up(folder, "run")


FOREIGN: dict[str, Any] = {
    "large": randn(700, 1037),
    "middle": randn(100, 200),
    "turned": randn(300, 200).t(),
    "blob": bytes(range(256)) * 3000,
}


@pytest.mark.parametrize("reader", READERS)
def test_checkpoints_of_torch_are_verified_by_their_archives(
    memory: Place, reader: str, tmp_path: Path
) -> None:
    torch_saved(memory, FOREIGN, tmp_path)
    for name, info in items_of(memory).items():
        for place in (info.length // 2, 1500):
            state = blank(FOREIGN)
            flips = Flips(memory.transport, info.offset + place)
            stats = load(memory, state, flips, reader_constructor=reader)
            assert_same(state, FOREIGN)
            # `direct` fetches what is stored with other strides twice, the flip in vain.
            in_vain = (reader, name) == ("direct", "turned")
            assert (stats.damaged_chunks, stats.unverified_items) == (not in_vain, 0)
            flips = Flips(memory.transport, info.offset + place, times=None)
            with pytest.raises(CheckpointException) as caught:
                load(memory, blank(FOREIGN), flips, reader_constructor=reader)
            (error,) = failures(caught.value)
            assert type(error) is IntegrityError
            assert (error.tensor, flips.struck) == (name, 3 + in_vain)


@pytest.mark.parametrize("reader", ["direct", "sequential"])
def test_flips_anywhere_in_torchs_checkpoints_do_no_harm(
    memory: Place, reader: str, tmp_path: Path
) -> None:
    """What surrounds the records has no checksum: it is compared, means nothing, or an error."""
    refused = []
    state: Any = {"a": randn(9), "b": randn(200, 200), "c": [1, 2]}
    torch_saved(memory, state, tmp_path)
    (key,) = (key for key in memory.listing("run/") if key.endswith(".distcp"))
    size = len(memory.read(key))
    infos = items_of(memory).values()
    near = [info.offset + d for info in infos for d in (*range(0, 1000, 41), *range(-900, 0, 41))]
    for offset in sorted({offset for offset in near if 0 <= offset < size}):
        flips, loaded = Flips(memory.transport, offset), blank(state)
        try:
            load(memory, loaded, flips, reader_constructor=reader)
        except CheckpointException as error:
            refused += failures(error)
        else:
            assert_same(loaded, state, str(offset))
    assert len(refused) < 10, refused


def test_a_slice_of_torchs_checkpoint_is_not_verified_and_said_to_be(
    memory: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch_saved(memory, {"w": WIDE}, tmp_path)
    planner = Part(BOXES["rows"], MAKERS["dense"])
    with caplog.at_level(logging.WARNING, "torch_s3dcp"):
        stats = load(memory, {"w": WIDE * 0}, Flips(memory.transport, -1), planner)
    assert (stats.verified_items, stats.unverified_items) == (0, 1)
    assert "1 of 1 items" in caplog.text


ALL = (slice(0, 1500), slice(0, 1111))


@pytest.mark.parametrize("shared", [False, True])
def test_each_copy_of_torchs_tensor_is_verified(
    memory: Place, tmp_path: Path, shared: bool
) -> None:
    """Each is received by requests of its own; a plan may hold one request twice."""

    class Twice(Part):
        def finish_plan(self, plan: LoadPlan) -> LoadPlan:
            items = super().finish_plan(plan).items
            return LoadPlan(items[:1] * 2 if shared else items)

        def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
            return self.got[0] if shared and self.got else super().resolve_tensor(read_item)

    torch_saved(memory, {"w": WIDE}, tmp_path)
    place = items_of(memory)["w"].length // 2
    for skipped in (0, 1):
        flips = Flips(memory.transport, place, skipped=skipped)
        planner = Twice([ALL, ALL])
        stats = load(memory, {"w": WIDE * 0}, flips, planner)
        assert (stats.damaged_chunks, stats.verified_items, flips.struck) == (1, 1, 1)
        assert planner.committed == [(1500, 1111)] * 2


def test_a_slice_beside_the_whole_is_not_said_to_be_verified(memory: Place, tmp_path: Path) -> None:
    torch_saved(memory, {"w": WIDE}, tmp_path)
    for boxes in ([ALL, *BOXES["rows"]], [*BOXES["inner"], ALL]):
        stats = load(memory, {"w": WIDE * 0}, Flips(memory.transport, -1), Part(boxes))
        assert (stats.verified_items, stats.unverified_items) == (0, 1)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("integrity", ["headers", "off"])
def test_other_levels_let_flips_pass(
    memory: Place, reader: str, integrity: str, caplog: pytest.LogCaptureFixture
) -> None:
    memory.save({"w": WIDE}, "run")
    state = {"w": WIDE * 0}
    flips = Flips(memory.transport, items_of(memory)["w"].length // 2, times=None)
    with caplog.at_level(logging.WARNING, "torch_s3dcp"):
        stats = load(memory, state, flips, reader_constructor=reader, integrity=integrity)
    assert (state["w"] != WIDE).sum() == 1
    assert (stats.verified_items, stats.unverified_items, stats.damaged_chunks) == (0, 1, 0)
    warned = [one for one in caplog.records if one.name.startswith("torch_s3dcp")]
    assert not warned


class Distrusts(TransportWrapper):
    """Says of ``.metadata`` that it does not match the server's checksum, ``times`` times."""

    def __init__(self, inner: Any, times: int) -> None:
        super().__init__(inner)
        self.times = times

    def before(self, call: Call) -> None:
        if (call.key or "").endswith(".metadata") and self.times:
            self.times -= 1
            raise IntegrityError("another checksum")


def test_damaged_metadata_is_asked_for_again(memory: Place) -> None:
    memory.save({"w": WIDE}, "run")
    state = {"w": WIDE * 0}
    transport = Distrusts(memory.transport, 2)
    with quiet():
        dcp.load(state, storage_reader=S3StorageReader(memory.url("run"), transport=transport))
    assert torch.equal(state["w"], WIDE)
    assert transport.times == 0
    fault = Fault("get", body="flip", after=300, key="run/.metadata")
    flipping = FaultTransport(memory.transport, [fault])
    with quiet():
        dcp.load(state, storage_reader=S3StorageReader(memory.url("run"), transport=flipping))
    assert flipping.struck == 1
    for_ever = S3StorageReader(memory.url("run"), transport=Distrusts(memory.transport, 3))
    with quiet(), pytest.raises(CheckpointException) as caught:
        dcp.load(state, storage_reader=for_ever)
    assert type(failures(caught.value)[0]) is IntegrityError


def test_a_level_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'full', 'headers', 'off'"):
        S3StorageReader("s3://bucket/run", integrity="some")


@pytest.mark.server
@pytest.mark.parametrize("reader", READERS)
def test_a_flip_on_the_way_from_a_server(on_seaweed: Place, reader: str) -> None:
    on_seaweed.save(STATE, "run")
    fault = Fault("get", body="flip", after=900_000, nth=2)
    transport = FaultTransport(on_seaweed.transport, [fault])
    loader = S3StorageReader(on_seaweed.url("run"), transport=transport, reader_constructor=reader)
    state = blank(STATE)
    with quiet():
        dcp.load(state, storage_reader=loader)
    assert_same(state, STATE)
    assert transport.struck == 1
    assert loader.stats is not None
    assert loader.stats.damaged_chunks == 1

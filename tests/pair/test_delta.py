"""Delta saves: complete checkpoints of which only what changed was uploaded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, quiet, randn
from support.transports import Tap
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from torch_s3dcp import S3ClientConfig, S3StorageWriter
from torch_s3dcp.exceptions import AccessDeniedError, ConfigurationError
from torch_s3dcp.stats import SaveProgress, SaveStats
from torch_s3dcp.testing.wrappers import Fault, FaultTransport, RecordingTransport
from torch_s3dcp.transports import MemoryTransport

MIB = 2**20
#: 20 layers of 1 MiB each, and a head.
MODEL = {f"layer.{n:02}": randn(512, 512, seed=n) for n in range(20)}
FIRST = {**MODEL, "head": randn(256, 512, seed=90), "step": 1, "scalar": torch.tensor(2.0)}
#: The head and the step have changed: 0.5 of 20.5 MiB.
SECOND = {**FIRST, "head": randn(256, 512, seed=91), "step": 2}


def save(place: Place, state: Any, path: str, **options: Any) -> SaveStats:
    writer = place.writer(path, **options)
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("error", "everything is uploaded")
        dcp.save(state, storage_writer=writer)
    assert writer.stats is not None
    return writer.stats


def check(place: Place, path: str, state: Any, folder: Path) -> None:
    """The checkpoint is complete, for us and for torch."""
    assert_same(place.load(blank(state), path), state)
    local = blank(state)
    with quiet():
        dcp.load(local, storage_reader=FileSystemReader(place.copy_down(path, folder)))
    assert_same(local, state)


@pytest.mark.parametrize("threads", [1, 3])
def test_only_what_changed_is_uploaded(place: Place, threads: int, tmp_path: Path) -> None:
    full = save(place, FIRST, "one", thread_count=threads)
    stats = save(place, SECOND, "two", delta_from=place.url("one"), thread_count=threads)
    assert stats.bytes_uploaded <= 0.15 * full.bytes_uploaded
    assert stats.copied_items >= 18
    assert stats.bytes_stored == full.bytes_stored
    place.transport.delete(place.bucket, place.listing("one/"))
    check(place, "two", SECOND, tmp_path)


def test_deltas_of_deltas_stay_whole(memory: Place, tmp_path: Path) -> None:
    save(memory, FIRST, "0")
    state = dict(FIRST)
    for step in range(1, 5):
        state[f"layer.{3 * step:02}"] = randn(512, 512, seed=100 + step)
        stats = save(memory, state, str(step), delta_from=memory.url(str(step - 1)))
        assert stats.copied_items > 5
        memory.transport.delete(memory.bucket, memory.listing(f"{step - 1}/"))
        check(memory, str(step), state, tmp_path / str(step))


def test_previous_is_what_the_writer_saved_last(memory: Place, tmp_path: Path) -> None:
    writer = memory.writer("run", delta_from="previous")
    uploaded = []
    for step, state in enumerate((FIRST, SECOND, SECOND)):
        with quiet():
            dcp.save(state, checkpoint_id=memory.url(f"step-{step}"), storage_writer=writer)
        assert writer.stats is not None
        uploaded.append(writer.stats.bytes_uploaded)
    assert uploaded[0] > 20 * MIB
    assert uploaded[1] < MIB
    assert uploaded[2] < 200_000
    check(memory, "step-2", SECOND, tmp_path)


def test_a_checkpoint_may_replace_what_it_takes_from(place: Place, tmp_path: Path) -> None:
    save(place, FIRST, "run")
    before = place.listing("run/__")
    stats = save(place, SECOND, "run", delta_from=place.url("run"))
    assert stats.bytes_uploaded < MIB
    assert not set(before) & set(place.listing("run/__"))
    check(place, "run", SECOND, tmp_path)


def test_nothing_alike_is_a_full_save(memory: Place, tmp_path: Path) -> None:
    save(memory, FIRST, "one")
    other = {name: value + 1 for name, value in MODEL.items()}
    stats = save(memory, other, "two", delta_from=memory.url("one"))
    assert (stats.copied_items, stats.bytes_copied) == (0, 0)
    check(memory, "two", other, tmp_path)


def test_other_shapes_dtypes_and_names_are_not_taken(memory: Place, tmp_path: Path) -> None:
    save(memory, FIRST, "one")
    changed = dict(FIRST)
    changed["layer.00"] = FIRST["layer.00"].reshape(256, 1024)
    changed["layer.01"] = FIRST["layer.01"].view(torch.int32)
    changed["layer.02"] = FIRST["layer.02"].t()
    changed["renamed"] = changed.pop("layer.03")
    stats = save(memory, changed, "two", delta_from=memory.url("one"))
    assert stats.copied_items == len(FIRST) - 4
    check(memory, "two", changed, tmp_path)


def test_one_bit_is_a_change(memory: Place, tmp_path: Path) -> None:
    save(memory, FIRST, "one")
    changed = dict(FIRST)
    changed["layer.10"] = FIRST["layer.10"].clone()
    changed["layer.10"].view(torch.int32)[511, 511] ^= 1
    stats = save(memory, changed, "two", delta_from=memory.url("one"))
    assert MIB < stats.bytes_uploaded < 1.2 * MIB
    check(memory, "two", changed, tmp_path)


def test_small_ranges_are_uploaded(memory: Place) -> None:
    """The store copies no less than 5 MiB."""
    state = dict(list(FIRST.items())[:4])
    save(memory, state, "one")
    stats = save(memory, state, "two", delta_from=memory.url("one"))
    assert stats.bytes_copied == 0
    assert_same(memory.load(blank(state), "two"), state)


def test_checkpoints_of_torch_say_no_checksums(memory: Place, tmp_path: Path) -> None:
    with quiet():
        dcp.save(FIRST, storage_writer=FileSystemWriter(tmp_path / "one"))
    memory.copy_up(tmp_path / "one", "one")
    stats = save(memory, FIRST, "two", delta_from=memory.url("one"))
    assert stats.bytes_copied == 0
    assert_same(memory.load(blank(FIRST), "two"), FIRST)


@pytest.mark.parametrize("fault", ["absent", "damaged", "denied"])
def test_without_the_earlier_one_everything_is_uploaded(memory: Place, fault: str) -> None:
    place = memory
    if fault == "damaged":
        memory.transport.put(memory.bucket, "one/.metadata", b"no pickle")
    if fault == "denied":

        def deny(call: Any) -> None:
            if call.operation == "get" and call.keys == ("one/.metadata",):
                raise AccessDeniedError("no")

        place = memory.over(Tap(memory.transport, before=deny))
    writer = place.writer("two", delta_from=memory.url("one"))
    with quiet(), pytest.warns(UserWarning, match="everything is uploaded, since"):
        dcp.save(FIRST, storage_writer=writer)
    assert_same(memory.load(blank(FIRST), "two"), FIRST)


def test_data_that_is_gone_is_uploaded(memory: Place) -> None:
    save(memory, FIRST, "one")
    memory.transport.delete(memory.bucket, memory.listing("one/__"))
    assert save(memory, SECOND, "two", delta_from=memory.url("one")).bytes_copied == 0
    assert_same(memory.load(blank(SECOND), "two"), SECOND)


def test_damaged_data_is_not_taken(memory: Place, caplog: pytest.LogCaptureFixture) -> None:
    save(memory, FIRST, "one")
    (key,) = memory.listing("one/__")
    data = bytearray(memory.read(key))
    data[3 * MIB] ^= 1
    memory.transport.put(memory.bucket, key, bytes(data))
    assert save(memory, SECOND, "two", delta_from=memory.url("one")).bytes_copied == 0
    assert_same(memory.load(blank(SECOND), "two"), SECOND)
    assert "copying of what delta_from holds failed" in caplog.text
    assert "other bytes" in caplog.text


class Vanishing(RecordingTransport):
    """Something happens to the earlier data after it was seen, and before it is copied."""

    def __init__(self, place: Place, fault: str) -> None:
        super().__init__(place.transport)
        self.place, self.fault = place, fault

    def compose(self, *args: Any, **options: Any) -> Any:
        (key,) = self.place.listing("one/__")
        if self.fault == "deleted":
            self.place.transport.delete(self.place.bucket, [key])
        elif self.fault == "replaced":
            self.place.transport.put(self.place.bucket, key, b"other")
        return super().compose(*args, **options)


@pytest.mark.parametrize("fault", ["deleted", "replaced", "denied"])
def test_a_copy_that_fails_becomes_an_upload(memory: Place, fault: str) -> None:
    save(memory, FIRST, "one")
    told: list[SaveProgress] = []
    denied = FaultTransport(memory.transport, [Fault("compose", error=AccessDeniedError("no"))])
    place = memory.over(denied if fault == "denied" else Vanishing(memory, fault))
    stats = save(place, SECOND, "two", delta_from=memory.url("one"), progress=told.append)
    assert (stats.copied_items, stats.bytes_copied) == (0, 0)
    assert_same(memory.load(blank(SECOND), "two"), SECOND)
    assert told[-1] == SaveProgress(stats.bytes_stored, stats.bytes_stored, 1, 1)


class Plain:
    """A transport that cannot copy parts."""

    def __init__(self) -> None:
        self.inner = MemoryTransport("bucket")

    def head(self, bucket: str, key: str) -> Any:
        return self.inner.head(bucket, key)


def test_what_cannot_work_is_said_at_once(memory: Place) -> None:
    transport: Any = Plain()
    with pytest.raises(ConfigurationError, match="copies on the server"):
        memory.over(transport).writer("two", delta_from=memory.url("one"))
    with pytest.raises(ConfigurationError):
        memory.writer("two", delta_from="not an address")
    config = S3ClientConfig(checksum_algorithm="CRC32C")
    with pytest.raises(ConfigurationError, match="CRC64NVME"):
        S3StorageWriter("s3://bucket/two", s3client_config=config, delta_from="s3://bucket/one")

"""What is saved comes back to the last bit: every item, reader, transport and layout of keys."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import (
    READERS,
    Marked,
    Place,
    assert_same,
    blank,
    everything,
    odd_floats,
    quiet,
    randn,
    tensors,
)
from support.transports import Tap
from torch.distributed.checkpoint._extension import (
    ExtensionRegistry,
    StreamTransformExtension,
    ZStandard,
)
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import (
    BinaryPrefixStrategy,
    DCPOptimizedConstructor,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
    S3ReaderConstructor,
    S3StorageReader,
    S3StorageWriter,
)
from torch_s3dcp.transports import MemoryTransport

MIB = 1024**2
SEAWEED = pytest.param("seaweed", marks=pytest.mark.server)
CONSTRUCTORS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "sequential()": S3ReaderConstructor.sequential,
    "range_based()": S3ReaderConstructor.range_based,
    "range_based(0)": lambda: S3ReaderConstructor.range_based(0),
    "range_based(100)": lambda: S3ReaderConstructor.range_based(100),
    "dcp_optimized()": S3ReaderConstructor.dcp_optimized,
    "dcp_optimized(0)": lambda: S3ReaderConstructor.dcp_optimized(0),
    "dcp_optimized(inf)": lambda: S3ReaderConstructor.dcp_optimized(float("inf")),
    "DCPOptimizedConstructor": lambda: DCPOptimizedConstructor(64),
}


def test_every_kind_of_item_with_every_reader_by_name(place: Place) -> None:
    state = everything()
    place.save(state, "all", thread_count=2)
    for name in READERS:
        assert_same(place.load(blank(state), "all", reader_constructor=name), state, name)


@pytest.mark.parametrize("make", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_every_kind_of_item_with_every_constructor(memory: Place, make: Callable[[], Any]) -> None:
    state = everything()
    memory.save(state, "all")
    assert_same(memory.load(blank(state), "all", reader_constructor=make()), state)


@pytest.mark.parametrize("name", tensors())
def test_each_kind_of_tensor_alone_is_read_alike_by_torch(
    memory: Place, name: str, tmp_path: Path
) -> None:
    state = {"x": tensors()[name]}
    memory.save(state, "one")
    assert_same(memory.load(blank(state), "one"), state)
    theirs = blank(state)
    folder = memory.copy_down("one", tmp_path)
    with quiet():
        dcp.load(theirs, storage_reader=dcp.FileSystemReader(folder))
    assert_same(_without_scales(theirs), _without_scales(state))


def _without_scales(state: dict[str, Any]) -> dict[str, Any]:
    """torch's reader loads the integers of a quantised tensor, but not their scale."""
    return {
        key: _without_scales(value)
        if isinstance(value, dict)
        else value.int_repr()
        if isinstance(value, torch.Tensor) and value.is_quantized
        else value
        for key, value in state.items()
    }


def test_everything_is_read_alike_by_torch_and_from_torch(memory: Place, tmp_path: Path) -> None:
    state = everything()
    memory.save(state, "ours", thread_count=3)
    theirs = blank(state)
    with quiet():
        folder = memory.copy_down("ours", tmp_path / "ours")
        dcp.load(theirs, storage_reader=dcp.FileSystemReader(folder))
        dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "theirs", thread_count=3))
    assert_same(_without_scales(theirs), _without_scales(state))
    memory.copy_up(tmp_path / "theirs", "theirs")
    for name in READERS:
        loaded = memory.load(blank(state), "theirs", reader_constructor=name)
        assert_same(loaded, state, name)


def test_a_subclass_loads_once_its_type_is_allowed(memory: Place) -> None:
    state = {"x": randn(3, 4).as_subclass(Marked)}
    memory.save(state, "marked")
    with torch.serialization.safe_globals([Marked]):
        loaded = memory.load({"x": torch.zeros(3, 4)}, "marked")
    assert_same(loaded["x"], state["x"].as_subclass(torch.Tensor))


def test_strided_destinations_are_filled_in_place(memory: Place) -> None:
    memory.save({"a": randn(4, 6), "b": randn(2, 3, 4, 5), "c": randn(3, 4)}, "plain")
    around = torch.zeros(5, 10)
    targets = {
        "a": torch.zeros(6, 4).t(),
        "b": torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "c": around[1:4, ::3],
    }
    strides = {name: target.stride() for name, target in targets.items()}
    loaded = memory.load(dict(targets), "plain")
    assert_same(loaded, {"a": randn(4, 6), "b": randn(2, 3, 4, 5), "c": randn(3, 4)})
    assert {name: value.stride() for name, value in loaded.items()} == strides
    assert_same(around[1:4, ::3], randn(3, 4))
    assert not around[0].any()
    assert not around[:, 1::3].any()


def test_a_view_is_stored_without_the_storage_around_it(memory: Place) -> None:
    memory.save({"x": torch.zeros(1000, 1000)[:2, :2]}, "view")
    assert sum(len(memory.read(key)) for key in memory.listing("view/")) < 10_000


def test_a_load_casts_to_the_type_of_the_destination(place: Place) -> None:
    place.save({"x": randn(7, 5)}, "cast")
    for dtype in (torch.bfloat16, torch.float64, torch.float16):
        loaded = place.load({"x": torch.zeros(7, 5, dtype=dtype)}, "cast")
        assert_same(loaded["x"], randn(7, 5).to(dtype))


def test_a_partial_load_leaves_the_rest_alone_and_unread(memory: Place) -> None:
    state = {f"x{i}": randn(1000, seed=i) for i in range(20)}
    memory.save(state, "many")
    tap = Tap(memory.transport)
    loaded = memory.over(tap).load({"x7": torch.zeros(1000)}, "many")
    assert_same(loaded, {"x7": state["x7"]})
    (data_get,) = [call for call in tap.of("get") if not call.key.endswith(".metadata")]
    assert data_get.span is not None
    assert data_get.span[1] is not None
    assert 4000 < data_get.span[1] - data_get.span[0] < 8000


@pytest.mark.server
def test_large_objects_go_up_in_parts(on_seaweed: Place) -> None:
    state = {"a": randn(3 * MIB, seed=1), "b": randn(2 * MIB + 3, seed=2), "c": odd_floats()}
    on_seaweed.save(state, "large")
    client = on_seaweed.transport.client  # type: ignore[attr-defined]
    (key,) = [key for key in on_seaweed.listing("large/") if key.endswith(".distcp")]
    etag = client.head_object(Bucket=on_seaweed.bucket, Key=key)["ETag"].strip('"')
    assert etag.endswith("-5"), f"20 MiB in parts of 5 MiB, but the ETag is {etag}"
    for name in READERS:
        assert_same(on_seaweed.load(blank(state), "large", reader_constructor=name), state)


@pytest.mark.parametrize("place", ["memory", SEAWEED], indirect=True)
@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"thread_count": 1}, 1),
        ({"thread_count": 2}, 2),
        ({"thread_count": 4}, 4),
        ({"thread_count": 100}, 7),
        ({"single_file_per_rank": False}, 7),
        ({"single_file_per_rank": False, "thread_count": 3}, 7),
    ],
)
def test_files_per_rank(place: Place, options: dict[str, Any], files: int) -> None:
    state = {f"x{i}": randn(100 * (i + 1), seed=i) for i in range(6)} | {"blob": "text"}
    place.save(state, "files", **options)
    assert len([key for key in place.listing("files/") if key.endswith(".distcp")]) == files
    assert_same(place.load(blank(state), "files"), state)


@pytest.mark.parametrize("place", ["memory", "moto"], indirect=True)
@pytest.mark.parametrize(
    ("strategy", "start"),
    [
        (None, "__0_0_"),
        (NumericPrefixStrategy(8), "0000000000/__0_0_"),
        (BinaryPrefixStrategy(epoch_num=3), "0000000000/epoch_3/__0_0_"),
        (HexPrefixStrategy(min_prefix_length=4), "0000/__0_0_"),
        (RoundRobinPrefixStrategy(["shard/a", "b"], epoch_num=1), "shard/a/epoch_1/__0_0_"),
    ],
    ids=["default", "numeric", "binary", "hex", "round robin"],
)
def test_prefix_strategies(place: Place, strategy: S3PrefixStrategyBase | None, start: str) -> None:
    state = {"x": randn(10), "blob": [1, "two"]}
    place.save(state, "spread", prefix_strategy=strategy)
    (key,) = [key for key in place.listing("spread/") if key.endswith(".distcp")]
    assert key.startswith(f"spread/{start}")
    assert_same(place.load(blank(state), "spread"), state)


def test_compressed_items(place: Place, tmp_path: Path) -> None:
    state = {
        "x": torch.zeros(1000, 1000),
        "odd": odd_floats(),
        "blob": "text",
        "0d": torch.tensor(0.5),
    }
    place.save(state, "zstd", _extensions=[ZStandard()], thread_count=2)
    assert sum(len(place.read(key)) for key in place.listing("zstd/")) < 100_000
    for name in READERS:
        assert_same(place.load(blank(state), "zstd", reader_constructor=name), state)
    theirs = blank(state)
    with quiet():
        dcp.load(theirs, storage_reader=dcp.FileSystemReader(place.copy_down("zstd", tmp_path)))
    assert_same(theirs, state)


class Flipping(StreamTransformExtension):
    """Inverts all bytes: what it wrote cannot be mistaken for anything else."""

    @staticmethod
    def registry_name() -> str:
        return "test.flipping"

    @staticmethod
    def from_descriptor(version: str) -> Flipping:
        return Flipping()

    def get_descriptor(self) -> str:
        return "test.flipping/1"

    def transform_to(self, output: Any) -> Any:
        class Output(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, block: Any, /) -> int:
                return output.write(bytes(byte ^ 0xFF for byte in bytes(block))) and len(block)

            def close(self) -> None:
                if not self.closed:
                    output.close()
                super().close()

        return Output()

    def transform_from(self, input: Any) -> Any:
        return io.BytesIO(bytes(byte ^ 0xFF for byte in input.read(-1)))


def test_two_transformations_are_undone_in_their_order(memory: Place, tmp_path: Path) -> None:
    registry = ExtensionRegistry()
    registry.register(Flipping)
    state = {"x": torch.zeros(100, 100), "odd": odd_floats(), "blob": "text"}
    for number, order in enumerate([(ZStandard(), Flipping()), (Flipping(), ZStandard())]):
        path = f"order-{number}"
        memory.save(state, path, _extensions=list(order))
        loaded = memory.load(blank(state), path, _extension_registry=registry)
        assert_same(loaded, state)
        theirs, folder = blank(state), memory.copy_down(path, tmp_path / path)
        with quiet():
            reader = dcp.FileSystemReader(folder, _extension_registry=registry)
            dcp.load(theirs, storage_reader=reader)
        assert_same(theirs, state)
        with pytest.raises(CheckpointException, match=r"test\.flipping"):
            memory.load(blank(state), path)


def test_a_checkpoint_id_moves_writer_and_reader(place: Place) -> None:
    writer, reader = place.writer("first"), place.reader("first")
    states = {name: {"x": randn(5, seed=i)} for i, name in enumerate(["second", "third"])}
    with quiet():
        for name, state in states.items():
            saved = dcp.save(state, checkpoint_id=place.url(name), storage_writer=writer)
            assert saved.storage_meta.checkpoint_id == place.url(name) == writer.path
        load_ids = set()
        for name, state in states.items():
            loaded = {"x": torch.zeros(5)}
            dcp.load(loaded, checkpoint_id=place.url(name), storage_reader=reader)
            assert_same(loaded, state)
            assert reader.checkpoint_id == reader.path == place.url(name)
            load_ids.add(reader.load_id)
    assert len(load_ids) == 2
    assert not place.listing("first")


def test_one_reader_loads_several_times_and_one_constructor_serves_two(place: Place) -> None:
    states = {name: {"x": randn(50, seed=i), "y": i} for i, name in enumerate(["one", "two"])}
    for name, state in states.items():
        place.save(state, name)
    shared = S3ReaderConstructor.dcp_optimized()
    readers = {name: place.reader(name, reader_constructor=shared) for name in states}
    for name in ("one", "two", "one", "one", "two"):
        loaded = blank(states[name])
        with quiet():
            dcp.load(loaded, storage_reader=readers[name])
        assert_same(loaded, states[name])


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("größe/\N{SNOWMAN}", "größe/\N{SNOWMAN}/"),
        ("with space/and+plus%20", "with space/and+plus%20/"),
        ("question?and#hash&more=1", "question?and#hash&more=1/"),
        ("ends/with/slash/", "ends/with/slash/"),
    ],
)
def test_paths_are_taken_literally(place: Place, path: str, prefix: str) -> None:
    state = {"x": randn(3), "blob": "text"}
    place.save(state, path)
    assert all(key.startswith(prefix) for key in place.listing())
    assert f"{prefix}.metadata" in place.listing()
    assert_same(place.load(blank(state), path.rstrip("/")), state)
    place.save({"x": randn(3, seed=9), "blob": "more"}, path)
    assert_same(place.load(blank(state), path), {"x": randn(3, seed=9), "blob": "more"})
    assert len(place.listing()) == 2


@pytest.mark.parametrize("place", ["memory", "moto"], indirect=True)
def test_a_double_slash_is_another_key(place: Place) -> None:
    # Not on SeaweedFS, which keeps keys as paths of files.
    state = {"x": randn(3)}
    place.save(state, "a//b")
    assert "a//b/.metadata" in place.listing()
    assert_same(place.load(blank(state), "a//b"), state)
    assert not place.listing("a/b")


def test_a_checkpoint_may_lie_at_the_top_of_a_bucket(place: Place) -> None:
    state = {"x": randn(3)}
    place.save(state, "")
    assert ".metadata" in place.listing()
    assert_same(place.load(blank(state), ""), state)


def test_arguments_come_in_either_order_and_under_the_references_names() -> None:
    transport, path = MemoryTransport("bucket"), "s3://bucket/run"
    constructor = S3ReaderConstructor.range_based()
    pairs = [
        (S3StorageWriter("eu-west-1", path), S3StorageReader("eu-west-1", path)),
        (S3StorageWriter(path, "eu-west-1"), S3StorageReader(path, "eu-west-1")),
        (
            S3StorageWriter(
                region="eu-west-1",
                path=path,
                s3client_config=None,
                prefix_strategy=RoundRobinPrefixStrategy(["a"]),
                thread_count=2,
            ),
            S3StorageReader(
                region="eu-west-1", path=path, s3client_config=None, reader_constructor=constructor
            ),
        ),
    ]
    for writer, reader in pairs:
        assert (writer.region, writer.path) == ("eu-west-1", path)
        assert (reader.region, reader.path) == ("eu-west-1", path)
    assert pairs[-1][1].reader_constructor is constructor
    assert S3StorageReader(path, transport=transport).region is None
    expected = ["path", "region", "s3client_config"]
    assert list(inspect.signature(S3StorageReader).parameters)[:3] == expected
    assert list(inspect.signature(S3StorageWriter).parameters)[:3] == expected


def test_the_pair_is_true_and_knows_its_addresses() -> None:
    # torch asks `if storage:`.
    writer, reader = S3StorageWriter("s3://bucket/x"), S3StorageReader("s3://bucket/x")
    assert bool(writer)
    assert bool(reader)
    for kind in (S3StorageReader, S3StorageWriter):
        assert kind.validate_checkpoint_id("s3://bucket/x")
        assert not kind.validate_checkpoint_id("/tmp/x")


def test_the_saved_metadata_is_what_save_returns(memory: Place) -> None:
    returned = memory.save({"x": randn(3)}, "meta")
    seen = memory.reader("meta")
    stored = seen.read_metadata()
    assert stored.storage_data == returned.storage_data
    assert stored.storage_meta.save_id == returned.storage_meta.save_id
    assert stored.storage_meta.load_id == seen.load_id
    assert stored.state_dict_metadata == returned.state_dict_metadata

"""Mistakes that were found once and must not come back."""

from __future__ import annotations

import datetime
import pickle
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, quiet, randn
from support.transports import Call, Tap
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from torch_s3dcp import S3ClientConfig, S3ReaderConstructor, S3StorageReader, S3StorageWriter
from torch_s3dcp.exceptions import (
    CommitConflictError,
    CommitUnknownError,
    ConfigurationError,
    EndpointError,
    InvalidCheckpointError,
    ObjectNotFoundError,
    PreconditionFailedError,
    ReaderRegistryError,
)
from torch_s3dcp.transports import MemoryTransport, ObjectInfo

STATE = {"w": randn(100, seed=1), "n": 1}
OTHER = {"w": randn(100, seed=2), "n": 2}


def save_quietly(state: Any, writer: S3StorageWriter, **options: Any) -> None:
    with quiet():
        dcp.save(state, storage_writer=writer, **options)


def failure_of(action: Any) -> BaseException:
    with quiet(), pytest.raises(CheckpointException) as caught:
        action()
    (error,) = failures(caught.value)
    return error


def test_a_save_without_an_id_goes_where_the_last_reset_pointed() -> None:
    """Also when another thread did the reset, and the address was looked at before."""
    memory = MemoryTransport("bucket")
    writer = S3StorageWriter("s3://bucket/a", transport=memory)
    assert writer.path == "s3://bucket/a"
    save_quietly(STATE, writer)
    thread = threading.Thread(target=lambda: writer.reset("s3://bucket/b"))
    thread.start()
    thread.join()
    assert writer.path == "s3://bucket/b"
    save_quietly(OTHER, writer)
    for path, expected in (("a", STATE), ("b", OTHER)):
        loaded = blank(STATE)
        reader = S3StorageReader(f"s3://bucket/{path}", transport=memory)
        with quiet():
            dcp.load(loaded, storage_reader=reader)
        assert_same(loaded, expected)


def test_the_address_survives_a_trip_to_another_process() -> None:
    writer = S3StorageWriter("s3://bucket/a")
    writer.reset("s3://bucket/b")
    assert pickle.loads(pickle.dumps(writer)).path == "s3://bucket/b"


def test_ranks_that_saved_to_different_places_do_not_commit(memory: Place) -> None:
    writers = [
        S3StorageWriter(f"s3://{memory.bucket}/{path}", transport=memory.transport)
        for path in ("here", "there")
    ]
    results = []
    for rank, writer in enumerate(writers):
        planner = DefaultSavePlanner()
        planner.set_up_planner({f"w{rank}": randn(10)}, None, rank == 0)
        writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=True)
        plan = planner.create_local_plan()
        if rank == 0:
            _, metadata = planner.create_global_plan([plan])
        results.append(writer.write_data(plan, planner).wait())
    with pytest.raises(ConfigurationError, match="different places"):
        writers[0].finish(metadata, results)
    assert "here/.metadata" not in memory.listing()


class Forgetful(Tap):
    """A server that keeps no metadata with objects."""

    def head(self, bucket: str, key: str) -> ObjectInfo:
        found = super().head(bucket, key)
        return ObjectInfo(found.bucket, found.key, found.size, found.etag)


@pytest.mark.parametrize("exists", [False, True])
def test_a_lost_answer_where_the_server_forgets_metadata(memory: Place, exists: bool) -> None:
    if exists:
        memory.save(STATE, "run")
    lost: list[Call] = []

    def lose(call: Call) -> None:
        if call.operation == "put" and not lost:
            lost.append(call)
            raise EndpointError("the answer was lost")

    memory.over(Forgetful(memory.transport, after=lose)).save(OTHER, "run")
    assert lost
    assert_same(memory.load(blank(OTHER), "run"), OTHER)


def test_a_refusal_after_a_doubt_removes_nothing(memory: Place) -> None:
    """The first try hangs at the server, the second is refused, then the first one lands."""
    held: list[Any] = []

    class Limbo(Tap):
        def put(self, *args: Any, **options: Any) -> Any:
            held.append(lambda: self.inner.put(*args, **options))
            raise EndpointError("lost") if len(held) == 1 else PreconditionFailedError("409")

    error = failure_of(lambda: memory.over(Limbo(memory.transport)).save(STATE, "run"))
    assert type(error) is CommitUnknownError
    held[0]()
    assert_same(memory.load(blank(STATE), "run"), STATE)


def test_a_conflict_that_passes_is_tried_again(memory: Place) -> None:
    """409: somebody else's conditional request was under way, and came to nothing."""
    faults = [PreconditionFailedError("ConditionalRequestConflict")]

    def once(call: Call) -> None:
        if call.operation == "put" and faults:
            raise faults.pop()

    memory.over(Tap(memory.transport, before=once)).save(STATE, "run")
    assert_same(memory.load(blank(STATE), "run"), STATE)


def test_a_conflict_that_stays_leaves_nothing(memory: Place) -> None:
    def always(call: Call) -> None:
        if call.operation == "put":
            raise PreconditionFailedError("ConditionalRequestConflict")

    tapped = memory.over(Tap(memory.transport, before=always))
    assert type(failure_of(lambda: tapped.save(STATE, "run"))) is CommitConflictError
    assert memory.listing() == []


class Odd(DefaultSavePlanner):
    """Puts something of its own into the metadata."""

    extra: Any = None

    def create_global_plan(self, all_plans: Any) -> Any:
        plans, metadata = super().create_global_plan(all_plans)
        metadata.planner_data = {"extra": self.extra}
        return plans, metadata


@pytest.mark.parametrize(
    "extra", [datetime.datetime(2026, 1, 1), lambda: 1], ids=["type", "lambda"]
)
def test_metadata_that_cannot_be_loaded_is_not_committed(memory: Place, extra: Any) -> None:
    memory.save(STATE, "run")
    before = memory.listing()
    planner = Odd()
    planner.extra = extra
    writer = S3StorageWriter(f"s3://{memory.bucket}/run", transport=memory.transport)
    error = failure_of(lambda: save_quietly(OTHER, writer, planner=planner))
    if isinstance(extra, datetime.datetime):
        assert type(error) is InvalidCheckpointError
        assert "datetime" in str(error)
    assert memory.listing() == before


def test_a_failure_stops_the_others_in_the_middle_of_an_item() -> None:
    class Slow(MemoryTransport):
        """One upload fails soon, the other would take a minute."""

        def upload(self, bucket: str, key: str, stream: Any, **options: Any) -> None:
            if "__0_0_" in key:
                time.sleep(0.2)
                raise EndpointError("gone")
            for _ in range(600):
                if not stream.read(2**16):
                    return
                time.sleep(0.1)

    state = {"a": torch.zeros(2**20, 2), "b": torch.zeros(2**20, 2)}
    writer = S3StorageWriter("s3://bucket/run", transport=Slow("bucket"), thread_count=2)
    begin = time.monotonic()
    assert type(failure_of(lambda: save_quietly(state, writer))) is EndpointError
    assert time.monotonic() - begin < 30, "it went on to the end of the item"


def test_settings_of_a_wrong_type_are_named() -> None:
    settings: Any = {"endpoint_url": "http://127.0.0.1:1"}
    with pytest.raises(ConfigurationError, match="s3client_config must be an S3ClientConfig"):
        S3StorageReader("s3://bucket/run", s3client_config=settings)
    with pytest.raises(ConfigurationError, match="s3client_config must be an S3ClientConfig"):
        S3StorageWriter("s3://bucket/run", s3client_config=settings)


def test_a_maker_of_constructors_is_not_one() -> None:
    maker: Any = S3ReaderConstructor.dcp_optimized
    with pytest.raises(ReaderRegistryError, match=r"call it, as in .*dcp_optimized\(\)"):
        S3StorageReader("s3://bucket/run", reader_constructor=maker)


def test_the_references_order_without_a_region() -> None:
    nowhere: Any = None
    assert S3StorageReader(nowhere, "s3://bucket/run").path == "s3://bucket/run"


def test_a_login_in_the_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="must not hold a login") as caught:
        S3ClientConfig(endpoint_url="http://user:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(caught.value)


def test_a_login_in_the_environments_endpoint_is_not_shown(monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@127.0.0.1:9")
    config = S3ClientConfig(max_attempts=1)
    reader = S3StorageReader("s3://bucket/run", "us-east-1", config)
    error = failure_of(lambda: dcp.load({"w": torch.zeros(1)}, storage_reader=reader))
    assert type(error) is EndpointError
    assert "hunter2" not in str(error)


def test_one_request_twice_in_a_plan(memory: Place) -> None:
    memory.save(STATE, "run")

    class Twice(dcp.DefaultLoadPlanner):
        def finish_plan(self, plan: Any) -> Any:
            return type(plan)([*plan.items, *plan.items], plan.storage_data, plan.planner_data)

    for reader in ("direct", "dcp_optimized"):
        loaded = blank(STATE)
        source = S3StorageReader(
            f"s3://{memory.bucket}/run", reader_constructor=reader, transport=memory.transport
        )
        with quiet():
            dcp.load(loaded, storage_reader=source, planner=Twice())
        assert_same(loaded, STATE)


def test_a_damaged_blob_names_its_item(memory: Place) -> None:
    memory.save(STATE, "run")
    (path,) = memory.listing("run/__")
    whole = memory.transport.get(memory.bucket, path).readall()
    memory.transport.put(memory.bucket, path, bytes(len(whole)))
    error = failure_of(lambda: memory.load({"n": 0}, "run", integrity="headers"))
    assert type(error) is InvalidCheckpointError
    assert error.tensor == "n"


def test_a_damaged_tensor_does_not_advise_to_run_code(memory: Place) -> None:
    memory.save({"w": torch.arange(3)}, "run")
    (path,) = memory.listing("run/__")
    whole = memory.transport.get(memory.bucket, path).readall()
    damaged = whole.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_xx")
    memory.transport.put(memory.bucket, path, damaged)
    error = failure_of(lambda: memory.load({"w": torch.zeros(3)}, "run", integrity="headers"))
    assert type(error) is InvalidCheckpointError
    assert "weights_only" not in str(error)


def test_a_missing_object_is_not_waited_for(memory: Place) -> None:
    memory.save({f"w{n}": torch.zeros(10) for n in range(20)}, "run", single_file_per_rank=False)
    memory.transport.delete(memory.bucket, memory.listing("run/__")[:1])
    error = failure_of(lambda: memory.load({f"w{n}": torch.ones(10) for n in range(20)}, "run"))
    assert type(error) is ObjectNotFoundError


def test_an_interrupted_commit_removes_nothing(memory: Place) -> None:
    class Interrupted(Tap):
        def put(self, *args: Any, **options: Any) -> Any:
            self.inner.put(*args, **options)
            raise KeyboardInterrupt

    failure_of(lambda: memory.over(Interrupted(memory.transport)).save(STATE, "run"))
    assert_same(memory.load(blank(STATE), "run"), STATE)


def test_scratch_stays_within_the_budget(memory: Place) -> None:
    """Tensors that must be cast pass through scratch: as much as they need, and reused."""
    memory.save({f"w{n}": torch.full((50_000,), float(n)) for n in range(200)}, "run")
    state = {f"w{n}": torch.zeros(50_000, dtype=torch.bfloat16) for n in range(200)}
    reader = memory.reader("run", s3client_config=S3ClientConfig(memory_budget=16 * 2**20))
    with quiet():
        dcp.load(state, storage_reader=reader)
    assert all(bool((state[f"w{n}"] == n).all()) for n in range(200))
    assert reader.stats is not None
    assert reader.stats.peak_scratch <= 16 * 2**20 + 33 * 2**20  # one request more at most
    assert reader.stats.scratch_items == 200

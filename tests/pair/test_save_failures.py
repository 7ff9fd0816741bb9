"""A save that fails raises, commits nothing, leaves nothing, and harms nothing."""

from __future__ import annotations

import dataclasses
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, open_uploads, quiet, randn
from support.transports import MUTATIONS, Call, Tap
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import WriteItem

from torch_s3dcp import S3StorageWriter
from torch_s3dcp.exceptions import (
    AccessDeniedError,
    ConfigurationError,
    InvalidCheckpointError,
    ThrottledError,
)
from torch_s3dcp.parts import MAX_PARTS, part_size_for

MIB = 1024**2
THREADS = [1, 2, 4, 8]


def model(seed: int, items: int = 8, size: int = 100) -> dict[str, torch.Tensor]:
    return {f"x{i}": randn(size, seed=100 * seed + i) for i in range(items)}


def sole_error(action: Callable[[], Any]) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        action()
    (error,) = failures(caught.value)
    return error


class RefuseOne:
    """A hook that lets one upload fail, after it has been sent or before."""

    def __init__(self, number: int) -> None:
        self.error = AccessDeniedError("this file may not be written", key="some-file")
        self._left = number
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> None:
        if call.operation != "upload":
            return
        with self._lock:
            self._left -= 1
            mine = self._left == -1
        if mine:
            raise self.error


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_one_refused_file_fails_the_save(memory: Place, threads: int, when: str) -> None:
    for number in range(threads):
        refuse = RefuseOne(number)
        tap = Tap(memory.transport, **{when: refuse})
        error = sole_error(lambda: memory.over(tap).save(model(1), "run", thread_count=threads))  # noqa: B023
        assert error is refuse.error
        assert memory.listing() == []
        assert "put" not in {call.operation for call in tap.calls}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_overwrite_leaves_the_old_checkpoint(
    memory: Place, threads: int, when: str
) -> None:
    memory.save(model(1), "run", thread_count=threads)
    before = {key: memory.read(key) for key in memory.listing()}
    for number in range(threads):
        tap = Tap(memory.transport, **{when: RefuseOne(number)})
        sole_error(lambda: memory.over(tap).save(model(2), "run", thread_count=threads))  # noqa: B023
        assert {key: memory.read(key) for key in memory.listing()} == before
    assert_same(memory.load(blank(model(1)), "run"), model(1))
    memory.save(model(3), "run", thread_count=threads)
    assert_same(memory.load(blank(model(3)), "run"), model(3))


class FailingPlanner(dcp.DefaultSavePlanner):
    """Cannot produce one of its items."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.index.fqn == self.name:
            raise ZeroDivisionError(f"no data for {self.name}")
        return super().resolve_data(write_item)


@pytest.mark.server
@pytest.mark.parametrize("threads", THREADS)
def test_a_failure_amid_multipart_uploads_leaves_no_upload_open(
    on_seaweed: Place, threads: int
) -> None:
    small, large = model(1), model(2, size=2 * MIB)
    on_seaweed.save(small, "run", thread_count=threads)
    before = on_seaweed.listing()
    tap = Tap(on_seaweed.transport)
    # The last item of one file: its first parts are under way, or there, by then.
    planner = FailingPlanner("x7")
    error = sole_error(
        lambda: on_seaweed.over(tap).save(large, "run", planner, thread_count=threads)
    )
    assert isinstance(error, ZeroDivisionError)
    assert str(error) == "no data for x7"
    assert len(tap.of("upload")) <= threads
    assert tap.of("upload")[0].expected_size > 5 * MIB  # type: ignore[operator]
    deadline = time.monotonic() + 2
    while open_uploads(on_seaweed) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not open_uploads(on_seaweed)
    assert on_seaweed.listing() == before
    assert_same(on_seaweed.load(blank(small), "run"), small)


@pytest.mark.parametrize("name", ["x0", "x3", "x7"])
@pytest.mark.parametrize("place", ["memory", "moto"], indirect=True)
def test_what_a_save_planner_raises_reaches_the_caller(place: Place, name: str) -> None:
    for threads in (1, 3):
        error = sole_error(
            lambda: place.save(model(1), "run", FailingPlanner(name), thread_count=threads)  # noqa: B023
        )
        assert isinstance(error, ZeroDivisionError)
        assert str(error) == f"no data for {name}"
        assert place.listing() == []


def test_the_first_failure_stops_the_other_files(memory: Place) -> None:
    state = model(1, items=40)
    asked: list[str] = []

    class Slow(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: WriteItem) -> Any:
            asked.append(write_item.index.fqn)
            time.sleep(0.005)
            return super().resolve_data(write_item)

    tap = Tap(memory.transport, before=RefuseOne(0))
    sole_error(lambda: memory.over(tap).save(state, "run", Slow(), thread_count=4))
    assert len(asked) < 20, "the rest was serialised and sent for nothing"


def test_what_cannot_be_cleaned_up_does_not_hide_the_failure(
    memory: Place, caplog: pytest.LogCaptureFixture
) -> None:
    refuse = RefuseOne(1)

    def never_delete(call: Call) -> None:
        if call.operation == "delete":
            raise ThrottledError("no deletions today")
        refuse(call)

    tap = Tap(memory.transport, before=never_delete)
    error = sole_error(lambda: memory.over(tap).save(model(1), "run", thread_count=2))
    assert error is refuse.error
    assert "stay behind" in caplog.text
    assert "no deletions today" in caplog.text


@pytest.mark.parametrize("options", [{}, {"thread_count": 4}, {"single_file_per_rank": False}])
def test_nothing_to_save_makes_no_empty_object(place: Place, options: dict[str, Any]) -> None:
    place.save({}, "empty", **options)
    assert place.listing() == ["empty/.metadata"]
    assert place.load({}, "empty") == {}
    place.save({"none": torch.empty(0), "one": torch.ones(1)}, "few", **options)
    sizes = [len(place.read(key)) for key in place.listing("few/")]
    assert all(sizes)
    loaded = place.load({"none": torch.ones(0), "one": torch.zeros(1)}, "few")
    assert_same(loaded, {"none": torch.empty(0), "one": torch.ones(1)})


def test_an_upload_knows_how_much_will_come(memory: Place) -> None:
    tap = Tap(memory.transport)
    memory.over(tap).save({"a": torch.zeros(1000, 1000), "b": torch.zeros(10)}, "run")
    (upload,) = tap.of("upload")
    size = len(memory.read(upload.key))
    assert upload.expected_size is not None
    assert 0.99 * size < upload.expected_size < 1.01 * size
    # What the transport makes of it: parts that suffice, also for the largest of objects.
    for expected in (size, 50 * 1024**3, 1024**4, 20 * 1024**4):
        assert -(-expected // part_size_for(expected, 8 * MIB)) <= MAX_PARTS


def test_files_are_weighed_by_the_bytes_of_their_chunks(memory: Place) -> None:
    sizes = [400, 100, 100, 100, 100, 4, 4, 4]
    state = {f"x{i}": torch.zeros(1000 * size) for i, size in enumerate(sizes)}
    saved = memory.save(state, "run", thread_count=2)
    by_path: dict[str, set[str]] = {}
    for index, info in saved.storage_data.items():
        by_path.setdefault(info.relative_path, set()).add(index.fqn)
    halves = sorted(sum(sizes[int(name[1:])] for name in names) for names in by_path.values())
    assert len(halves) == 2
    assert halves[1] - halves[0] <= 12


def test_a_duplicate_of_two_ranks_is_refused(memory: Place) -> None:
    writer = memory.writer("run")
    saved = memory.save({"x": randn(3)}, "other")
    ((index, info),) = saved.storage_data.items()
    result = dcp.storage.WriteResult(index, info.length, info)
    writer.reset()
    writer.set_up_storage_writer(True, rank=0, use_collectives=True)
    with pytest.raises(InvalidCheckpointError, match="written twice"):
        writer.finish(saved, [[result], [result]])
    assert memory.listing("run/") == []


def test_finish_needs_a_begin(memory: Place) -> None:
    saved = memory.save({"x": randn(3)}, "other")
    with pytest.raises(ConfigurationError, match="before set_up_storage_writer"):
        memory.writer("run").finish(saved, [])
    assert memory.listing("run/") == []


def test_a_stream_that_breaks_is_not_stored(place: Place) -> None:
    class Broken(io.RawIOBase):
        left = 3 * MIB

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1, /) -> bytes:
            if not self.left or size < 0:
                raise ZeroDivisionError("the stream's own")
            taken = min(self.left, size)
            self.left -= taken
            return bytes(taken)

    with pytest.raises(ZeroDivisionError, match="the stream's own"):
        place.transport.upload(place.bucket, "key", Broken(), expected_size=3 * MIB)
    assert place.listing() == []


def test_a_save_after_a_failed_one_through_the_same_writer(memory: Place) -> None:
    refuse = RefuseOne(0)
    tap = Tap(memory.transport, before=refuse)
    writer = memory.over(tap).writer("run")
    with quiet():
        error = sole_error(lambda: dcp.save(model(1), storage_writer=writer))
        assert error is refuse.error
        dcp.save(model(2), storage_writer=writer)
    assert_same(memory.load(blank(model(2)), "run"), model(2))
    assert [call.operation for call in tap.of(*MUTATIONS)] == ["upload", "delete", "upload", "put"]


class ForgetsOne(S3StorageWriter):
    """Does not write the last item of its plan, and says nothing."""

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Any:
        return super().write_data(dataclasses.replace(plan, items=plan.items[:-1]), planner)


def test_an_item_that_nobody_wrote_is_not_committed(memory: Place) -> None:
    memory.save(model(1), "run")
    before = {key: memory.read(key) for key in memory.listing()}
    writer = ForgetsOne(memory.url("run"), transport=memory.transport)
    with quiet():
        error = sole_error(lambda: dcp.save(model(2), storage_writer=writer))
    assert isinstance(error, InvalidCheckpointError)
    assert "no rank wrote" in str(error)
    assert error.context["tensor"] == "x7"
    assert {key: memory.read(key) for key in memory.listing()} == before

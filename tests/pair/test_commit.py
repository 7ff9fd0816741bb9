"""The commit: data first, then one PUT that makes the checkpoint appear, then the removals."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, quiet, randn
from support.transports import MUTATIONS, Call, Tap, raise_on
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from torch_s3dcp.exceptions import (
    AccessDeniedError,
    CheckpointExistsError,
    CommitConflictError,
    CommitUnknownError,
    CredentialsError,
    EndpointError,
    PreconditionFailedError,
    StorageError,
    ThrottledError,
)
from torch_s3dcp.transports import Transport

V1 = {"w": randn(100, seed=1), "b": randn(10, seed=2), "n": 1}
V2 = {"w": randn(100, seed=3), "b": randn(10, seed=4), "n": 2}
AMBIGUOUS = [
    EndpointError("the answer was lost"),
    ThrottledError("slow down"),
    StorageError("the server refused: InternalError"),
    AccessDeniedError("after a try whose answer was lost", attempts=2),
]
REFUSALS = [AccessDeniedError("may not write"), CredentialsError("unknown key")]
COMMIT_FAULTS = [*AMBIGUOUS, PreconditionFailedError("a retry met its own first try")]


def committed(place: Place, path: str = "run") -> bool:
    return f"{path}/.metadata" in place.listing(path)


def sole_error(action: Callable[[], Any]) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        action()
    (error,) = failures(caught.value)
    return error


def test_data_first_then_one_put_of_the_metadata(memory: Place) -> None:
    tap = Tap(memory.transport)
    memory.over(tap).save(V1, "run", thread_count=3)
    changes = tap.of(*MUTATIONS)
    assert [call.operation for call in changes] == ["upload", "upload", "upload", "put"]
    assert changes[-1].keys == ("run/.metadata",)
    assert changes[-1].if_none_match
    assert all(call.key.startswith("run/__0_") for call in changes[:-1])
    assert {call.key for call in tap.calls} == {call.key for call in changes}
    assert sorted(call.key for call in changes) == memory.listing()


def test_an_overwrite_removes_what_it_replaced_after_the_commit(memory: Place) -> None:
    memory.save(V1, "run", thread_count=3)
    old = memory.listing("run/__")
    etag = memory.transport.head("bucket", "run/.metadata").etag
    tap = Tap(memory.transport)
    memory.over(tap).save(V2, "run", thread_count=2)
    changes = tap.of(*MUTATIONS)
    assert [call.operation for call in changes] == ["upload", "upload", "put", "delete"]
    assert (changes[2].key, changes[2].if_match) == ("run/.metadata", etag)
    assert sorted(changes[3].keys) == old
    assert not set(memory.listing()) & set(old)
    assert len(memory.listing()) == 3
    assert_same(memory.load(blank(V2), "run"), V2)


def test_data_keys_are_new_with_every_save(memory: Place) -> None:
    seen: list[str] = []
    writer = memory.writer("run", thread_count=2)
    for state in (V1, V1, V2):
        with quiet():
            dcp.save(state, storage_writer=writer)
        seen += memory.listing("run/__")
    assert len(seen) == len(set(seen)) == 6


def test_what_others_put_there_is_left_alone(place: Place) -> None:
    foreign = {"run/__0_0.distcp": b"1", "run/notes.txt": b"2", "run/more/x": b"3", "run2/y": b"4"}
    for key, data in foreign.items():
        place.transport.put(place.bucket, key, data)
    for state in (V1, V2, V1):
        place.save(state, "run", thread_count=2)
    assert {key: place.read(key) for key in foreign} == foreign
    assert len(place.listing()) == len(foreign) + 3
    assert_same(place.load(blank(V1), "run"), V1)


def test_an_old_checkpoint_cannot_have_owned_the_metadata(memory: Place) -> None:
    # A damaged or hostile one may name any object below the checkpoint as its data.
    saved = memory.save(V1, "run")
    for info in saved.storage_data.values():
        info.relative_path = ".metadata"
    memory.transport.put("bucket", "run/.metadata", pickle.dumps(saved))
    memory.save(V2, "run")
    assert_same(memory.load(blank(V2), "run"), V2)


def test_overwrite_false_refuses_before_anything_is_written(place: Place) -> None:
    place.save(V1, "run", overwrite=False)
    before = place.listing()
    tap = Tap(place.transport)
    error = sole_error(lambda: place.over(tap).save(V2, "run", overwrite=False))
    assert type(error) is CheckpointExistsError
    assert "overwrite=True" in str(error)
    assert place.url("run/.metadata") in str(error)
    assert not tap.of(*MUTATIONS)
    assert place.listing() == before
    assert_same(place.load(blank(V1), "run"), V1)


@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
def test_of_two_racing_saves_one_wins(place: Place, exists: bool) -> None:
    if exists:
        place.save({**V1, "n": 0}, "run")

    def overtake(call: Call) -> None:
        # The other save begins and ends while this one uploads.
        if call.operation == "upload":
            place.save(V1, "run")

    tap = Tap(place.transport, after=overtake)
    error = sole_error(lambda: place.over(tap).save(V2, "run"))
    assert type(error) is CommitConflictError
    assert "another save" in str(error)
    assert place.url("run/.metadata") in str(error)
    assert_same(place.load(blank(V1), "run"), V1)
    assert len(place.listing()) == 2, "of the loser nothing stays"


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        *(("memory", fault) for fault in COMMIT_FAULTS),
        ("moto", COMMIT_FAULTS[0]),
        pytest.param("seaweed", COMMIT_FAULTS[0], marks=pytest.mark.server),
    ],
    indirect=["place"],
)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
def test_a_lost_answer_to_the_commit_is_a_success(
    place: Place, exists: bool, fault: StorageError
) -> None:
    if exists:
        place.save(V1, "run")
    tap = Tap(place.transport, after=raise_on("put", ".metadata", fault))
    place.over(tap).save(V2, "run", thread_count=2)
    assert len(tap.of("put")) == 1
    assert_same(place.load(blank(V2), "run"), V2)
    assert len(place.listing()) == 3


@pytest.mark.parametrize("fault", REFUSALS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
def test_a_refused_commit_leaves_nothing(memory: Place, exists: bool, fault: StorageError) -> None:
    if exists:
        memory.save(V1, "run")
    before = memory.listing()
    tap = Tap(memory.transport, before=raise_on("put", ".metadata", fault))
    error = sole_error(lambda: memory.over(tap).save(V2, "run", thread_count=2))
    assert type(error) is type(fault)
    assert memory.listing() == before
    if exists:
        assert_same(memory.load(blank(V1), "run"), V1)


class Limbo(Tap):
    """Answers every PUT with an error and keeps it: the server may carry it out later."""

    def __init__(self, inner: Transport, fault: StorageError) -> None:
        super().__init__(inner)
        self.fault = fault
        self.held: list[Callable[[], Any]] = []

    def put(self, *args: Any, **options: Any) -> Any:
        self.held.append(lambda: self.inner.put(*args, **options))
        raise self.fault


@pytest.mark.parametrize("fault", AMBIGUOUS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
def test_a_commit_that_may_land_yet_keeps_its_data(
    memory: Place, exists: bool, fault: StorageError
) -> None:
    if exists:
        memory.save(V1, "run")
    limbo = Limbo(memory.transport, fault)
    error = sole_error(lambda: memory.over(limbo).save(V2, "run", thread_count=2))
    assert type(error) is CommitUnknownError
    assert "nothing was removed" in str(error)
    assert committed(memory) == exists
    if exists:
        assert_same(memory.load(blank(V1), "run"), V1)
    limbo.held[0]()
    assert_same(memory.load(blank(V2), "run"), V2)


@pytest.mark.parametrize("fault", AMBIGUOUS, ids=lambda fault: type(fault).__name__)
def test_a_commit_is_tried_again_while_in_doubt(memory: Place, fault: StorageError) -> None:
    faults = [fault]

    def once(call: Call) -> None:
        if call.operation == "put" and faults:
            raise faults.pop()

    memory.over(Tap(memory.transport, before=once)).save(V1, "run")
    assert_same(memory.load(blank(V1), "run"), V1)


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("again", [EndpointError("down"), AccessDeniedError("denied")])
def test_a_commit_that_nobody_knows_of_removes_nothing(
    memory: Place, landed: bool, exists: bool, again: StorageError
) -> None:
    if exists:
        memory.save(V1, "run")
    before = set(memory.listing())
    asked: list[Call] = []

    def break_down(call: Call) -> None:
        if call.operation == "put":
            asked.append(call)
            raise EndpointError("the answer was lost")

    def stay_down(call: Call) -> None:
        if call.operation == "put" and not landed:
            break_down(call)
        if call.operation == "head" and asked:
            raise again

    tap = Tap(memory.transport, before=stay_down, after=break_down)
    error = sole_error(lambda: memory.over(tap).save(V2, "run", thread_count=2))
    assert type(error) is CommitUnknownError
    assert "nothing was removed" in str(error)
    assert not tap.of("delete")
    assert before <= set(memory.listing())
    if landed:
        assert_same(memory.load(blank(V2), "run"), V2)
    elif exists:
        assert_same(memory.load(blank(V1), "run"), V1)
    else:
        assert not committed(memory)
    assert len(memory.listing("run/__")) == 2 + exists, "both checkpoints' data is still there"


def test_old_data_that_cannot_be_removed_is_a_warning(memory: Place) -> None:
    memory.save(V1, "run")
    (old,) = memory.listing("run/__")
    tap = Tap(memory.transport, before=raise_on("delete", "", AccessDeniedError("may not delete")))
    with pytest.warns(UserWarning, match="complete, but .*may not delete"):
        memory.over(tap).save(V2, "run")
    assert old in memory.listing()
    assert_same(memory.load(blank(V2), "run"), V2)


def test_a_save_without_collectives_stays_out_of_the_way(memory: Place) -> None:
    writer, reader = memory.writer("ranks"), memory.reader("ranks")
    for state in (V1, V2):
        with quiet():
            dcp.save(state, storage_writer=writer, use_collectives=False)
            loaded = blank(state)
            dcp.load(loaded, storage_reader=reader)
        assert_same(loaded, state)
        assert [key for key in memory.listing() if "metadata" in key] == ["ranks/__0.metadata"]
        assert len(memory.listing()) == 2
    memory.save(V1, "whole")
    before = memory.listing()
    with pytest.raises(CheckpointExistsError, match="would never be loaded"), quiet():
        dcp.save(V2, storage_writer=memory.writer("whole"), use_collectives=False)
    assert memory.listing() == before


def test_the_metadata_is_a_plain_pickle(memory: Place) -> None:
    saved = memory.save(V1, "run", thread_count=2)
    plain = pickle.loads(memory.read("run/.metadata"))
    assert type(plain) is Metadata
    assert plain.storage_data == saved.storage_data
    for index, info in plain.storage_data.items():
        assert type(info).__module__ == "torch.distributed.checkpoint.filesystem"
        data = memory.read(f"run/{info.relative_path}")
        assert 0 <= info.offset < info.offset + info.length <= len(data)
        assert index.fqn in V1
    assert plain.storage_meta.checkpoint_id == memory.url("run")
    assert plain.storage_meta.save_id


def test_the_items_of_an_object_lie_side_by_side(memory: Place) -> None:
    saved = memory.save(V1, "run", thread_count=2)
    by_path: dict[str, list[Any]] = {}
    for info in saved.storage_data.values():
        by_path.setdefault(info.relative_path, []).append(info)
    for path, infos in by_path.items():
        ends = [0, *sorted(info.offset + info.length for info in infos)]
        assert sorted(info.offset for info in infos) == ends[:-1]
        assert ends[-1] == len(memory.read(f"run/{path}"))

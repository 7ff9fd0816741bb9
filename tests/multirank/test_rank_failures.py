"""One rank fails: all ranks raise the typed error, nothing is committed, nobody hangs."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, place_on, randn
from support.ranks import COLLECTIVE_SECONDS, Outcome, RankError, errors_of, run_checks, run_ranks
from support.transports import Call, Tap, raise_on
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from torch_s3dcp.exceptions import (
    AccessDeniedError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CommitConflictError,
    CommitUnknownError,
    EndpointError,
    S3DCPError,
    StorageError,
)
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport

# The first test of a group waits for all that its ranks do.
pytestmark = [pytest.mark.multirank, pytest.mark.server, pytest.mark.timeout(600)]

MIB = 1024**2
DENIED = AccessDeniedError("not this one", bucket="bucket", key="some/key", byte_range=(3, 9))


# --- what runs on the ranks -------------------------------------------------------------


def model(seed: int, size: int = 64) -> dict[str, Any]:
    """Sharded tensors for all ranks, so that each has several files to write."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    values = {f"x{i}": randn(size, 8, seed=seed + i) for i in range(8)}
    return {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in values.items()}


def only_on(rank: int, place: Place, **hooks: Any) -> Place:
    return place.over(Tap(place.transport, **hooks)) if dist.get_rank() == rank else place


def save(place: Place, path: str, seed: int, **options: Any) -> None:
    place.save(model(seed), path, **options)


def fail_one_upload(place: Place, path: str, threads: int, rank: int) -> None:
    hook = raise_on("upload", "", DENIED, times=1)
    only_on(rank, place, before=hook).save(model(50), path, thread_count=threads)


def fail_amid_parts(place: Place, path: str) -> None:
    class Failing(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            if dist.get_rank() == 1 and write_item.index.fqn == "x7":
                raise ZeroDivisionError("no data")
            return super().resolve_data(write_item)

    place.save(model(60, 32 * 1024 * dist.get_world_size()), path, Failing())


def fail_commit(place: Place, path: str, error: StorageError) -> None:
    hook = raise_on("put", ".metadata", error)
    only_on(0, place, before=hook).save(model(70), path, thread_count=2)


def refuse_overwrite(place: Place, path: str) -> None:
    place.save(model(80), path, overwrite=False)


def fail_load(place: Place, path: str, ending: str) -> Any:
    target = {name: torch.zeros_like(value) for name, value in model(1).items()}
    hook = raise_on("get", ending, DENIED)
    only_on(1, place, before=hook).load(target, path)


def load_nothing(place: Place, path: str) -> Any:
    place.load(blank_model(), path)


def load_cut_short(place: Place, path: str) -> Any:
    """The object of rank 0 is shorter than the metadata says: only rank 0 wants its end."""
    if dist.get_rank() == 0:
        key = next(key for key in place.listing(f"{path}/__0_"))
        place.transport.put(place.bucket, key, place.read(key)[:-100])
    dist.barrier()
    place.load(blank_model(), path)


def blank_model() -> dict[str, Any]:
    return {name: torch.zeros_like(value) for name, value in model(1).items()}


def race(place: Place, path: str, rounds: int) -> list[str]:
    """All ranks save to one place at once, each for itself; who won each round."""
    came = []
    for number in range(rounds):

        def together(call: Call) -> None:
            if call.operation == "put":
                dist.barrier()

        mine = {"w": randn(50, seed=dist.get_rank()), "who": dist.get_rank()}
        racing = place.over(Tap(place.transport, before=together))
        try:
            dcp.save(mine, storage_writer=racing.writer(f"{path}/{number}"), no_dist=True)
        except CheckpointException as error:
            came.append(type(failures(error)[0]).__name__)
        else:
            came.append("won")
        dist.barrier()
        loaded = {"w": torch.zeros(50), "who": -1}
        dcp.load(loaded, storage_reader=place.reader(f"{path}/{number}"), no_dist=True)
        who = loaded["who"]
        assert_same(loaded, {"w": randn(50, seed=who), "who": who})
        assert (came[-1] == "won") == (who == dist.get_rank())
        dist.barrier()
    return came


# --- the groups -------------------------------------------------------------------------

Results = dict[str, list[Outcome]]


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedServer) -> Iterator[str]:
    name = "ranks-" + secrets.token_hex(6)
    seaweed.create_bucket(name)
    yield name
    seaweed.delete_bucket(name)


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def results(request: pytest.FixtureRequest, seaweed: SeaweedServer, bucket: str) -> Results:
    place, top = Place(bucket, BotoTransport()), f"of{request.param}"
    uploads = {
        f"upload {threads} {when}": (fail_one_upload, place, f"{top}/{when}", threads, 1)
        for threads in (1, 2, 4, 8)
        for when in ("new", "old")
    }
    checks: dict[str, tuple[Any, ...]] = {
        "save": (save, place, f"{top}/old", 1),
        "save too": (save, place, f"{top}/cut", 1),
        **uploads,
        "coordinator": (fail_one_upload, place, f"{top}/old", 2, 0),
        "parts": (fail_amid_parts, place, f"{top}/old"),
        "commit": (fail_commit, place, f"{top}/commit", AccessDeniedError("may not")),
        "in doubt": (fail_commit, place, f"{top}/doubt", EndpointError("broken")),
        "exists": (refuse_overwrite, place, f"{top}/old"),
        "load data": (fail_load, place, f"{top}/old", ".distcp"),
        "load metadata": (fail_load, place, f"{top}/old", ".metadata"),
        "load nothing": (load_nothing, place, f"{top}/nothing"),
        "load cut": (load_cut_short, place, f"{top}/cut"),
        "race": (race, place, f"{top}/race", 4),
    }
    found = run_checks(request.param, checks, seaweed.environment())
    found["top"] = [Outcome(top)]
    return found


# --- the tests --------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["new", "old"])
@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_a_failed_upload_is_raised_on_every_rank(results: Results, threads: int, when: str) -> None:
    (failed,) = errors_of(results[f"upload {threads} {when}"]).items()
    assert failed[0] == 1
    assert type(failed[1]) is AccessDeniedError
    assert isinstance(failed[1], S3DCPError)
    assert failed[1].context == DENIED.context


def test_a_failed_upload_of_the_coordinator(results: Results) -> None:
    (failed,) = errors_of(results["coordinator"]).items()
    assert (failed[0], type(failed[1])) == (0, AccessDeniedError)


def test_a_planner_that_fails_amid_a_multipart_upload(results: Results) -> None:
    (failed,) = errors_of(results["parts"]).items()
    assert (failed[0], type(failed[1])) == (1, ZeroDivisionError)


def test_a_commit_that_fails(results: Results, seaweed: SeaweedServer, bucket: str) -> None:
    (failed,) = errors_of(results["commit"]).items()
    assert (failed[0], type(failed[1])) == (0, AccessDeniedError)
    top = results["top"][0].get()
    assert place_on(seaweed, bucket).listing(f"{top}/commit/") == [], "of no rank anything stays"


def test_a_commit_in_doubt(results: Results, seaweed: SeaweedServer, bucket: str) -> None:
    (failed,) = errors_of(results["in doubt"]).items()
    assert (failed[0], type(failed[1])) == (0, CommitUnknownError)
    top = results["top"][0].get()
    for rank in range(len(results["in doubt"])):
        assert place_on(seaweed, bucket).listing(f"{top}/doubt/__{rank}_"), "it may land yet"


def test_an_overwrite_that_is_refused(results: Results) -> None:
    (failed,) = errors_of(results["exists"]).items()
    assert (failed[0], type(failed[1])) == (0, CheckpointExistsError)


def test_nothing_was_committed_and_the_old_checkpoint_loads(
    results: Results, seaweed: SeaweedServer, bucket: str
) -> None:
    place, top = place_on(seaweed, bucket), results["top"][0].get()
    assert not [key for key in place.listing(f"{top}/new/") if key.endswith(".metadata")]
    state = {f"x{i}": randn(64, 8, seed=1 + i) for i in range(8)}
    assert_same(place.load(blank(state), f"{top}/old"), state)
    client = seaweed.client()
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_a_failed_rank_leaves_none_of_its_own_objects(
    results: Results, seaweed: SeaweedServer, bucket: str
) -> None:
    place, top = place_on(seaweed, bucket), results["top"][0].get()
    assert place.listing(f"{top}/new/__1_") == []


@pytest.mark.parametrize("check", ["load data", "load metadata"])
def test_a_failed_load_of_one_rank_is_raised_on_every_rank(results: Results, check: str) -> None:
    (failed,) = errors_of(results[check]).items()
    assert (failed[0], type(failed[1])) == (1, AccessDeniedError)
    assert "not this one" in str(failed[1])


def test_a_missing_checkpoint_is_raised_on_every_rank(results: Results) -> None:
    found = errors_of(results["load nothing"])
    assert sorted(found) == list(range(len(results["load nothing"])))
    assert {type(error) for error in found.values()} == {CheckpointNotFoundError}


def test_a_truncated_object_is_raised_on_every_rank(results: Results) -> None:
    (failed,) = errors_of(results["load cut"]).items()
    assert failed[0] == 0
    assert type(failed[1]).__name__ == "TruncatedObjectError"
    assert "/cut/__0_0_" in str(failed[1])


def test_racing_ranks_have_one_winner(results: Results) -> None:
    came = [outcome.get() for outcome in results["race"]]
    for of_round in zip(*came, strict=True):
        others = [CommitConflictError.__name__] * (len(came) - 1)
        assert sorted(of_round) == sorted([*others, "won"])


# --- the helper itself ------------------------------------------------------------------


def fall_out(how: str, ready: Path) -> Any:
    if dist.get_rank() == 0:
        ready.touch()
    if dist.get_rank() == 1:
        # A rank that dies while the other one still connects makes both fail.
        while not ready.exists():
            time.sleep(0.01)
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(600)
        raise LookupError("rank 1")
    return dist.get_rank()


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("raise", LookupError, "rank 1"),
        ("die", RankError, "died"),
        ("hang", RankError, "no answer"),
    ],
)
def test_ranks_always_come_back(how: str, error: type, said: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    first, second = run_ranks(fall_out, 2, how, tmp_path / "ready", timeout=15)
    assert first.get() == 0
    assert isinstance(second.error, error)
    assert said in str(second.error)
    assert time.monotonic() - begin < COLLECTIVE_SECONDS

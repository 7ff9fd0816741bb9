"""A part, a file or a rank fails, with any number of threads and ranks, on a real server.

All ranks raise, nothing is committed, no multipart upload stays open, the old checkpoint loads.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, open_uploads, place_on, randn
from support.proxy import Fault, FaultProxy, Request
from support.ranks import Outcome, errors_of, run_checks
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import RoundRobinPrefixStrategy, S3ClientConfig
from torch_s3dcp.exceptions import AccessDeniedError, EndpointError, StorageError
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport

# The first test of a group waits for all that its ranks do.
pytestmark = [pytest.mark.multirank, pytest.mark.server, pytest.mark.timeout(600)]

MIB = 1024**2
THREADS = (1, 2, 4, 8)
# What fails of one rank's save; what its error is.
KINDS: dict[str, type[BaseException]] = {
    "part refused": AccessDeniedError,
    "part reset": EndpointError,
    "completion failing": StorageError,
    "file refused": AccessDeniedError,
    "first file refused": AccessDeniedError,
}
STAGES = ("create_local_plan", "finish_plan")
# Over an old checkpoint, and at a new place. All of it takes minutes.
ALL = [(kind, threads, state) for kind in KINDS for threads in THREADS for state in ("old", "new")]
QUICK = [("part refused", "old"), ("file refused", "new"), ("first file refused", "old")]
FEW = [case for case in ALL if case[::2] in QUICK]
CASES = ALL if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else FEW


def victim(ranks: int, threads: int) -> int:
    """The rank whose requests fail: the coordinator is among them, and the last one."""
    return THREADS.index(threads) % ranks


def judge(request: Request) -> Fault | None:
    """What becomes of a request, by the kind of failure in its key."""
    found = re.match(r"of(\d)/([^/]+)/(\d)/(?:new|old)/__(\d)_(\d)_", request.key)
    if found is None:
        return None
    kind = found[2]
    ranks, threads, rank, file = (int(found[n]) for n in (1, 3, 4, 5))
    if rank != victim(ranks, threads):
        return None
    # Of its two multipart uploads only one has a third part: the other one goes on.
    if kind == "part refused" and request.part == 3:
        return Fault.DENY
    if kind == "part reset" and request.part == 3:
        return Fault.CUT
    if kind == "completion failing" and request.operation == "CompleteMultipartUpload":
        return Fault.FAIL
    begins = request.operation in ("PutObject", "CreateMultipartUpload")
    refused = {"file refused": threads - 1, "first file refused": 0}.get(kind)
    return Fault.DENY if begins and file == refused else None


# --- what runs on the ranks -------------------------------------------------------------


def old_state(rank: int) -> dict[str, torch.Tensor]:
    return {f"of{rank}/x{i}": randn(20, seed=10 * rank + i) for i in range(8)}


def new_state(rank: int, large: bool) -> dict[str, torch.Tensor]:
    """Eight items: one is a multipart upload of two parts, or else two are, one of three parts."""
    sizes = [11 * MIB if large else 20, 6 * MIB, *[20] * 6]
    return {f"of{rank}/x{i}": torch.full((size // 4,), i + 0.5) for i, size in enumerate(sizes)}


def save(place: Place, path: str) -> None:
    """The old checkpoint; its keys are of a kind that never fails."""
    prefixes = RoundRobinPrefixStrategy(["v1"])
    place.save(old_state(dist.get_rank()), path, prefix_strategy=prefixes)


def fail(place: Place, path: str, threads: int, planner: Any = None) -> None:
    """A save that must raise. Two seconds later no upload may be open."""
    rank = dist.get_rank()
    state = new_state(rank, large=rank == victim(dist.get_world_size(), threads))
    try:
        place.save(state, path, planner, thread_count=threads)
    except CheckpointException:
        deadline = time.monotonic() + 2
        while (left := open_uploads(place)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, left
        raise


def fail_early(place: Place, path: str, stage: str) -> None:
    """The last rank fails before it has written anything."""

    class Failing(dcp.DefaultSavePlanner):
        def create_local_plan(self) -> Any:
            self.reach("create_local_plan")
            return super().create_local_plan()

        def finish_plan(self, new_plan: Any) -> Any:
            self.reach("finish_plan")
            return super().finish_plan(new_plan)

        def reach(self, here: str) -> None:
            if here == stage and dist.get_rank() == dist.get_world_size() - 1:
                raise ZeroDivisionError(here)

    fail(place, path, 2, Failing())


# --- the groups -------------------------------------------------------------------------


@dataclass
class Group:
    """What came of one number of ranks; where the saves went; what they asked for."""

    ranks: int
    place: Place
    results: dict[str, list[Outcome]]
    requests: list[Request]

    def path(self, kind: str, threads: int, state: str) -> str:
        return f"of{self.ranks}/{kind}/{threads}/{state}"


@pytest.fixture(scope="module")
def proxy(seaweed: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.endpoint_url) as running:
        running.judge = judge
        yield running


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedServer) -> Iterator[str]:
    name = "uploads-" + secrets.token_hex(6)
    seaweed.create_bucket(name)
    yield name
    seaweed.delete_bucket(name)


@pytest.fixture(scope="module", params=[1, 2, 4], ids=["1 rank", "2 ranks", "4 ranks"])
def group(
    request: pytest.FixtureRequest, seaweed: SeaweedServer, proxy: FaultProxy, bucket: str
) -> Group:
    proxy.requests.clear()
    config = S3ClientConfig(part_size=5 * MIB, max_attempts=2, pause_factor=0)
    place = Place(bucket, BotoTransport(None, config))
    made = Group(request.param, place_on(seaweed, bucket), {}, proxy.requests)
    checks: dict[str, tuple[Any, ...]] = {}
    for kind, threads, state in [*((stage, 2, "old") for stage in STAGES), *CASES]:
        path = made.path(kind, threads, state)
        if state == "old":
            checks[f"{path} v1"] = (save, place, path)
        checks[path] = (
            (fail_early, place, path, kind) if kind in STAGES else (fail, place, path, threads)
        )
    environment = {**seaweed.environment(), "AWS_ENDPOINT_URL": proxy.endpoint_url}
    made.results = run_checks(request.param, checks, environment, timeout=500)
    made.requests = list(proxy.requests)
    return made


# --- the tests --------------------------------------------------------------------------


def check_place(group: Group, path: str) -> None:
    """Nothing is committed to a new place; an old one holds what it held."""
    if path.endswith("new"):
        assert f"{path}/.metadata" not in group.place.listing(f"{path}/")
        return
    for outcome in group.results[f"{path} v1"]:
        outcome.get()
    for rank in range(group.ranks):
        state = old_state(rank)
        assert_same(group.place.load(blank(state), path), state)


@pytest.mark.parametrize(("kind", "threads", "state"), CASES)
def test_a_failed_upload_is_all_or_nothing(
    group: Group, kind: str, threads: int, state: str
) -> None:
    path = group.path(kind, threads, state)
    ((rank, error),) = errors_of(group.results[path]).items()
    assert rank == victim(group.ranks, threads)
    assert type(error) is KINDS[kind]
    assert f"{path}/__{rank}_" in str(error)
    struck = [r for r in group.requests if r.key.startswith(f"{path}/") and judge(r)]
    assert struck, "nothing failed"
    assert not group.place.listing(f"{path}/__{rank}_"), "it removes its own objects"
    check_place(group, path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_that_fails_before_it_writes(group: Group, stage: str) -> None:
    path = group.path(stage, 2, "old")
    ((rank, error),) = errors_of(group.results[path]).items()
    assert rank == group.ranks - 1
    assert (type(error), str(error)) == (ZeroDivisionError, stage)
    check_place(group, path)


def test_one_rank_alone_commits(group: Group) -> None:
    path = group.path(STAGES[0], 2, "old")
    asked = Counter(r.operation for r in group.requests if r.key == f"{path}/.metadata")
    # The save, and the look of the one that failed.
    assert asked == {"HeadObject": 2, "PutObject": 1}


def test_open_uploads_are_seen(seaweed: SeaweedServer, bucket: str) -> None:
    place, client = place_on(seaweed, bucket), seaweed.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key="x")["UploadId"]
    assert open_uploads(place) == {upload}
    client.abort_multipart_upload(Bucket=bucket, Key="x", UploadId=upload)
    assert not open_uploads(place)

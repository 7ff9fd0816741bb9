"""``dcp.async_save`` in a thread and in a process, and what that asks of the writer."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import Future
from typing import Any

import boto3
import pytest
import torch.distributed.checkpoint as dcp
from support.dcp import Place, assert_same, blank, failures, place_on, quiet, randn
from support.ranks import Outcome, run_checks
from support.transports import Call, Tap, raise_on
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from torch_s3dcp import (
    HexPrefixStrategy,
    S3ClientConfig,
    S3Credentials,
    S3StorageWriter,
)
from torch_s3dcp.exceptions import (
    AccessDeniedError,
    CheckpointExistsError,
    CommitConflictError,
    ConfigurationError,
)
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state(seed: int) -> dict[str, Any]:
    return {"w": randn(200, 30, seed=seed), "n": {"step": seed, "b": randn(5, seed=seed + 100)}}


def begin(state_dict: dict[str, Any], writer: S3StorageWriter, **options: Any) -> Future[Any]:
    with quiet():
        future = dcp.async_save(state_dict, storage_writer=writer, **options)
    assert isinstance(future, Future)
    return future


def test_a_save_in_a_thread_keeps_the_values_of_its_begin(place: Place) -> None:
    values = state(1)
    release = threading.Event()

    def hold(call: Call) -> None:
        if call.operation == "upload":
            assert release.wait(30)

    writer = place.over(Tap(place.transport, before=hold)).writer("run", thread_count=2)
    future = begin(values, writer)
    values["w"].zero_()
    assert place.listing() == []
    release.set()
    saved = future.result(60)
    assert saved.storage_meta.checkpoint_id == place.url("run")
    assert_same(place.load(blank(state(1)), "run"), state(1))


@pytest.mark.parametrize("operation", ["head", "upload", "put"])
def test_a_failure_in_a_thread_reaches_the_future(memory: Place, operation: str) -> None:
    error = AccessDeniedError("not here", bucket="bucket", key="run/x", tensor="w")
    tap = Tap(memory.transport, before=raise_on(operation, "", error, times=1))
    future = begin(state(1), memory.over(tap).writer("run"))
    with pytest.raises(CheckpointException) as caught:
        future.result(60)
    assert failures(caught.value) == [error]
    assert memory.listing() == []


@pytest.mark.parametrize("same_place", [False, True], ids=["two places", "one place"])
def test_overlapping_saves_through_one_writer(memory: Place, same_place: bool) -> None:
    first_uploads, second_done = threading.Event(), threading.Event()

    def hold_first(call: Call) -> None:
        if call.operation == "upload" and not first_uploads.is_set():
            first_uploads.set()
            assert second_done.wait(30)

    writer = memory.over(Tap(memory.transport, before=hold_first)).writer("unused")
    first = begin(state(1), writer, checkpoint_id=memory.url("one"))
    assert first_uploads.wait(30)
    other = "one" if same_place else "two"
    with quiet():
        dcp.save(state(2), checkpoint_id=memory.url(other), storage_writer=writer)
    second_done.set()
    if same_place:
        with pytest.raises(CheckpointException) as caught:
            first.result(60)
        assert [type(error) for error in failures(caught.value)] == [CommitConflictError]
    else:
        first.result(60)
        assert_same(memory.load(blank(state(1)), "one"), state(1))
    assert_same(memory.load(blank(state(2)), other), state(2))
    assert len(memory.listing()) == (2 if same_place else 4)


class Together:
    """A hook at which so many saves wait for one another, before they commit."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)
        self._committing: set[int] = set()

    def __call__(self, call: Call) -> None:
        thread = threading.get_ident()
        if call.operation == "put" and thread not in self._committing:
            self._committing.add(thread)
            self._barrier.wait(30)


@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
def test_two_futures_to_two_places(place: Place, exists: bool) -> None:
    if exists:
        for name in ("one", "two"):
            place.save(state(9), name)
    writer = place.over(Tap(place.transport, before=Together(2))).writer("unused", thread_count=2)
    futures = {
        name: begin(state(seed), writer, checkpoint_id=place.url(name))
        for seed, name in enumerate(("one", "two"))
    }
    for seed, (name, future) in enumerate(futures.items()):
        assert future.result(60).storage_meta.checkpoint_id == place.url(name)
        assert_same(place.load(blank(state(seed)), name), state(seed))
        assert len(place.listing(f"{name}/")) == 3
    assert not place.listing("unused")


@pytest.mark.parametrize(
    "place", ["memory", pytest.param("seaweed", marks=pytest.mark.server)], indirect=True
)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("named", [False, True], ids=["the writer's path", "a checkpoint id"])
def test_two_futures_to_one_place(place: Place, named: bool, exists: bool) -> None:
    if exists:
        place.save(state(9), "one")
    writer = place.over(Tap(place.transport, before=Together(2))).writer("one", thread_count=2)
    options = {"checkpoint_id": place.url("one")} if named else {}
    futures = [begin(state(seed), writer, **options) for seed in range(2)]
    errors = [future.exception(60) for future in futures]
    (winner,) = [seed for seed, error in enumerate(errors) if error is None]
    assert isinstance(errors[1 - winner], CheckpointException)
    assert [type(e) for e in failures(errors[1 - winner])] == [CommitConflictError]
    assert_same(place.load(blank(state(winner)), "one"), state(winner))
    assert len(place.listing()) == 3, "of the loser, and of what was there, nothing stays"


def test_a_failed_future_does_not_disturb_the_other(memory: Place) -> None:
    error = AccessDeniedError("not here")
    uploads = threading.Barrier(2)

    def fail_one(call: Call) -> None:
        if call.operation == "upload":
            uploads.wait(30)
            if call.key.startswith("one/"):
                raise error

    writer = memory.over(Tap(memory.transport, before=fail_one)).writer("unused")
    futures = [begin(state(1), writer, checkpoint_id=memory.url(name)) for name in ("one", "two")]
    with pytest.raises(CheckpointException) as caught:
        futures[0].result(60)
    assert failures(caught.value) == [error]
    futures[1].result(60)
    assert_same(memory.load(blank(state(1)), "two"), state(1))
    assert not memory.listing("one/")


def test_many_saves_in_threads_through_one_writer(memory: Place) -> None:
    writer = memory.writer("unused", thread_count=2)
    futures = [
        begin(state(number), writer, checkpoint_id=memory.url(f"step-{number}"))
        for number in range(8)
    ]
    ids = {future.result(60).storage_meta.save_id for future in futures}
    assert len(ids) == 8
    for number in range(8):
        assert_same(memory.load(blank(state(number)), f"step-{number}"), state(number))


def test_a_writer_travels_as_its_settings(on_moto: Place) -> None:
    config = S3ClientConfig(endpoint_url=on_moto.transport.config.endpoint_url)  # type: ignore[attr-defined]
    place = Place(on_moto.bucket, BotoTransport("us-east-1", config))
    writer = place.writer("run", thread_count=3, prefix_strategy=HexPrefixStrategy(epoch_num=2))
    with quiet():
        # Clients, pools and the state of a save exist now.
        dcp.save(state(1), storage_writer=writer)
    sent = pickle.dumps(writer)
    assert len(sent) < 4000
    for name in (b"boto", b"lock", b"thread.", b"testing"):
        assert name not in sent.replace(b"torch_s3dcp.transports.boto", b""), name
    again = pickle.loads(sent)
    assert again.path == writer.path
    assert (again.thread_count, again.overwrite) == (3, True)
    assert again.transport == writer.transport
    with quiet():
        dcp.save(state(2), storage_writer=again)
    assert_same(place.load(blank(state(2)), "run"), state(2))
    assert place.listing("run/0000000000/epoch_2/")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (S3ClientConfig(credentials=S3Credentials("AKIAEXAMPLE", "hidden")), "AWS_ACCESS_KEY_ID"),
        (S3ClientConfig(session=boto3.Session()), "session"),
        (S3ClientConfig(client=boto3.client("s3", region_name="us-east-1")), "client"),
    ],
    ids=["credentials", "session", "client"],
)
def test_what_must_not_travel_is_refused(config: S3ClientConfig, said: str) -> None:
    writer = S3StorageWriter("s3://bucket/run", s3client_config=config)
    with pytest.raises(ConfigurationError, match=said) as caught:
        pickle.dumps(writer)
    assert "another process" in str(caught.value)
    for secret in ("AKIAEXAMPLE", "hidden"):
        assert secret not in str(caught.value)
        assert secret not in repr(writer.transport)


# --- in a process: these run on two ranks, each with a process that saves ---------------


def in_process(values: dict[str, Any], writer: S3StorageWriter, **options: Any) -> Any:
    future = dcp.async_save(
        values,
        storage_writer=writer,
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        **options,
    )
    return future.result(60)


def save_in_process(place: Place) -> list[str]:
    writer = place.writer("unused", thread_count=2)
    metadata = [
        in_process(state(number), writer, checkpoint_id=place.url(f"step-{number}"))
        for number in range(2)
    ]
    return [saved.storage_meta.checkpoint_id for saved in metadata]


def refused_in_process(place: Place) -> Any:
    return in_process(state(5), place.writer("step-0", overwrite=False))


def credentials_in_process(place: Place) -> Any:
    config = S3ClientConfig(credentials=S3Credentials("AKIAEXAMPLE", "hidden"))
    return in_process(state(5), S3StorageWriter(place.url("never"), s3client_config=config))


def recovered_in_process(place: Place) -> Any:
    in_process(state(6), place.writer("later"))
    return place.load(blank(state(6)), "later")


@pytest.mark.server
@pytest.mark.multirank
@pytest.mark.slow
def test_saves_in_a_process(seaweed: SeaweedServer, seaweed_bucket: str) -> None:
    place = Place(seaweed_bucket, BotoTransport())
    checks = {
        "saved": (save_in_process, place),
        "refused": (refused_in_process, place),
        "credentials": (credentials_in_process, place),
        "recovered": (recovered_in_process, place),
    }
    results: dict[str, list[Outcome]] = run_checks(2, checks, seaweed.environment())
    for outcome in results["saved"]:
        assert outcome.get() == [place.url("step-0"), place.url("step-1")]
    for outcome in results["refused"]:
        assert isinstance(outcome.error, CheckpointException)
        assert [type(error) for error in failures(outcome.error)] == [CheckpointExistsError]
    for outcome in results["credentials"]:
        assert isinstance(outcome.error, ConfigurationError)
        assert "AWS_ACCESS_KEY_ID" in str(outcome.error)
        assert "hidden" not in str(outcome.error)
    for outcome in results["recovered"]:
        assert_same(outcome.get(), state(6))
    reachable = place_on(seaweed, seaweed_bucket)
    for number in range(2):
        loaded = reachable.load(blank(state(number)), f"step-{number}")
        assert_same(loaded, state(number))
    assert not reachable.listing("never")

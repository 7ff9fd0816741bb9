"""What a user can get wrong: a typed error that says what and what to do, and never a hang."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import torch.distributed.checkpoint as dcp
from botocore.awsrequest import AWSResponse
from support.dcp import READERS, Place, assert_same, blank, failures, place_on, quiet, randn
from support.transports import Call, Tap, raise_on
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import (
    S3ClientConfig,
    S3Credentials,
    S3ReaderConstructor,
    S3StorageReader,
    S3StorageWriter,
)
from torch_s3dcp.exceptions import (
    AccessDeniedError,
    BucketNotFoundError,
    CheckpointIncompleteError,
    CheckpointNotFoundError,
    ConfigurationError,
    CredentialsError,
    EndpointError,
    IntegrityError,
    InvalidCheckpointError,
    InvalidURIError,
    ObjectChangedError,
    ObjectNotFoundError,
    ReaderRegistryError,
    S3DCPError,
    SizeMismatchError,
    ThrottledError,
    TruncatedObjectError,
    WrongRegionError,
)
from torch_s3dcp.testing.servers import Identity, MotoServer, SeaweedServer
from torch_s3dcp.transports import BotoTransport

STATE = {"w": randn(300, 200), "blob": "text" * 1000}
SEAWEED = pytest.param("seaweed", marks=pytest.mark.server)
pytestmark = pytest.mark.timeout(60)


def refused(action: Callable[[], Any], *said: str) -> BaseException:
    """The one error inside the CheckpointException that an action raises.

    It says all of ``said``, and all of that survives the way to another rank.
    """
    with pytest.raises(CheckpointException) as caught:
        action()
    (error,) = failures(caught.value)
    for text in said:
        assert text in str(error)
    (again,) = failures(pickle.loads(pickle.dumps(caught.value)))
    assert type(again) is type(error)
    assert str(again) == str(error)
    if isinstance(error, S3DCPError):
        assert again.context == error.context  # type: ignore[attr-defined]
    return error


def test_no_such_bucket(place: Place) -> None:
    elsewhere = Place("no-such-bucket-1", place.transport)
    error = refused(
        lambda: elsewhere.load(blank(STATE), "run"), "bucket does not exist", "//no-such-bucket-1"
    )
    assert type(error) is BucketNotFoundError


@pytest.mark.parametrize("place", ["memory", "moto"], indirect=True)
def test_saving_to_no_such_bucket(place: Place) -> None:
    # Not on SeaweedFS, which makes the bucket.
    elsewhere = Place("no-such-bucket-1", place.transport)
    error = refused(
        lambda: elsewhere.save(STATE, "run"), "bucket does not exist", "//no-such-bucket-1"
    )
    assert type(error) is BucketNotFoundError


def test_no_such_checkpoint(place: Place) -> None:
    place.save(STATE, "run/step-10")
    said = ("there is no checkpoint here", "check bucket and path", place.url("run/step-1"))
    error = refused(lambda: place.load(blank(STATE), "run/step-1"), *said)
    assert type(error) is CheckpointNotFoundError


def test_an_unfinished_checkpoint(place: Place) -> None:
    place.save(STATE, "run")
    place.transport.delete(place.bucket, ["run/.metadata"])
    said = ("no .metadata", "the save has not finished", "run/__0_0_")
    error = refused(lambda: place.load(blank(STATE), "run"), *said)
    assert type(error) is CheckpointIncompleteError


def test_a_folder_of_checkpoints_is_no_checkpoint(memory: Place) -> None:
    memory.save(STATE, "run/step-10")
    error = refused(lambda: memory.load(blank(STATE), "run"), "in a folder further down")
    assert type(error) is CheckpointIncompleteError


@pytest.mark.server
def test_who_may_not_and_who_is_unknown() -> None:
    users = [
        Identity("reader", "readerkey0", "readersecret", ("Read", "List")),
        Identity("writer", "writerkey0", "writersecret", ("Write",)),
    ]
    with SeaweedServer(identities=users) as server:
        server.create_bucket("bucket")
        place_on(server, "bucket").save(STATE, "run")

        def place_of(key: str, secret: str) -> Place:
            config = S3ClientConfig(
                endpoint_url=server.endpoint_url, credentials=S3Credentials(key, secret)
            )
            return Place("bucket", BotoTransport(server.region, config))

        reader, writer = (
            place_of("readerkey0", "readersecret"),
            place_of("writerkey0", "writersecret"),
        )
        stranger, liar = place_of("unknown0", "secret"), place_of("readerkey0", "wrongsecret")
        assert_same(reader.load(blank(STATE), "run"), STATE)
        denied = [
            refused(lambda: reader.save(STATE, "other"), "access denied", "lack a permission"),
            refused(lambda: reader.save(STATE, "run"), "access denied", "s3://bucket/run/"),
            refused(lambda: writer.load(blank(STATE), "run"), "access denied", "run/.metadata"),
        ]
        assert {type(error) for error in denied} == {AccessDeniedError}
        for action in (
            lambda: stranger.load(blank(STATE), "run"),
            lambda: liar.load(blank(STATE), "run"),
        ):
            error = refused(action, "does not accept the credentials", "run/.metadata")
            assert type(error) is CredentialsError
        for action in (lambda: stranger.save(STATE, "x"), lambda: liar.save(STATE, "x")):
            # The first request of a save is a HEAD, whose answer has no body to say more in.
            error = refused(action, "s3://bucket/x/.metadata")
            assert isinstance(error, (CredentialsError, AccessDeniedError))
            assert "secret" not in str(error)
        assert_same(reader.load(blank(STATE), "run"), STATE)


def test_absence_hidden_behind_a_denial(memory: Place) -> None:
    # S3 answers 403 rather than 404 to who may not list the bucket.
    def deny(call: Call) -> None:
        raise AccessDeniedError("access denied", bucket="bucket", key=call.key)

    tap = Tap(memory.transport, before=deny)
    error = refused(lambda: memory.over(tap).load(blank(STATE), "run"), "s3://bucket/run/.metadata")
    assert type(error) is AccessDeniedError


def test_no_credentials(moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    config = S3ClientConfig(endpoint_url=moto_server.endpoint_url, max_attempts=2)
    place = Place("bucket", BotoTransport("us-east-1", config))
    for action in (lambda: place.load(blank(STATE), "run"), lambda: place.save(STATE, "run")):
        error = refused(action, "no usable credentials", "AWS_ACCESS_KEY_ID", "a profile")
        assert type(error) is CredentialsError


def test_a_wrong_region() -> None:
    def moved(request: Any, **_: Any) -> AWSResponse:
        body = b"<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>"
        raw = io.BytesIO(body)
        raw.stream = lambda *_, **__: iter([body])  # type: ignore[attr-defined]
        headers = {"x-amz-bucket-region": "ap-south-1", "content-length": str(len(body))}
        return AWSResponse(request.url, 301, headers, raw)

    client = boto3.Session().client("s3", region_name="eu-west-1")
    client.meta.events.register("before-send.s3", moved)
    place = Place("bucket", BotoTransport("eu-west-1", S3ClientConfig(client=client)))
    for action in (lambda: place.load(blank(STATE), "run"), lambda: place.save(STATE, "run")):
        error = refused(action, "another region", "region='ap-south-1'")
        assert type(error) is WrongRegionError


def test_nobody_listens() -> None:
    config = S3ClientConfig(
        endpoint_url="http://127.0.0.1:9",
        credentials=S3Credentials("key", "secret"),
        max_attempts=1,
        connect_timeout=2,
    )
    place = Place("bucket", BotoTransport("us-east-1", config))
    for action in (lambda: place.load(blank(STATE), "run"), lambda: place.save(STATE, "run")):
        error = refused(action, "cannot be reached", "http://127.0.0.1:9")
        assert type(error) is EndpointError


BAD_ADDRESSES: list[tuple[Any, str]] = [
    ("s3:/bucket/x", "one slash is missing"),
    (Path("s3://bucket/x"), "Path"),
    ("https://bucket.s3.amazonaws.com/x", "endpoint_url"),
    ("s3://", "no bucket name"),
    ("s3:///x", "no bucket name"),
    ("/tmp/checkpoint", "not an S3 location"),
    ("gs://bucket/x", "not an S3 location"),
    ("", "not an S3 location"),
]


@pytest.mark.parametrize(("address", "said"), BAD_ADDRESSES)
@pytest.mark.parametrize("kind", [S3StorageReader, S3StorageWriter])
def test_bad_addresses(kind: type, address: Any, said: str, memory: Place) -> None:
    pair = kind(memory.url("good"), transport=memory.transport)
    for action in (lambda: kind(address), lambda: kind("eu-west-1", address)):
        with pytest.raises(InvalidURIError) as caught:
            action()
        assert "'s3://bucket/prefix'" in str(caught.value)
    with pytest.raises(InvalidURIError, match=said):
        kind(address)
    if address:
        with pytest.raises(InvalidURIError, match=said):
            pair.reset(address)
        assert pair.path == memory.url("good")


def test_an_unknown_reader() -> None:
    with pytest.raises(ReaderRegistryError) as caught:
        S3StorageReader("s3://bucket/x", reader_constructor="dcp-optimised")
    for text in ("'dcp-optimised'", *READERS):
        assert text in str(caught.value)
    with pytest.raises(ReaderRegistryError, match="callable"):
        S3StorageReader("s3://bucket/x", reader_constructor=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, 1024, 5 * 1024**2 - 1, 6 * 1024**3, 5e6, "8MB", True])
def test_a_wrong_part_size(size: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"part_size must be .* between 5242880 and") as c:
        S3ClientConfig(part_size=size)
    assert repr(size) in str(c.value)


@pytest.mark.parametrize("count", [0, -1, 1.5, "two", None])
def test_a_wrong_thread_count(count: Any) -> None:
    with pytest.raises(ConfigurationError, match="thread_count must be at least 1"):
        S3StorageWriter("s3://bucket/x", thread_count=count)


def test_a_missing_key(memory: Place) -> None:
    memory.save(STATE, "run")
    target = {**blank(STATE), "extra": torch.zeros(2)}
    error = refused(lambda: memory.load(target, "run"), "Missing key", "extra")
    assert isinstance(error, RuntimeError)
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    loaded = memory.load(target, "run", planner)
    assert_same(loaded, {**STATE, "extra": torch.zeros(2)})


def test_another_shape(memory: Place) -> None:
    memory.save(STATE, "run")
    target = {**blank(STATE), "w": torch.zeros(300, 201)}
    error = refused(lambda: memory.load(target, "run"), "[300, 200]", "[300, 201]", "w")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("reader", READERS)
def test_another_shape_than_the_metadata_says(memory: Place, reader: str) -> None:
    class Smaller(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            return super().resolve_data(write_item)[:7]

    memory.save({"w": STATE["w"]}, "run", Smaller())
    target = {"w": torch.zeros(300, 200)}
    action = lambda: memory.load(target, "run", reader_constructor=reader)  # noqa: E731
    error = refused(action, "[7, 200]", "[300, 200]", "'w'", "run/__0_0_")
    assert type(error) is SizeMismatchError


@pytest.fixture(params=["memory", "moto"])
def damaged(request: pytest.FixtureRequest) -> tuple[Place, str, str]:
    """A place with two checkpoints of one item each, and the keys of their data."""
    names = {"memory": "memory", "moto": "on_moto"}
    place: Place = request.getfixturevalue(names[request.param])
    place.save({"w": STATE["w"]}, "tensor")
    place.save({"blob": STATE["blob"]}, "blob")
    (tensor,) = [key for key in place.listing("tensor/") if key.endswith(".distcp")]
    (blob,) = [key for key in place.listing("blob/") if key.endswith(".distcp")]
    return place, tensor, blob


@pytest.mark.parametrize("reader", READERS)
def test_a_truncated_object(damaged: tuple[Place, str, str], reader: str) -> None:
    place, *keys = damaged
    for path, item, key in zip(["tensor", "blob"], ["w", "blob"], keys, strict=True):
        data = place.read(key)
        for size in (len(data) - 1, len(data) // 2, 1, 0):
            place.transport.put(place.bucket, key, data[:size])
            target = blank({item: STATE[item]})
            error = refused(
                lambda: place.load(target, path, reader_constructor=reader),  # noqa: B023
                key,
                f"item '{item}'",
                f"bytes [0, {len(data)})",
            )
            assert type(error) is TruncatedObjectError


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_object(damaged: tuple[Place, str, str], reader: str) -> None:
    place, *keys = damaged
    place.transport.delete(place.bucket, keys)
    for path, item, key in zip(["tensor", "blob"], ["w", "blob"], keys, strict=True):
        target = blank({item: STATE[item]})
        error = refused(
            lambda: place.load(target, path, reader_constructor=reader),  # noqa: B023
            "does not exist",
            key,
            f"item '{item}'",
        )
        assert type(error) is ObjectNotFoundError


@pytest.mark.parametrize(
    ("integrity", "kind", "said"),
    [
        ("full", IntegrityError, "do not match the checksum"),
        ("headers", InvalidCheckpointError, "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_bytes_that_are_no_item(
    damaged: tuple[Place, str, str], reader: str, integrity: str, kind: type, said: str
) -> None:
    place, key, _ = damaged
    place.transport.put(place.bucket, key, os.urandom(len(place.read(key))))
    state = {"w": torch.zeros(300, 200)}
    error = refused(
        lambda: place.load(state, "tensor", reader_constructor=reader, integrity=integrity),
        said,
        key,
        "item 'w'",
    )
    assert type(error) is kind


@pytest.mark.parametrize(
    "place", ["moto", pytest.param("seaweed", marks=pytest.mark.server)], indirect=True
)
@pytest.mark.parametrize(
    "constructor",
    [S3ReaderConstructor.dcp_optimized(0), S3ReaderConstructor.range_based(0)],
    ids=["dcp_optimized", "range_based"],
)
def test_an_object_that_changes_between_two_ranges(place: Place, constructor: Any) -> None:
    state = {f"x{i}": randn(400, 400, seed=i) for i in range(6)}
    place.save(state, "run")
    (key,) = [key for key in place.listing("run/") if key.endswith(".distcp")]
    other = bytes(len(place.read(key)))

    def replace_it(call: Call) -> None:
        if call.key == key:
            place.transport.put(place.bucket, key, other)

    tap = Tap(place.transport, after=replace_it)
    target = {name: torch.zeros(400, 400) for name in ("x0", "x5")}
    error = refused(
        lambda: place.over(tap).load(target, "run", reader_constructor=constructor),
        "replaced while it was being read",
        "load again",
        key,
    )
    assert type(error) is ObjectChangedError
    asked = [call for call in tap.calls if call.key == key]
    assert len(asked) == 2, "nothing is asked for again after that"


def test_a_passing_failure_to_read_the_metadata_is_not_called_absence(memory: Place) -> None:
    with quiet():
        # What ranks saved by themselves earlier must not be taken for the checkpoint.
        dcp.save(blank(STATE), storage_writer=memory.writer("run"), use_collectives=False)
    memory.save(STATE, "run")
    assert "run/__0.metadata" in memory.listing()
    fault = raise_on("get", "/.metadata", ThrottledError("still told to slow down"), times=1)
    tap = Tap(memory.transport, before=fault)
    error = refused(lambda: memory.over(tap).load(blank(STATE), "run"), "slow down")
    assert type(error) is ThrottledError


RAN: list[str] = []


def hostile_code() -> str:
    RAN.append("ran")
    return "done"


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return hostile_code, ()


@pytest.mark.parametrize("deep", [False, True])
def test_a_hostile_metadata_is_not_executed(memory: Place, deep: bool) -> None:
    hostile: Any = _Hostile()
    if deep:
        hostile = memory.save(STATE, "run")
        hostile.planner_data = {"x": _Hostile()}
    memory.transport.put("bucket", "run/.metadata", pickle.dumps(hostile))
    pickle.loads(pickle.dumps(hostile))
    assert RAN, "the pickle is harmless: this test tests nothing"
    RAN.clear()
    error = refused(lambda: memory.load(blank(STATE), "run"), "run/.metadata", "not loaded")
    assert type(error) is InvalidCheckpointError
    assert not RAN
    # Nor by a save that replaces it and wants to know what it owned.
    with pytest.warns(UserWarning, match="could not be removed"):
        memory.save(STATE, "run")
    assert not RAN
    assert_same(memory.load(blank(STATE), "run"), STATE)


@pytest.mark.parametrize("data", [b"", b"\x80", b"garbage", pickle.dumps({"a": 1}), bytes(5000)])
def test_a_damaged_metadata(memory: Place, data: bytes) -> None:
    memory.transport.put("bucket", "run/.metadata", data)
    error = refused(lambda: memory.load(blank(STATE), "run"), "metadata", "s3://bucket/run/")
    assert type(error) is InvalidCheckpointError

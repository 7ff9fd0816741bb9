"""Buckets with versions and Object Lock: saves, overwrites, loads, and what stays locked."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from support.dcp import assert_same, blank, failures, quiet, randn
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import S3ClientConfig, S3StorageReader, S3StorageWriter
from torch_s3dcp.testing.servers import MotoServer
from torch_s3dcp.transports import BotoTransport

MIB = 2**20
OLD = {"large": randn(2 * MIB, seed=1), "small": randn(3, seed=2), "step": 1}  # in two parts
NEW = {"large": randn(2 * MIB, seed=3), "small": randn(3, seed=4), "step": 2}


@pytest.fixture
def bucket(moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """All that is stored here is locked for a day. It goes when the server stops."""
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    name = "locked-" + secrets.token_hex(8)
    client = moto_server.client()
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    client.put_object_lock_configuration(
        Bucket=name,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}},
        },
    )
    return name


def transport_for(request: pytest.FixtureRequest, **options: Any) -> BotoTransport:
    """With a client of the test's own."""
    agent = "".join(filter(str.isalnum, request.node.name))
    return BotoTransport(config=S3ClientConfig(part_size=5 * MIB, **options), agent=agent)


def save(transport: BotoTransport, bucket: str, state: dict[str, Any]) -> None:
    writer = S3StorageWriter(f"s3://{bucket}/run", transport=transport, thread_count=2)
    with quiet():
        dcp.save(state, storage_writer=writer, no_dist=True)


def load(transport: BotoTransport, bucket: str) -> dict[str, Any]:
    state = blank(NEW)
    with quiet():
        dcp.load(
            state,
            storage_reader=S3StorageReader(f"s3://{bucket}/run", transport=transport),
            no_dist=True,
        )
    return state


def versions(client: Any, bucket: str) -> dict[tuple[str, str], bytes]:
    """Every version of every object."""
    found = client.list_object_versions(Bucket=bucket)["Versions"]
    return {
        (entry["Key"], entry["VersionId"]): client.get_object(
            Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"]
        )["Body"].read()
        for entry in found
    }


def test_an_overwrite_keeps_every_locked_version(
    bucket: str, moto_server: MotoServer, request: pytest.FixtureRequest, recwarn: Any
) -> None:
    transport, client = transport_for(request), moto_server.client()
    save(transport, bucket, OLD)
    assert_same(load(transport, bucket), OLD)
    old = versions(client, bucket)
    save(transport, bucket, NEW)
    assert_same(load(transport, bucket), NEW)
    # Removing left a marker on each object that was replaced: no failure, and nothing is lost.
    assert not [one for one in recwarn if "could not be removed" in str(one.message)]
    kept = versions(client, bucket)
    assert {name: kept[name] for name in old} == old
    visible = {info.key for page in transport.list(bucket) for info in page.object_info}
    assert not visible & {key for key, _ in old if not key.endswith(".metadata")}
    # moto does not lock what was uploaded in parts.
    locked = [name for name, data in old.items() if len(data) < 5 * MIB]
    assert len(locked) == len(old) - 1
    for key, version in locked:
        with pytest.raises(ClientError, match="AccessDenied"):
            client.delete_object(Bucket=bucket, Key=key, VersionId=version)


def test_no_data_key_is_written_twice(
    bucket: str, moto_server: MotoServer, request: pytest.FixtureRequest
) -> None:
    transport = transport_for(request)
    for state in (OLD, NEW, NEW):
        save(transport, bucket, state)
    keys = [key for key, _ in versions(moto_server.client(), bucket)]
    data = [key for key in keys if not key.endswith(".metadata")]
    assert len(data) == len(set(data)) == 6
    assert len(keys) - len(data) == 3


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("algorithm", [None, "CRC32", "SHA256"])  # moto takes CRC32 for CRC32C
def test_what_comes_under_a_lock_carries_a_checksum_and_names_it(
    algorithm: str | None,
    required: bool,
    bucket: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S3 demands it of all data. ``required``: boto3 leaves checksums out unless told to."""
    if required:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    transport = transport_for(request, checksum_algorithm=algorithm)
    sent: dict[str, set[tuple[str, bool]]] = {}

    def note(request: Any, event_name: str, **_: Any) -> None:
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
        }
        named = headers.get("x-amz-sdk-checksum-algorithm", "").lower()
        there = f"x-amz-checksum-{named}" in {*headers, headers.get("x-amz-trailer")}
        sent.setdefault(event_name.rpartition(".")[2], set()).add((named, there))

    for operation in ("PutObject", "UploadPart", "DeleteObjects"):
        transport.client.meta.events.register_first(f"before-send.s3.{operation}", note)
    if algorithm is None and required:
        with pytest.raises(CheckpointException) as caught:
            save(transport, bucket, OLD)
        assert "Object Lock" in str(failures(caught.value)[0])
        assert not [info for page in transport.list(bucket) for info in page.object_info]
        return
    for state in (OLD, NEW):
        save(transport, bucket, state)
    data = (algorithm or "CRC64NVME").lower()
    assert sent == {
        "PutObject": {(data, True)},
        "UploadPart": {(data, True)},
        "DeleteObjects": {("crc32", True)},
    }


def test_a_lock_that_forbids_removal_is_a_warning(
    bucket: str, request: pytest.FixtureRequest
) -> None:
    """Servers that lock objects without versions refuse to remove them."""
    transport = transport_for(request)
    save(transport, bucket, OLD)
    old = {info.key for page in transport.list(bucket) for info in page.object_info}

    def deny(request: Any, **_: Any) -> AWSResponse:
        refused = "".join(
            f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>locked</Message></Error>"
            for key in sorted(old - {"run/.metadata"})
        )
        text = f"<DeleteResult>{refused}</DeleteResult>".encode()
        raw = type("Raw", (), {"stream": lambda *_, **__: iter([text])})()
        return AWSResponse(request.url, 200, {}, raw)

    transport.client.meta.events.register_first("before-send.s3.DeleteObjects", deny)
    with pytest.warns(UserWarning, match=r"complete, but .*could not be removed.*locked"):
        save(transport, bucket, NEW)
    assert_same(load(transport, bucket), NEW)

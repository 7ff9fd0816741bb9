"""What requests carry, on the wire: each option goes with every operation that knows it."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.canary import CUSTOMER_KEY
from support.tls import over_tls, trust

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.testing.servers import MotoServer, S3Server
from torch_s3dcp.transports import BotoTransport

MIB = 2**20
PART = 5 * MIB
LARGE = bytes(range(256)) * (6 * 4096)  # 6 MiB: two parts
TAGS = {"run": "7 + 1", "a=b": "c/d:e@f", "empty": ""}
ENCODED_TAGS = "run=7%20%2B%201&a%3Db=c%2Fd%3Ae%40f&empty="
ALL = {
    "HeadObject",
    "GetObject",
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "UploadPartCopy",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "CopyObject",
    "DeleteObject",
    "DeleteObjects",
    "ListObjectsV2",
}


@dataclass(frozen=True)
class Sent:
    """A request as it went out; names of headers are in lower case."""

    operation: str
    url: str
    headers: dict[str, str]


@pytest.fixture(scope="module")
def endpoint(moto_server: MotoServer, authority: trustme.CA) -> Iterator[str]:
    with over_tls(moto_server.endpoint_url, authority) as address:
        yield address


@pytest.fixture
def environment(
    moto_server: MotoServer,
    endpoint: str,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trust(authority, tmp_path, monkeypatch)
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr("torch_s3dcp.transports.boto.LARGEST_SINGLE_COPY", PART)


def record(transport: BotoTransport) -> list[Sent]:
    """What the transport's client sends from now on."""
    sent: list[Sent] = []

    def note(request: Any, event_name: str, **_: Any) -> None:
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
        }
        sent.append(Sent(event_name.rpartition(".")[2], request.url, headers))

    transport.client.meta.events.register_first("before-send.s3", note)
    return sent


class Breaking(io.RawIOBase):
    """A stream that fails after its second part."""

    def __init__(self) -> None:
        self._left = 2 * PART

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            raise ValueError("the producer failed")
        size = min(size, self._left)
        self._left -= size
        return bytes(size)


def do_everything(transport: BotoTransport, bucket: str) -> None:
    """Each operation of a transport, uploads and copies in each of their ways."""
    etag = transport.put(bucket, "put", b"0123456789", metadata={"mark": "1"}).etag
    transport.head(bucket, "put")
    for span in ((0, None), (2, 5), (5, 9)):
        with transport.get(bucket, "put", *span, if_match=etag) as body:
            body.readall()
    for name, size in (("small", 100), ("large", len(LARGE))):
        transport.upload(bucket, name, io.BytesIO(LARGE[:size]), expected_size=size)
        transport.upload(bucket, f"unknown {name}", io.BytesIO(LARGE[:size]), expected_size=None)
        transport.copy(bucket, name, bucket, f"copy of {name}")
    hashed = BotoTransport(
        config=transport.config.replace(checksum_algorithm="SHA256"), agent=transport.agent
    )
    hashed.upload(bucket, "hashed", io.BytesIO(LARGE), expected_size=len(LARGE))
    with pytest.raises(ValueError, match="producer failed"):
        transport.upload(bucket, "broken", Breaking(), expected_size=3 * PART)
    assert sum(len(page.object_info) for page in transport.list(bucket)) == 8


def remove_everything(transport: BotoTransport, bucket: str) -> None:
    transport.delete(bucket, ["put"])
    transport.delete(bucket, ["small", "large"])


def used(request: pytest.FixtureRequest, bucket: str, **options: Any) -> tuple[Any, list[Sent]]:
    """A transport with a client of its own, after it has done everything."""
    agent = "".join(filter(str.isalnum, request.node.name))
    transport = BotoTransport(config=S3ClientConfig(part_size=PART, **options), agent=agent)
    sent = record(transport)
    do_everything(transport, bucket)
    return transport, sent


def knows(transport: BotoTransport, operation: str, member: str) -> bool:
    """Whether S3's own description of an operation has a parameter."""
    shape = transport.client.meta.service_model.operation_model(operation).input_shape
    return member in shape.members


# Of each option: its parameter in S3's own description, the header, the value.
COMMON: dict[str, Any] = {
    "storage_class": "STANDARD_IA",
    "requester_pays": True,
    "acl": "bucket-owner-full-control",
}
COMMON_HEADERS = {
    ("StorageClass", "x-amz-storage-class"): "STANDARD_IA",
    ("RequestPayer", "x-amz-request-payer"): "requester",
    ("ACL", "x-amz-acl"): "bucket-owner-full-control",
}
_SSE = "server-side-encryption"
CASES: dict[str, tuple[dict[str, Any], dict[tuple[str, str], str]]] = {
    "S3's key": (
        {"server_side_encryption": "AES256"},
        {("ServerSideEncryption", f"x-amz-{_SSE}"): "AES256"},
    ),
    "KMS": (
        {"server_side_encryption": "aws:kms", "sse_kms_key_id": "a-key", **COMMON},
        {
            ("ServerSideEncryption", f"x-amz-{_SSE}"): "aws:kms",
            ("SSEKMSKeyId", f"x-amz-{_SSE}-aws-kms-key-id"): "a-key",
            **COMMON_HEADERS,
        },
    ),
    "customer's key": (
        {"sse_customer_key": CUSTOMER_KEY, **COMMON},
        {
            (f"{member}SSECustomer{name}", f"x-amz-{header}{_SSE}-customer-{ending}"): value
            for member, header in (("", ""), ("CopySource", "copy-source-"))
            for name, ending, value in (
                ("Algorithm", "algorithm", "AES256"),
                ("Key", "key", base64.b64encode(CUSTOMER_KEY).decode()),
                (
                    "KeyMD5",
                    "key-md5",
                    base64.b64encode(hashlib.md5(CUSTOMER_KEY).digest()).decode(),
                ),
            )
        }
        | COMMON_HEADERS,
    ),
    "nothing": ({}, {}),
}
EVERY_HEADER = {
    *(header for _, headers in CASES.values() for _, header in headers),
    "x-amz-tagging",
    "x-amz-tagging-directive",
}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("case", CASES)
def test_an_option_goes_with_every_operation_that_knows_it_and_no_other(
    case: str, moto_bucket: str, request: pytest.FixtureRequest
) -> None:
    options, headers = CASES[case]
    transport, sent = used(request, moto_bucket, **options)
    remove_everything(transport, moto_bucket)
    assert {one.operation for one in sent} == ALL
    for member, _ in headers:
        assert any(knows(transport, operation, member) for operation in ALL), member
    for one in sent:
        expected = {
            header: value
            for (member, header), value in headers.items()
            if knows(transport, one.operation, member)
        }
        found = {name: value for name, value in one.headers.items() if name in EVERY_HEADER}
        assert found == expected, f"{one.operation} {one.url}"


@pytest.mark.usefixtures("environment")
def test_tags_are_on_everything_that_is_written(
    moto_server: MotoServer, moto_bucket: str, request: pytest.FixtureRequest
) -> None:
    transport, sent = used(request, moto_bucket, tags=TAGS)
    for info in (info for page in transport.list(moto_bucket) for info in page.object_info):
        found = moto_server.client().get_object_tagging(Bucket=moto_bucket, Key=info.key)
        assert {tag["Key"]: tag["Value"] for tag in found["TagSet"]} == TAGS, info.key
    creating = [
        one for one in sent if one.operation in ("PutObject", "CreateMultipartUpload", "CopyObject")
    ]
    # s3transfer tags a copy in parts when it is complete.
    rest = [one for one in creating if "copy%20of%20large" not in one.url]
    assert len(rest) == len(creating) - 1
    assert {one.headers.get("x-amz-tagging") for one in rest} == {ENCODED_TAGS}
    directives = {one.operation: one.headers.get("x-amz-tagging-directive") for one in rest}
    assert directives == {
        "PutObject": None,
        "CreateMultipartUpload": None,
        "CopyObject": "REPLACE",
    }


@pytest.mark.usefixtures("environment")
def test_a_copy_takes_the_tags_of_the_source_unless_told_others(
    moto_server: MotoServer, moto_bucket: str
) -> None:
    config = S3ClientConfig(tags={"of": "the source"})
    BotoTransport(config=config).put(moto_bucket, "source", b"data")
    for tags in (None, {}, {"of": "the copy"}):
        transport = BotoTransport(config=config.replace(tags=tags))
        transport.copy(moto_bucket, "source", moto_bucket, "copy")
        found = moto_server.client().get_object_tagging(Bucket=moto_bucket, Key="copy")["TagSet"]
        assert found == [{"Key": "of", "Value": (tags or config.tags or {})["of"]}]


@pytest.mark.usefixtures("environment")
def test_no_range_goes_by_a_signed_url_that_cannot_carry_the_key(
    moto_bucket: str, request: pytest.FixtureRequest
) -> None:
    for options, by_request in (({}, 1), ({"sse_customer_key": CUSTOMER_KEY}, 5)):
        agent = f"{request.node.name}{by_request}"
        transport = BotoTransport(config=S3ClientConfig(**options), agent=agent)
        etag = transport.put(moto_bucket, "object", b"0123456789").etag
        sent = record(transport)
        transport.get(moto_bucket, "object", 0, 1).close()
        for start in range(1, 5):
            with transport.get(moto_bucket, "object", start, 10, if_match=etag) as body:
                assert body.readall() == b"0123456789"[start:]
        assert len(sent) == by_request


def test_requests_that_differ_in_what_they_carry_share_a_client() -> None:
    config = S3ClientConfig(credentials=S3Credentials("key", "secret"))
    client = BotoTransport("us-east-1", config).client

    def of(**options: Any) -> Any:
        return BotoTransport("us-east-1", config.replace(**options)).client

    for options in (
        {"tags": {"step": "1"}},
        {"acl": "private"},
        {"storage_class": "STANDARD_IA"},
        {"checksum_algorithm": "SHA1"},
        {"server_side_encryption": "aws:kms", "sse_kms_key_id": "key"},
    ):
        assert of(**options) is client
    # With a customer's key there are no signed URLs.
    assert of(sse_customer_key=CUSTOMER_KEY) is not client
    assert of(sse_customer_key=CUSTOMER_KEY) is of(sse_customer_key=bytes(32))
    assert of(max_attempts=3) is not client


@pytest.mark.parametrize("how", ["setting", "environment", "client"])
def test_a_customers_key_is_never_sent_over_http(
    how: str, moto_server: S3Server, moto_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3 would send it."""
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    client = moto_server.client()
    sent: list[str] = []
    client.meta.events.register_first("before-send.s3", lambda request, **_: sent.append("sent"))
    options: dict[str, Any] = {
        "setting": {"endpoint_url": moto_server.endpoint_url},
        "environment": {},
        "client": {"client": client},
    }[how]

    def put() -> None:
        config = S3ClientConfig(sse_customer_key=CUSTOMER_KEY, **options)
        BotoTransport(config=config).put(moto_bucket, "object", b"data")

    with pytest.raises(ConfigurationError, match=r"sse_customer_key.*https") as caught:
        put()
    assert CUSTOMER_KEY.decode() not in str(caught.value)
    assert sent == []
    assert not client.list_objects_v2(Bucket=moto_bucket).get("Contents")
    assert sent == ["sent"]

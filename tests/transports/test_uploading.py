"""Uploads in parts, against a server that checks signatures and checksums."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError

from torch_s3dcp import S3ClientConfig
from torch_s3dcp.checksums import combinable
from torch_s3dcp.exceptions import AccessDeniedError, S3DCPError
from torch_s3dcp.segments import SegmentStream
from torch_s3dcp.testing.servers import SeaweedServer
from torch_s3dcp.transports import BotoTransport
from torch_s3dcp.transports.blocks import Blocks

MIB = 2**20
PART = 5 * MIB
LARGE = memoryview(bytes(range(256)) * (12 * 4096) + b"the end")  # 12 MiB: three parts


@pytest.fixture
def transport(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> BotoTransport:
    """With a client of its own, so that faults are those of one test."""
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    config = S3ClientConfig(part_size=PART, max_attempts=3)
    agent = "".join(filter(str.isalnum, request.node.name))
    return BotoTransport(config=config, agent=agent)


def upload(transport: BotoTransport, bucket: str, content: memoryview = LARGE) -> None:
    pieces = [content[:10], content[10 : 7 * MIB], content[7 * MIB :]]
    stream = SegmentStream(iter(pieces))
    transport.upload(bucket, "key", stream, expected_size=len(content))


def listen(transport: BotoTransport, operation: str, handler: Any) -> None:
    transport.client.meta.events.register_first(f"before-send.s3.{operation}", handler)


def stored(transport: BotoTransport, bucket: str) -> bytes:
    with transport.get(bucket, "key") as body:
        return body.readall()


def open_uploads(transport: BotoTransport, bucket: str) -> list[Any]:
    found: list[Any] = transport.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return found


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, len(LARGE)])
@pytest.mark.parametrize("algorithm", [None, "CRC32C", "CRC32"])
def test_the_server_keeps_the_checksum_of_the_whole_object(
    size: int, algorithm: str | None, transport: BotoTransport, seaweed_bucket: str
) -> None:
    config = transport.config.replace(checksum_algorithm=algorithm)
    upload(BotoTransport(config=config), seaweed_bucket, LARGE[:size])
    assert stored(transport, seaweed_bucket) == LARGE[:size]
    found: Any = transport.client.head_object(
        Bucket=seaweed_bucket, Key="key", ChecksumMode="ENABLED"
    )
    checksum = combinable(algorithm)
    assert checksum is not None
    assert found[checksum.member] == checksum.text(checksum.of([LARGE[:size]]))


def test_parts_are_sent_from_where_they_lie(transport: BotoTransport, seaweed_bucket: str) -> None:
    sent: list[Any] = []

    def note(request: Any, **_: Any) -> None:
        sent.append((request.body, request.headers.get("x-amz-content-sha256")))

    listen(transport, "UploadPart", note)
    upload(transport, seaweed_bucket)
    assert sorted(len(body) for body, _ in sent) == [2 * MIB + 7, PART, PART]
    assert all(isinstance(body, Blocks) for body, _ in sent)
    assert any(block.obj is LARGE.obj for body, _ in sent for block in body)
    assert {bytes(signed) for _, signed in sent} == {b"UNSIGNED-PAYLOAD"}


class Damage:
    """Turns a bit of the body of some requests."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.lock = threading.Lock()

    def __call__(self, request: Any, **_: Any) -> None:
        with self.lock:
            self.times -= 1
            if self.times < 0:
                return
        damaged = bytearray(b"".join(request.body))
        damaged[len(damaged) // 2] ^= 4
        request.body = Blocks([memoryview(damaged)])


@pytest.mark.parametrize(("operation", "size"), [("UploadPart", len(LARGE)), ("PutObject", 1000)])
def test_damaged_bodies_are_refused_and_sent_again(
    operation: str, size: int, transport: BotoTransport, seaweed_bucket: str, caplog: Any
) -> None:
    listen(transport, operation, Damage(2))
    upload(transport, seaweed_bucket, LARGE[:size])
    assert stored(transport, seaweed_bucket) == LARGE[:size]
    assert caplog.text.count("damaged on the way") == 2


@pytest.mark.parametrize(("operation", "size"), [("UploadPart", len(LARGE)), ("PutObject", 1000)])
def test_what_always_arrives_damaged_is_an_error(
    operation: str, size: int, transport: BotoTransport, seaweed_bucket: str
) -> None:
    listen(transport, operation, Damage(1000))
    with pytest.raises(S3DCPError, match="BadDigest"):
        upload(transport, seaweed_bucket, LARGE[:size])
    assert open_uploads(transport, seaweed_bucket) == []
    assert not [info for page in transport.list(seaweed_bucket) for info in page.object_info]


def test_a_lost_answer_to_the_completion_is_no_failure(
    transport: BotoTransport, seaweed_bucket: str
) -> None:
    lost: list[str] = []

    def complete_and_lose(request: Any, **_: Any) -> None:
        if lost:
            return
        lost.append(request.url)
        from botocore.httpsession import URLLib3Session

        assert URLLib3Session().send(request).status_code == 200
        raise ConnectionClosedError(endpoint_url=request.url)

    listen(transport, "CompleteMultipartUpload", complete_and_lose)
    upload(transport, seaweed_bucket)
    assert lost
    assert stored(transport, seaweed_bucket) == LARGE
    assert open_uploads(transport, seaweed_bucket) == []


def deny(request: Any, **_: Any) -> Any:
    """Answers instead of the server, for part 2."""
    if "partNumber=2" not in request.url:
        return None
    from botocore.awsrequest import AWSResponse

    text = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    raw = type("Raw", (), {"stream": lambda *_, **__: iter([text])})()
    return AWSResponse(request.url, 403, {}, raw)


def test_a_source_that_waits_for_a_part_is_told_that_it_failed(
    transport: BotoTransport, seaweed_bucket: str
) -> None:
    class Waits(SegmentStream):
        """Its third part comes when the others are stored."""

        told: Future[BaseException] = Future()
        calls = 0

        def take(self, size: int) -> list[memoryview]:
            self.calls += 1
            if self.calls == 3:
                raise self.told.result(timeout=60)
            return super().take(size)

        def give_up(self, error: BaseException) -> None:
            self.told.set_result(error)

    listen(transport, "UploadPart", deny)
    source = Waits(iter([LARGE]))
    with pytest.raises(AccessDeniedError):
        transport.upload(seaweed_bucket, "key", source, expected_size=len(LARGE))
    assert open_uploads(transport, seaweed_bucket) == []


def test_the_first_failure_of_a_part_is_raised(
    transport: BotoTransport, seaweed_bucket: str
) -> None:
    listen(transport, "UploadPart", deny)
    with pytest.raises(AccessDeniedError) as caught:
        upload(transport, seaweed_bucket)
    assert caught.value.context["operation"] == "UploadPart"
    assert caught.value.context["key"] == "key"
    assert open_uploads(transport, seaweed_bucket) == []


def test_a_client_of_the_users_own_uploads_too(
    transport: BotoTransport, seaweed: SeaweedServer, seaweed_bucket: str
) -> None:
    own = BotoTransport(config=S3ClientConfig(client=seaweed.client(), part_size=PART))
    upload(own, seaweed_bucket)
    assert stored(transport, seaweed_bucket) == LARGE

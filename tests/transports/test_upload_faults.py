"""Uploads to a server that breaks off, refuses early, or says too little."""

from __future__ import annotations

import gc
import re
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.checksums import combinable
from torch_s3dcp.exceptions import AccessDeniedError, EndpointError, StorageError
from torch_s3dcp.segments import SegmentStream
from torch_s3dcp.transports import BotoTransport
from torch_s3dcp.transports.blocks import Blocks
from torch_s3dcp.transports.sending import Target, is_as_sent
from torch_s3dcp.transports.uploading import Uploader

MIB = 2**20
# More than the buffers of a connection hold.
CONTENT = memoryview(bytes(24 * MIB))
OK = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'
SLOW = b"<Error><Code>SlowDown</Code><Message>no</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"

#: What is done with a request of so many bytes: True where the connection stays open.
Step = Callable[[socket.socket, int], bool]


def error(status: int, text: bytes, sent: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status} No\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    return head + text[:sent]


def swallow(connection: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(connection.recv(min(size, 65536))) or size


def accept(connection: socket.socket, size: int) -> bool:
    swallow(connection, size)
    connection.sendall(OK)
    return True


def break_off_within_the_error(connection: socket.socket, size: int) -> bool:
    swallow(connection, size)
    connection.sendall(error(503, SLOW, sent=10))
    return False


def claim_success_early(connection: socket.socket, size: int) -> bool:
    swallow(connection, 1000)
    connection.sendall(OK)
    return False


def refuse_early(connection: socket.socket, size: int) -> bool:
    swallow(connection, 1000)
    connection.sendall(error(403, DENIED))
    return False


def say_nothing_of_the_etag(connection: socket.socket, size: int) -> bool:
    swallow(connection, size)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    return True


class Script:
    """A server that does one step for each request, and the last one for all others.

    Asked what it has, it has what it was sent last, less ``lost`` bytes.
    """

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[bytes] = []
        self.stored = self.lost = self.looks = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def transport(self) -> BotoTransport:
        port = self.listener.getsockname()[1]
        return BotoTransport(
            "us-east-1",
            S3ClientConfig(
                endpoint_url=f"http://127.0.0.1:{port}",
                credentials=S3Credentials("key", "secret"),
                force_path_style=True,
                max_attempts=3,
                read_timeout=5,
                part_size=32 * MIB,
            ),
        )

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while True:
                head = b""
                while b"\r\n\r\n" not in head:
                    byte = connection.recv(1)
                    if not byte:
                        return
                    head += byte
                if head.startswith(b"HEAD"):
                    self.looks += 1
                    size = self.stored - self.lost
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                    continue
                self.requests.append(head)
                step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
                found = re.search(rb"(?i)content-length: (\d+)", head)
                self.stored = int(found[1]) if found else 0
                if not step(connection, self.stored):
                    return


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    made: list[Script] = []

    def make(*steps: Step) -> Script:
        made.append(Script(*steps))
        return made[-1]

    yield make
    for server in made:
        server.listener.close()


def upload(server: Script) -> None:
    stream = SegmentStream(iter([CONTENT]))
    server.transport.upload("bucket", "key", stream, expected_size=len(CONTENT))


@pytest.mark.parametrize("step", [break_off_within_the_error, claim_success_early])
def test_what_broke_off_is_tried_again(script: Any, step: Step) -> None:
    server = script(step, accept)
    upload(server)
    assert len(server.requests) == 2
    assert all(head.startswith(b"PUT /bucket/key HTTP/1.1") for head in server.requests)


def test_a_server_that_does_not_repeat_the_checksum_is_asked_what_it_has(script: Any) -> None:
    server = script(accept)
    upload(server)
    assert server.looks == 1
    server.lost = 1
    with pytest.raises(StorageError, match=f"{len(CONTENT)} bytes and stored with"):
        upload(server)


def test_what_always_breaks_off_is_an_error(script: Any) -> None:
    server = script(claim_success_early)
    with pytest.raises(EndpointError):
        upload(server)
    assert len(server.requests) == 3


def test_an_early_refusal_is_heard(script: Any) -> None:
    server = script(refuse_early)
    with pytest.raises(AccessDeniedError):
        upload(server)
    assert len(server.requests) == 1
    assert b"100-continue" not in server.requests[0]


def test_a_part_without_an_etag_is_an_error(script: Any) -> None:
    def create(connection: socket.socket, size: int) -> bool:
        text = b"<R><UploadId>u</UploadId></R>"
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
        return True

    server = script(create, say_nothing_of_the_etag)
    with pytest.raises(StorageError, match="did not name the part"):
        server.transport.upload(
            "bucket", "key", SegmentStream(iter([CONTENT] * 3)), expected_size=72 * MIB
        )
    assert server.requests[-1].startswith(b"DELETE /bucket/key?uploadId=u"), "it is aborted"


@pytest.mark.parametrize("asked", ["when_supported", "when_required"])
def test_checksums_can_be_left_out(
    script: Any, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", asked)
    server = script(accept)
    upload(server)
    (head,) = server.requests
    assert (b"x-amz-checksum-crc64nvme" in head.lower()) == (asked == "when_supported")
    # Something covers the body in any case.
    assert (b"UNSIGNED-PAYLOAD" in head) == (asked == "when_supported")


def test_other_requests_are_signed_with_their_bodies(script: Any) -> None:
    server = script(accept)
    server.transport.put("bucket", "key", b"small")
    assert b"UNSIGNED-PAYLOAD" not in server.requests[0]


class Sink:
    """A client that keeps nothing."""

    def create_multipart_upload(self, **_: Any) -> Any:
        return {"UploadId": "upload"}

    def upload_part(self, Body: Blocks, **_: Any) -> Any:
        return {"ETag": str(len(Body))}

    def complete_multipart_upload(self, ChecksumCRC64NVME: str, **_: Any) -> Any:
        return {"ChecksumCRC64NVME": ChecksumCRC64NVME}


class Array(bytearray):
    """Memory that can be watched."""


def test_what_was_sent_is_not_kept() -> None:
    alive: list[weakref.ref[Array]] = []
    kept: list[int] = []

    def produce() -> Iterator[memoryview]:
        for _ in range(8):
            block = Array(MIB)
            alive.append(weakref.ref(block))
            yield memoryview(block)
            del block
            gc.collect()
            kept.append(sum(one() is not None for one in alive))

    client: Any = Sink()
    target = Target("bucket", "key", {}, {}, combinable(None))
    Uploader(client, 1, MIB).upload(target, SegmentStream(produce()), part_size=MIB)
    assert max(kept) <= 4


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ({}, True),
        ({"ChecksumCRC32C": "abc"}, True),
        ({"ChecksumCRC32C": "xyz"}, False),
        ({"ChecksumCRC32C": "xyz", "ChecksumType": "FULL_OBJECT"}, False),
        ({"ChecksumCRC32C": "xyz-3", "ChecksumType": "COMPOSITE"}, True),
        ({"ContentLength": 8}, False),
    ],
)
def test_only_checksums_of_the_whole_object_are_compared(found: Any, same: bool) -> None:
    assert is_as_sent({"ContentLength": 7, **found}, 7, {"ChecksumCRC32C": "abc"}) == same

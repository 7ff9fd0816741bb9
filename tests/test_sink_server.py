"""The server that saves are measured against takes what clients send, and counts it right."""

from __future__ import annotations

import importlib
import io
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

ROOT = Path(__file__).resolve().parents[1]
PART = 5 * 2**20
BODY = bytes(range(256)) * 40
OBJECT = {"Bucket": "bucket", "Key": "a/b"}

Connect = Callable[..., Any]


@pytest.fixture(params=["http", "https"])
def connect(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Connect]:
    """Makes boto3 clients for a new sink."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    servers = importlib.import_module("benchmarks.servers")
    with servers.sink_server(tmp_path, request.param == "https") as environment:

        def make(**options: Any) -> Any:
            return boto3.session.Session().client(
                "s3",
                endpoint_url=environment["AWS_ENDPOINT_URL"],
                verify=environment.get("AWS_CA_BUNDLE"),
                config=Config(proxies={}, retries={"total_max_attempts": 1}, **options),
            )

        yield make


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """A connection to a new sink."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    servers = importlib.import_module("benchmarks.servers")
    with servers.sink_server(tmp_path) as environment:
        place = urlsplit(environment["AWS_ENDPOINT_URL"])
        with closing(socket.create_connection((place.hostname, place.port), 20)) as connection:
            yield connection


def received(client: Any) -> int:
    return int(client.get_object(Bucket="-", Key="bytes")["Body"].read())


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_objects(connect: Connect, checksums: str) -> None:
    client = connect(request_checksum_calculation=checksums)
    with pytest.raises(ClientError, match="404"):
        client.head_object(**OBJECT)
    answer = client.put_object(**OBJECT, Body=BODY)
    assert answer["ETag"]
    assert client.head_object(**OBJECT)["ContentLength"] == len(BODY)
    assert received(client) == len(BODY)
    with pytest.raises(ClientError, match="NotKept"):
        client.get_object(**OBJECT)
    client.put_object(**OBJECT)
    assert client.head_object(**OBJECT)["ContentLength"] == 0
    client.delete_object(**OBJECT)
    with pytest.raises(ClientError, match="404"):
        client.head_object(**OBJECT)
    with pytest.raises(ClientError, match="NoSuchKey"):
        client.get_object(**OBJECT)


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
@pytest.mark.parametrize("key", ["a/b", "a/.metadata"])
def test_parts(connect: Connect, checksums: str, key: str) -> None:
    client = connect(request_checksum_calculation=checksums)
    data = BODY * (3 * PART // len(BODY)) + b"the last part"
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
    client.upload_fileobj(io.BytesIO(data), "bucket", key, Config=config)
    assert client.head_object(Bucket="bucket", Key=key)["ContentLength"] == len(data)
    assert received(client) == len(data)
    if key.endswith(".metadata"):
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == data


def test_an_upload_that_is_given_up_is_gone(connect: Connect) -> None:
    client = connect()
    upload = {**OBJECT, "UploadId": client.create_multipart_upload(**OBJECT)["UploadId"]}
    client.upload_part(**upload, PartNumber=1, Body=BODY)
    client.abort_multipart_upload(**upload)
    with pytest.raises(ClientError):
        client.complete_multipart_upload(**upload)
    with pytest.raises(ClientError, match="404"):
        client.head_object(**OBJECT)


def test_copies_and_deletions_of_many(connect: Connect) -> None:
    client = connect()
    keys = ["a/.metadata.tmp", "a/ä & b"]
    for key in keys:
        client.put_object(Bucket="bucket", Key=key, Body=BODY)
    for key in keys:
        source = {"Bucket": "bucket", "Key": key}
        client.copy_object(Bucket="bucket", Key=f"{key} copied", CopySource=source)
    copied = client.get_object(Bucket="bucket", Key="a/.metadata.tmp copied")
    assert copied["Body"].read() == BODY
    assert received(client) == 2 * len(BODY)
    client.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": key} for key in keys]})
    for key in keys:
        with pytest.raises(ClientError, match="404"):
            client.head_object(Bucket="bucket", Key=key)
        found = client.head_object(Bucket="bucket", Key=f"{key} copied")
        assert found["ContentLength"] == len(BODY)


def exchange(connection: socket.socket, request: bytes) -> bytes:
    """Send a request in small pieces; the head and the body of the answer."""
    for start in range(0, len(request), 7):
        connection.sendall(request[start : start + 7])
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1)
    length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while length:
        block = connection.recv(length)
        answer, length = answer + block, length - len(block)
    return answer


CHUNKS = b"5\r\nfirst\r\n6;a=b\r\nsecond\r\n0\r\nx-amz-checksum-crc32: AAAAAA==\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Length: 11", b"firstsecond"),
        ("Transfer-Encoding: chunked", CHUNKS),
        (
            f"Content-Length: {len(CHUNKS)}\r\nContent-Encoding: aws-chunked\r\n"
            "x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            CHUNKS,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Encoding: aws-chunked\r\n"
            "X-Amz-Content-SHA256: STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            b"3\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (CHUNKS[:3], len(CHUNKS) - 3, CHUNKS[3:]),
        ),
    ],
)
def test_wrapped_bodies(raw: socket.socket, headers: str, body: bytes) -> None:
    head = f"PUT /bucket/.metadata HTTP/1.1\r\n{headers}\r\n\r\n"
    for _ in range(2):  # nothing stays behind
        assert exchange(raw, head.encode() + body).startswith(b"HTTP/1.1 200 ")
    answer = exchange(raw, b"GET /bucket/.metadata HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nfirstsecond")
    assert exchange(raw, b"GET /-/bytes HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n22")


def test_a_client_that_waits_is_told_to_go_on(raw: socket.socket) -> None:
    raw.sendall(b"PUT /b/k HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    expected = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert raw.recv(len(expected), socket.MSG_WAITALL) == expected
    assert exchange(raw, b"abc").startswith(b"HTTP/1.1 200 ")


def test_a_checksum_of_the_head_comes_back(raw: socket.socket) -> None:
    head = b"PUT /b/k HTTP/1.1\r\nContent-Length: 0\r\nX-Amz-Checksum-CRC32: AAAAAA==\r\n\r\n"
    assert b"x-amz-checksum-crc32: AAAAAA==\r\n" in exchange(raw, head)
    assert b"checksum" not in exchange(raw, b"HEAD /b/k HTTP/1.1\r\n\r\n")


def test_it_ends_with_its_input() -> None:
    command = [sys.executable, "-m", "benchmarks.sink_server"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.stdin.close()
        assert process.wait(20) == 0

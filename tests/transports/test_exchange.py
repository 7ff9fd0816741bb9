"""The exchange of GET bodies behind botocore, against a small HTTP server, with TLS and without."""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
from botocore.config import Config
from support.tls import settings_of, trust

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import (
    ConfigurationError,
    EndpointError,
    ObjectChangedError,
    ObjectNotFoundError,
    TruncatedObjectError,
)
from torch_s3dcp.readers.contract import fill_from
from torch_s3dcp.transports import BotoTransport
from torch_s3dcp.transports.connections import ConnectFailed, Connections
from torch_s3dcp.transports.exchange import BotocoreExchange

BLOB = bytes(i % 251 for i in range(300_000))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BLOB under every key but ``missing``; counts connections and requests."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.server.requests += 1  # type: ignore[attr-defined]
        if "X-Amz-Signature" in self.path:
            self.server.signed.append(self.path)  # type: ignore[attr-defined]
            if self.server.answers:  # type: ignore[attr-defined]
                answer = self.server.answers.pop()  # type: ignore[attr-defined]
                self.refuse(*(answer if isinstance(answer, tuple) else (answer,)))
                return
            self.path = self.path.partition("?")[0]
        if self.path.endswith("missing"):
            body = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
            self.send_response(404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        body = BLOB[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(BLOB)}")
        self.send_header("ETag", '"one"')
        if "/last" in self.path:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.path.endswith("stuck"):
            self.wfile.write(body[:10])
            self.wfile.flush()
            self.server.release.wait(30)  # type: ignore[attr-defined]
            return
        if self.path.endswith("breaks"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(0.1)
            # Unread data or this option: the client sees a reset.
            reset = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            os.close(self.connection.detach())
            self.close_connection = True
            return
        if self.path.endswith("more"):
            body += b"HTTP/1.1 206 Partial Content\r\nContent-Length: 9\r\n\r\nFORGED..."
        self.wfile.write(body)
        if self.path.endswith("hang-up"):
            # Says nothing about it: the client believes that the connection stays open.
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def refuse(self, status: int, code: str = "No") -> None:
        """Answers as a server does that does not like the request."""
        body = BLOB if status < 300 else f"<Error><Code>{code}</Code></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None) -> Iterator[Any]:
    listener: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.connections = listener.requests = 0
    listener.signed, listener.answers = [], []
    listener.release = threading.Event()
    listener.daemon_threads = True
    listener.scheme = "https" if context else "http"
    if context:
        listener.socket = context.wrap_socket(
            listener.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    yield listener
    listener.release.set()
    listener.shutdown()
    listener.server_close()


@pytest.fixture
def server(context: ssl.SSLContext | None) -> Iterator[Any]:
    with serving(context) as listener:
        yield listener


def transport_at(port: int, scheme: str = "http", **settings: Any) -> BotoTransport:
    config = S3ClientConfig(
        endpoint_url=f"{scheme}://127.0.0.1:{port}",
        credentials=S3Credentials("key", "secret"),
        force_path_style=True,
        **{"max_attempts": 2, **settings},
    )
    return BotoTransport("us-east-1", config)


def transport_to(server: Any, **settings: Any) -> BotoTransport:
    return transport_at(server.server_address[1], server.scheme, **settings)


def read(
    transport: BotoTransport, key: str, start: int, end: int, etag: str | None = None
) -> bytes:
    with transport.get("bucket", key, start, end, if_match=etag) as body:
        return body.readall()


def test_botocore_hands_its_gets_over(server: Any) -> None:
    """Fails when a new botocore no longer asks the handler, or asks it otherwise."""
    calls: list[str] = []

    class Spy(BotocoreExchange):
        def exchange(self, request: Any, **options: Any) -> Any:
            calls.append(request.method)
            return super().exchange(request, **options)

    client = boto3.client(
        "s3",
        endpoint_url=f"{server.scheme}://127.0.0.1:{server.server_address[1]}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(s3={"addressing_style": "path"}),
    )
    Spy(Connections(5, 5, 4, os.environ.get("AWS_CA_BUNDLE"))).register(client)
    body = client.get_object(Bucket="bucket", Key="key", Range="bytes=10-99")["Body"]
    target = bytearray(90)
    assert body.readinto(target) == 90
    assert bytes(target) == BLOB[10:100]
    assert calls == ["GET"]


def test_a_connection_serves_many_requests(server: Any) -> None:
    transport = transport_to(server)
    for start in range(0, 1000, 100):
        assert read(transport, "key", start, start + 100) == BLOB[start : start + 100]
    assert (server.connections, server.requests) == (1, 10)


def test_a_body_that_is_left_takes_its_connection_along(server: Any) -> None:
    transport = transport_to(server)
    body = transport.get("bucket", "key", 0, 200_000)
    assert body.read(10) == BLOB[:10]
    body.close()
    assert read(transport, "key", 5, 50) == BLOB[5:50]
    assert server.connections == 2


def test_a_connection_that_the_server_dropped_is_no_error(server: Any) -> None:
    transport = transport_to(server)
    for _ in range(5):
        assert read(transport, "hang-up", 0, 100) == BLOB[:100]
    assert server.connections == 5


def test_an_error_answer_is_read_by_botocore(server: Any) -> None:
    transport = transport_to(server)
    with pytest.raises(ObjectNotFoundError, match="NoSuchKey"):
        transport.get("bucket", "missing", 0, 10)
    assert read(transport, "key", 0, 10) == BLOB[:10]
    assert server.connections == 1


def test_parallel_requests(server: Any) -> None:
    transport = transport_to(server)
    wrong: list[int] = []

    def work(number: int) -> None:
        for start in range(number, 5000, 500):
            if read(transport, "key", start, start + 1000) != BLOB[start : start + 1000]:
                wrong.append(start)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert server.requests == 80
    assert server.connections <= 8


def test_a_server_that_says_nothing_runs_into_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = transport_at(silent.getsockname()[1], read_timeout=0.3)
        with pytest.raises(EndpointError, match="Read timeout"):
            read(transport, "key", 0, 10)


def test_a_closed_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport = transport_at(listener.getsockname()[1])
    with pytest.raises(EndpointError, match="Could not connect"):
        read(transport, "key", 0, 10)


def test_it_steps_aside_for_a_proxy(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("no_proxy", "")
    facts = {"url": "http://somewhere.invalid/key", "method": "GET", "headers": {}, "body": None}
    request = type("Request", (), facts)()
    assert BotocoreExchange(Connections(1, 1, 1)).exchange(request) is None


def test_further_ranges_use_one_signed_url(server: Any) -> None:
    transport = transport_to(server)
    for start in range(0, 1000, 100):
        assert read(transport, "key", start, start + 100, '"one"') == BLOB[start : start + 100]
    assert (server.connections, server.requests) == (1, 10)
    assert len(server.signed) == 10
    assert len(set(server.signed)) == 1
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in server.signed[0]
    assert "secret" not in server.signed[0]


def test_signed_urls_can_be_switched_off(server: Any) -> None:
    transport = transport_to(server, presigned_reads=False)
    assert read(transport, "key", 3, 7, '"one"') == BLOB[3:7]
    assert server.signed == []


@pytest.mark.parametrize(
    "answer",
    [
        301,
        401,
        403,
        (403, "SignatureDoesNotMatch"),
        405,
        501,
        (400, "AuthorizationQueryParametersError"),
        (400, "InvalidRequest"),
    ],
)
def test_a_server_without_signed_ranges_is_asked_once(server: Any, answer: Any) -> None:
    transport = transport_to(server)
    server.answers = [answer]
    for start in (0, 50_000, 100_000):
        assert read(transport, "key", start, start + 50, '"one"') == BLOB[start : start + 50]
    assert (len(server.signed), server.requests) == (1, 4)


@pytest.mark.parametrize(
    "answer",
    [
        *[200, 206, 307, 400, 404, 409, 412, 416, 429, 500, 503, 520],
        (400, "RequestTimeout"),
        (400, "ExpiredToken"),
        (403, "SlowDown"),
    ],
)
def test_a_passing_refusal_does_not_end_signed_ranges(server: Any, answer: Any) -> None:
    transport = transport_to(server)
    server.answers = [answer]
    with transport.get("bucket", "key", 0, 50, if_match='"one"') as body:
        assert body.readall() == BLOB[:50]
        assert body.retries == 1
    with transport.get("bucket", "key", 50, 90, if_match='"one"') as body:
        assert body.readall() == BLOB[50:90]
        assert body.retries == 0
    assert (len(server.signed), server.requests) == (2, 3)


def test_another_version_is_noticed_by_signed_ranges(server: Any) -> None:
    transport = transport_to(server)
    with pytest.raises(ObjectChangedError):
        read(transport, "key", 0, 50, '"two"')


def test_any_cut_of_a_body_can_be_received(server: Any) -> None:
    transport = transport_to(server)
    choose = random.Random(7)
    with transport.get("bucket", "key", 0, len(BLOB)) as body:
        whole = bytearray(len(BLOB))
        position = 0
        while position < len(BLOB):
            size = choose.choice((1, 5, 4096, 16384, 16385, 70_000))
            position += body.readinto(memoryview(whole)[position : position + size])
    assert bytes(whole) == BLOB


def test_a_certificate_for_another_name_is_refused(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(authority, tmp_path, monkeypatch)
    with serving(settings_of(authority, "somewhere.else")) as server:
        with pytest.raises(EndpointError, match="certificate"):
            read(transport_to(server), "key", 0, 10)
        assert server.requests == 0


def test_an_unknown_authority_is_refused(authority: trustme.CA) -> None:
    with serving(settings_of(authority)) as server:
        with pytest.raises(EndpointError, match="certificate"):
            read(transport_to(server), "key", 0, 10)
        assert server.requests == 0


def test_a_server_without_tls_is_named() -> None:
    with serving(None) as server, pytest.raises(EndpointError, match="SSL"):
        read(transport_at(server.server_address[1], "https"), "key", 0, 10)


def test_bytes_that_nobody_asked_for_are_no_answer(server: Any) -> None:
    """A faulty server sends a second answer behind the first."""
    transport = transport_to(server)
    for end in (9, 20_000, 40_000, 100_000):
        whole = bytearray(end)
        with transport.get("bucket", "more", 0, end) as body:
            assert fill_from(body, memoryview(whole)) == end
        assert bytes(whole) == BLOB[:end]
        assert read(transport, "key", 50, 59) == BLOB[50:59]


@pytest.mark.parametrize("key", ["stuck", "last-stuck"])
def test_closing_wakes_who_waits_for_the_body(server: Any, key: str) -> None:
    transport = transport_to(server, read_timeout=20)
    body = transport.get("bucket", key, 0, 100)
    ended = threading.Event()

    def wait() -> None:
        with contextlib.suppress(Exception):
            body.readall()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    time.sleep(0.2)
    body.close()
    assert ended.wait(5)


def test_signed_urls_that_keep_failing_are_left_alone(server: Any) -> None:
    transport = transport_to(server)
    server.answers = [500] * 50
    retries = []
    for start in range(0, 600, 10):
        with transport.get("bucket", "key", start, start + 10, if_match='"one"') as body:
            assert body.readall() == BLOB[start : start + 10]
            retries.append(body.retries)
    assert retries == [1, 1, 1] + [0] * 57
    assert (len(server.signed), server.requests) == (3, 63)


def test_a_refusal_of_one_bucket_is_not_that_of_another(server: Any) -> None:
    transport = transport_to(server)
    server.answers = [403]
    assert read(transport, "key", 0, 5, '"one"') == BLOB[:5]
    with transport.get("other", "key", 0, 5, if_match='"one"') as body:
        assert body.readall() == BLOB[:5]
    assert len(server.signed) == 2


def test_a_missing_file_of_authorities_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/authorities.pem")
    with pytest.raises(ConfigurationError, match=r"/nowhere/authorities\.pem"):
        read(transport_at(1, "https"), "key", 0, 10)


def test_an_address_of_ipv6_needs_no_port() -> None:
    with pytest.raises(ConnectFailed, match=r"refused|unreachable|assign"):
        Connections(1, 1, 1).send("GET", "http://[::1]/bucket/key", {})


def test_bytes_before_a_break_are_not_lost(server: Any) -> None:
    """One call for all of the body, of which the server sends half and resets."""
    transport = transport_to(server)
    whole = bytearray(200_000)
    with transport.get("bucket", "breaks", 0, 200_000) as body:
        with pytest.raises((EndpointError, TruncatedObjectError)):
            fill_from(body, memoryview(whole))
        assert body.position == 100_000
    assert bytes(whole[:100_000]) == BLOB[:100_000]

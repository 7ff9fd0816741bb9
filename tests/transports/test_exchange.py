"""The exchange of GET bodies behind botocore, against a small HTTP server."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import EndpointError, ObjectNotFoundError
from torch_s3dcp.transports import BotoTransport
from torch_s3dcp.transports.exchange import DirectExchange

BLOB = bytes(i % 251 for i in range(300_000))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BLOB under every key but ``missing``; counts connections and requests."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.server.requests += 1  # type: ignore[attr-defined]
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
        self.end_headers()
        self.wfile.write(body)
        if self.path.endswith("hang-up"):
            # Says nothing about it: the client believes that the connection stays open.
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    listener: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.connections = listener.requests = 0
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    yield listener
    listener.shutdown()
    listener.server_close()


def transport_at(port: int, **settings: Any) -> BotoTransport:
    config = S3ClientConfig(
        endpoint_url=f"http://127.0.0.1:{port}",
        credentials=S3Credentials("key", "secret"),
        force_path_style=True,
        **{"max_attempts": 1, **settings},
    )
    return BotoTransport("us-east-1", config)


def transport_to(server: Any) -> BotoTransport:
    return transport_at(server.server_address[1])


def read(transport: BotoTransport, key: str, start: int, end: int) -> bytes:
    with transport.get("bucket", key, start, end) as body:
        return body.readall()


def test_botocore_hands_its_gets_over(server: Any) -> None:
    """Fails when a new botocore no longer asks the handler, or asks it otherwise."""
    calls: list[str] = []

    class Spy(DirectExchange):
        def exchange(self, request: Any, **options: Any) -> Any:
            calls.append(request.method)
            return super().exchange(request, **options)

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{server.server_address[1]}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(s3={"addressing_style": "path"}),
    )
    Spy(5, 5, 4).register(client)
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
    request = type("Request", (), {"url": "http://somewhere.invalid/key", "headers": {}})()
    assert DirectExchange(1, 1, 1).exchange(request) is None

"""What a server, the network or the settings do wrong, and which error comes out.

A stub on loopback gives the answers that a script says.
"""

from __future__ import annotations

import base64
import pickle
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from torch_s3dcp import S3ClientConfig, S3Credentials, exceptions
from torch_s3dcp.exceptions import StorageError
from torch_s3dcp.testing import SECRET_MARK
from torch_s3dcp.transports import BotoTransport

SECRET = SECRET_MARK + "0123456789abcdef"
ACCESS_KEY = "AKIANOTAREALKEY00000"
DATA = bytes(range(200))


@dataclass
class Answer:
    """One scripted answer. ``length``: what Content-Length claims."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    wait: float = 0.0
    hang_up: bool = False


def failure(code: str, status: int, message: str = "said the server", **more: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, text.encode(), {"x-amz-request-id": "REQ-123", **more})


def part(start: int, end: int, data: bytes = DATA, **changes: Any) -> Answer:
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}", "ETag": '"one"'}
    return Answer(206, data[start:end], headers, **changes)


class Stub:
    """Answers requests with the script's answers, the last one for ever."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stub.seen.append((self.command, self.path, dict(self.headers)))
                reply = stub.script.pop(0) if len(stub.script) > 1 else stub.script[0]
                time.sleep(reply.wait)
                if reply.hang_up:
                    # Close with a reset rather than politely.
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                length = len(reply.body) if reply.length is None else reply.length
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply.body)
                if length != len(reply.body):
                    self.close_connection = True

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def answers(self, *script: Answer) -> None:
        self.script = list(script)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def running_stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.stop()


@pytest.fixture
def stub(running_stub: Stub) -> Stub:
    running_stub.answers()
    running_stub.seen.clear()
    return running_stub


def transport_to(url: str, **changes: Any) -> BotoTransport:
    config = {
        "endpoint_url": url,
        "force_path_style": True,
        "max_attempts": 1,
        "credentials": S3Credentials(ACCESS_KEY, SECRET),
        **changes,
    }
    return BotoTransport("us-east-1", S3ClientConfig(**config))


@pytest.fixture
def transport(stub: Stub) -> BotoTransport:
    return transport_to(stub.url)


USES: dict[str, Callable[[BotoTransport], object]] = {
    "HeadObject": lambda t: t.head("bucket", "key"),
    "GetObject": lambda t: t.get("bucket", "key", 3, 9),
    "PutObject": lambda t: t.put("bucket", "key", b"data"),
    "DeleteObject": lambda t: t.delete("bucket", ["key"]),
    "ListObjectsV2": lambda t: list(t.list("bucket", "key")),
}


@pytest.mark.parametrize(
    ("code", "status", "expected", "advice"),
    [
        ("NoSuchBucket", 404, "BucketNotFoundError", "check its name and the endpoint"),
        ("NoSuchKey", 404, "ObjectNotFoundError", "does not exist"),
        ("AccessDenied", 403, "AccessDeniedError", "lack a permission"),
        ("InvalidAccessKeyId", 403, "CredentialsError", "does not accept the credentials"),
        ("SignatureDoesNotMatch", 403, "CredentialsError", "does not accept the credentials"),
        ("ExpiredToken", 400, "CredentialsError", "does not accept the credentials"),
        ("RequestTimeTooSkewed", 403, "CredentialsError", "does not accept the credentials"),
        ("PermanentRedirect", 400, "WrongRegionError", "pass the bucket's region"),
        ("PreconditionFailed", 412, "PreconditionFailedError", "not in the expected state"),
        ("ConditionalRequestConflict", 409, "PreconditionFailedError", "expected state"),
        ("InvalidRange", 416, "TruncatedObjectError", "shorter than the range"),
        ("SlowDown", 503, "ThrottledError", "fewer ranks or a prefix strategy"),
        ("TooManyRequests", 429, "ThrottledError", "fewer ranks or a prefix strategy"),
        ("InternalError", 500, "StorageError", "refused: InternalError: said the server"),
        ("Teapot", 418, "StorageError", "HTTP 418"),
    ],
)
@pytest.mark.parametrize("operation", ["GetObject", "PutObject", "ListObjectsV2"])
def test_an_error_code_becomes_a_class(
    stub: Stub,
    transport: BotoTransport,
    code: str,
    status: int,
    expected: str,
    advice: str,
    operation: str,
) -> None:
    if expected == "PreconditionFailedError" and operation == "GetObject":
        expected, advice = "ObjectChangedError", "load again"
    stub.answers(failure(code, status))
    with pytest.raises(StorageError) as caught:
        USES[operation](transport)
    error = caught.value
    assert type(error) is getattr(exceptions, expected)
    assert advice in str(error)
    assert (error.bucket, error.key, error.operation) == ("bucket", "key", operation)
    if expected != "ObjectChangedError":
        assert error.request_id == "REQ-123"
        assert "REQ-123" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.context) == (type(error), str(error), error.context)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, "AccessDeniedError"),
        (404, "ObjectNotFoundError"),
        (412, "PreconditionFailedError"),
        (301, "WrongRegionError"),
        (503, "ThrottledError"),
        (400, "StorageError"),
    ],
)
def test_a_status_alone_becomes_a_class(
    stub: Stub, transport: BotoTransport, status: int, expected: str
) -> None:
    """A HEAD has no body that could name a code."""
    stub.answers(Answer(status, headers={"x-amz-bucket-region": "eu-central-1"}))
    with pytest.raises(StorageError) as caught:
        transport.head("bucket", "key")
    assert type(caught.value) is getattr(exceptions, expected)
    assert ("region='eu-central-1'" in str(caught.value)) == (status == 301)


@pytest.mark.parametrize("operation", sorted({*USES} - {"HeadObject"}))
def test_a_redirect_names_the_region_to_pass(
    stub: Stub, transport: BotoTransport, operation: str
) -> None:
    where = {"x-amz-bucket-region": "eu-central-1"}
    stub.answers(failure("AuthorizationHeaderMalformed", 400, **where))
    with pytest.raises(StorageError) as caught:
        USES[operation](transport)
    assert type(caught.value) is exceptions.WrongRegionError
    assert "region='eu-central-1'" in str(caught.value)


def test_one_of_many_deletions_denied(stub: Stub, transport: BotoTransport) -> None:
    stub.answers(
        Answer(
            body=b"<DeleteResult><Error><Key>b</Key><Code>AccessDenied</Code>"
            b"<Message>no</Message></Error></DeleteResult>"
        )
    )
    with pytest.raises(exceptions.AccessDeniedError) as caught:
        transport.delete("bucket", ["a", "b"])
    assert (caught.value.key, caught.value.operation) == ("b", "DeleteObjects")


def test_attempts_are_counted(stub: Stub) -> None:
    stub.answers(failure("SlowDown", 503))
    with pytest.raises(exceptions.ThrottledError) as caught:
        transport_to(stub.url, max_attempts=2).head("bucket", "key")
    assert caught.value.attempts == 2 == len(stub.seen)


def test_no_credential_gets_out(stub: Stub, transport: BotoTransport) -> None:
    stub.answers(failure("SignatureDoesNotMatch", 403))
    with pytest.raises(exceptions.CredentialsError) as caught:
        transport.get("bucket", "key")
    shown = [str(caught.value), repr(caught.value), repr(transport), repr(transport.config)]
    shown += [repr(pickle.dumps(caught.value)), repr(caught.value.context)]
    for text in shown:
        assert SECRET not in text
        assert ACCESS_KEY not in text
    with pytest.raises(exceptions.ConfigurationError, match="credentials given by hand") as refused:
        pickle.dumps(transport)
    assert SECRET not in str(refused.value)


def test_without_credentials_it_says_where_to_put_them(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # A client of its own: the process may hold one with the keys it had.
    config = S3ClientConfig(endpoint_url=stub.url, max_attempts=1, read_timeout=7.5)
    with pytest.raises(exceptions.CredentialsError, match=r"AWS_ACCESS_KEY_ID.*unsigned=True"):
        BotoTransport("us-east-1", config).get("bucket", "key")
    assert stub.seen == []


def test_an_unknown_profile_is_a_configuration_error() -> None:
    config = S3ClientConfig(profile="absent", endpoint_url="http://127.0.0.1:1")
    with pytest.raises(exceptions.ConfigurationError, match="absent"):
        BotoTransport("us-east-1", config).head("bucket", "key")


# ---- the network


def test_connection_refused() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(exceptions.EndpointError, match="cannot be reached") as caught:
            transport_to(url).get("bucket", "key", 3, 9)
    assert caught.value.byte_range == (3, 9)
    assert isinstance(caught.value, ConnectionError)


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(exceptions.EndpointError, match=r"nonexistent\.invalid"):
        transport_to("http://nonexistent.invalid").head("bucket", "key")


def test_an_answer_that_does_not_come(stub: Stub) -> None:
    stub.answers(Answer(wait=3.0))
    transport = transport_to(stub.url, read_timeout=0.2)
    assert transport.client is not None, "making it takes time too"
    began = time.monotonic()
    with pytest.raises(exceptions.EndpointError, match="timeout"):
        transport.head("bucket", "key")
    assert time.monotonic() - began < 2.5


def test_a_connection_that_is_reset(stub: Stub, transport: BotoTransport) -> None:
    stub.answers(Answer(hang_up=True))
    with pytest.raises(exceptions.EndpointError):
        transport.get("bucket", "key")


# ---- answers that are not what was asked for


def test_the_range_asked_for_is_served(stub: Stub, transport: BotoTransport) -> None:
    stub.answers(part(5, 50))
    with transport.get("bucket", "key", 5, 50) as body:
        assert body.readall() == DATA[5:50]
        assert body.info.size == 200
    assert stub.seen[0][2]["Range"] == "bytes=5-49"


@pytest.mark.parametrize("span", [(5, 50), (0, 7), (199, 200), (150, None)])
def test_a_range_that_is_ignored_still_gives_the_right_bytes(
    stub: Stub, transport: BotoTransport, span: tuple[int, int | None]
) -> None:
    stub.answers(Answer(200, DATA, {"ETag": '"one"'}))
    with transport.get("bucket", "key", *span) as body:
        assert body.readall() == DATA[slice(*span)]
        assert body.info.size == 200


@pytest.mark.parametrize("served", [(6, 51), (5, 49), (100, 150), (6, 50)])
def test_another_range_is_refused(
    stub: Stub, transport: BotoTransport, served: tuple[int, int]
) -> None:
    stub.answers(part(*served))
    with pytest.raises(exceptions.WrongRangeError) as caught:
        transport.get("bucket", "key", 5, 50)
    assert caught.value.byte_range == (5, 50)


def test_a_range_and_a_length_that_contradict_are_refused(
    stub: Stub, transport: BotoTransport
) -> None:
    answer = part(5, 50)
    answer.body = answer.body[:-1]
    stub.answers(answer)
    with pytest.raises(exceptions.WrongRangeError):
        transport.get("bucket", "key", 5, 50)


def test_an_object_shorter_than_the_range(stub: Stub, transport: BotoTransport) -> None:
    stub.answers(part(5, 200))
    with pytest.raises(exceptions.TruncatedObjectError, match="only 200 bytes"):
        transport.get("bucket", "key", 5, 201)


@pytest.mark.parametrize("span", [(0, None), (5, 50)])
def test_a_short_body_is_an_error(
    stub: Stub, transport: BotoTransport, span: tuple[int, int | None]
) -> None:
    whole = Answer(200, DATA, {"ETag": '"one"'}) if span == (0, None) else part(5, 50)
    whole.length = len(whole.body)
    whole.body = whole.body[:-3]
    stub.answers(whole)
    with (
        transport.get("bucket", "key", *span) as body,
        pytest.raises((exceptions.TruncatedObjectError, exceptions.EndpointError)),
    ):
        body.readall()


def test_a_pin_is_checked_even_if_the_server_does_not(stub: Stub, transport: BotoTransport) -> None:
    stub.answers(part(5, 50))
    with pytest.raises(exceptions.ObjectChangedError):
        transport.get("bucket", "key", 5, 50, if_match='"other"')
    assert stub.seen[0][2]["If-Match"] == '"other"'


def crc32(data: bytes) -> dict[str, str]:
    value = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    return {"x-amz-checksum-crc32": value, "ETag": '"one"'}


def test_the_checksum_of_a_whole_object_is_compared(stub: Stub, transport: BotoTransport) -> None:
    stub.answers(Answer(200, DATA, crc32(DATA)))
    with transport.get("bucket", "key") as body:
        assert body.readall() == DATA
    damaged = bytes([DATA[0] ^ 1]) + DATA[1:]
    stub.answers(Answer(200, damaged, crc32(DATA)))
    with transport.get("bucket", "key") as body, pytest.raises(exceptions.IntegrityError):
        # Not one byte more than there are: the comparison must not wait for a read at the end.
        body.readinto(bytearray(200))


def test_the_checksum_of_a_whole_object_is_not_that_of_a_range(
    stub: Stub, transport: BotoTransport
) -> None:
    answer = part(5, 50)
    answer.headers |= crc32(DATA)
    stub.answers(answer)
    with transport.get("bucket", "key", 5, 50) as body:
        assert body.readall() == DATA[5:50]


@pytest.mark.parametrize("condition", [{"if_none_match": True}, {"if_match": '"one"'}])
def test_a_server_without_conditions_stores_the_object(
    stub: Stub, transport: BotoTransport, condition: dict[str, Any]
) -> None:
    stub.answers(failure("NotImplemented", 501), Answer(200, headers={"ETag": '"two"'}))
    assert transport.put("bucket", "key", b"data", **condition).etag == '"two"'
    first, second = (headers for _, _, headers in stub.seen)
    assert {"If-Match", "If-None-Match"} & set(first)
    assert not {"If-Match", "If-None-Match"} & set(second)


def test_not_implemented_without_a_condition_is_an_error(
    stub: Stub, transport: BotoTransport
) -> None:
    stub.answers(failure("NotImplemented", 501))
    with pytest.raises(StorageError, match="NotImplemented"):
        transport.put("bucket", "key", b"data")
    assert len(stub.seen) == 1

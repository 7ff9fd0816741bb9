"""A server that redirects: nothing of ours goes to another host, and the error says so."""

from __future__ import annotations

import io
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
from botocore.awsrequest import AWSResponse
from support.canary import CUSTOMER_KEY
from support.tls import over_tls, trust

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import ConfigurationError, EndpointError, StorageError, WrongRegionError
from torch_s3dcp.testing import SECRET_MARK, TOKEN_MARK
from torch_s3dcp.transports import BotoTransport
from torch_s3dcp.transports.contract import CopiedRange

MIB = 2**20
STATUSES = (300, 301, 302, 303, 307, 308)
LARGE = bytes(6 * MIB)


class Server:
    """Answers requests as told, and notes them."""

    def __init__(self, answer: Callable[[str, str], tuple[int, dict[str, str], bytes]]) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.seen.append((self.command, self.path, dict(self.headers)))
                status, headers, body = answer(self.command, self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def other() -> Iterator[Server]:
    """Where the credentials must not go. It would serve everything."""
    with Server(lambda method, path: (200, {"ETag": '"one"'}, b"")) as server:
        yield server


def operation_of(method: str, path: str) -> str:
    """The S3 operation of a request."""
    query = path.partition("?")[2]
    if method == "POST" and "delete" not in query:
        return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    if method == "PUT" and "partNumber" in query:
        return "UploadPart"
    if method == "DELETE" and "uploadId" in query:
        return "AbortMultipartUpload"
    if method == "GET" and "list-type" in query:
        return "ListObjectsV2"
    names = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject"}
    return names.get(method, "DeleteObjects" if method == "POST" else "DeleteObject")


ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "CreateMultipartUpload": (
        200,
        {},
        b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
    ),
    "AbortMultipartUpload": (204, {}, b""),
    "HeadObject": (200, {"ETag": '"one"', "Content-Length": "10"}, b""),
}


def redirecting(operation: str, status: int, location: str, **headers: str) -> Server:
    """Redirects one operation, answers others as S3 does."""

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if operation_of(method, path) == operation:
            return status, {"Location": location + path, **headers}, b""
        return ANSWERS.get(operation_of(method, path), (200, {"ETag": '"one"'}, b""))

    return Server(answer)


def transport_to(url: str | None, **changes: Any) -> BotoTransport:
    token = TOKEN_MARK + "OfRedirects"
    settings = {
        "endpoint_url": url,
        "force_path_style": True,
        "max_attempts": 2,
        "credentials": S3Credentials("AKIAMADEUP", SECRET_MARK + "OfRedirects", token),
        **changes,
    }
    return BotoTransport("us-east-1", S3ClientConfig(**settings))


def upload(transport: BotoTransport) -> object:
    return transport.upload("bucket", "key", io.BytesIO(LARGE), expected_size=len(LARGE))


def compose(transport: BotoTransport) -> object:
    copied = [CopiedRange("bucket", "old", 0, 5 * MIB, '"one"', 0)]
    return transport.compose("bucket", "key", copied, io.BytesIO(b"more"), expected_size=4)


USES: dict[str, tuple[str, Callable[[BotoTransport], object]]] = {
    "head": ("HeadObject", lambda t: t.head("bucket", "key")),
    "whole": ("GetObject", lambda t: t.get("bucket", "key")),
    "range": ("GetObject", lambda t: t.get("bucket", "key", 3, 9)),
    "signed range": ("GetObject", lambda t: t.get("bucket", "key", 3, 9, if_match='"one"')),
    "put": ("PutObject", lambda t: t.put("bucket", "key", b"data")),
    "small upload": (
        "PutObject",
        lambda t: t.upload("bucket", "key", io.BytesIO(b"data"), expected_size=4),
    ),
    "create": ("CreateMultipartUpload", upload),
    "part": ("UploadPart", upload),
    "copied part": ("UploadPart", compose),
    "complete": ("CompleteMultipartUpload", upload),
    "list": ("ListObjectsV2", lambda t: list(t.list("bucket", "key"))),
    "delete": ("DeleteObject", lambda t: t.delete("bucket", ["key"])),
    "delete many": ("DeleteObjects", lambda t: t.delete("bucket", ["a", "b"])),
    "copy": ("PutObject", lambda t: t.copy("bucket", "a", "bucket", "b")),
}


#: Uses whose HTTP exchange is this package's.
TAKEN_OVER = ("whole", "range", "signed range", "small upload", "part")


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("use", USES)
def test_a_redirect_is_not_followed(use: str, status: int, other: Server) -> None:
    operation, act = USES[use]
    with redirecting(operation, status, other.url) as server:
        transport = transport_to(server.url, part_size=5 * MIB)
        with pytest.raises(StorageError) as caught:
            act(transport)
        assert operation in {operation_of(method, path) for method, path, _ in server.seen}
    assert other.seen == []
    assert (caught.value.bucket, caught.value.operation) != (None, None)
    if isinstance(caught.value, EndpointError):
        # urllib3 stumbles over a 303; botocore takes that for a connection that broke.
        assert (status, use in TAKEN_OVER) == (303, False)
        return
    assert type(caught.value) is StorageError
    assert f"redirects to {other.url} (HTTP {status})" in str(caught.value)
    assert "check endpoint_url" in str(caught.value)


def test_the_login_in_a_redirect_is_not_shown(other: Server) -> None:
    place = other.url.replace("http://", "http://user:pass-word@")
    with redirecting("HeadObject", 302, place) as server, pytest.raises(StorageError) as caught:
        transport_to(server.url).head("bucket", "key")
    assert f"redirects to {other.url} " in str(caught.value)
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("use", ["whole", "signed range", "head", "small upload"])
def test_https_is_not_left_for_http(
    use: str,
    other: Server,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not with a customer's key either."""
    trust(authority, tmp_path, monkeypatch)
    operation, act = USES[use]
    for key in (None, CUSTOMER_KEY):
        with (
            redirecting(operation, 307, other.url) as server,
            over_tls(server.url, authority) as secure,
            pytest.raises(StorageError, match="redirects to http://"),
        ):
            act(transport_to(secure, sse_customer_key=key))
    assert other.seen == []


@pytest.mark.parametrize("use", ["head", "whole", "signed range", "put", "list"])
def test_a_region_that_the_server_names_stays_on_the_endpoint(use: str, other: Server) -> None:
    """botocore signs for that region and asks once more, at the endpoint that was given."""
    operation, act = USES[use]
    named = {"x-amz-bucket-region": "eu-central-1"}
    with redirecting(operation, 301, other.url, **named) as server:
        with pytest.raises(WrongRegionError, match="region='eu-central-1'"):
            act(transport_to(server.url))
        signed = [headers.get("Authorization", "") for _, _, headers in server.seen]
    assert any("/eu-central-1/s3/" in header for header in signed)
    assert other.seen == []


@pytest.mark.parametrize("use", USES)
def test_a_server_that_redirects_everything_is_soon_given_up(use: str, other: Server) -> None:
    """botocore alone would ask HeadBucket for the region, and HeadBucket again for that."""

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        return 302, {"Location": other.url + path}, b""

    with Server(answer) as server:
        with pytest.raises(StorageError, match=f"redirects to {other.url}"):
            USES[use][1](transport_to(server.url))
        assert len(server.seen) <= 4
    assert other.seen == []


class Nothing(io.BytesIO):
    """A body without bytes, as botocore reads it."""

    def stream(self) -> Iterator[bytes]:
        yield from ()


def asked_of_aws(region: str) -> list[str]:
    """Addresses that a HEAD goes to when AWS says that the bucket is in another region."""
    asked: list[str] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        asked.append(request.url)
        raw: Any = Nothing()
        headers: Any = {"x-amz-bucket-region": region, "Location": "http://127.0.0.1:1/"}
        return AWSResponse(request.url, 301, headers, raw)

    # With a session of the user's own botocore sends, and an answer given here keeps it from that.
    own = boto3.Session("AKIAMADEUP", SECRET_MARK + "OfRedirects")
    transport = transport_to(None, force_path_style=False, credentials=None, session=own)
    transport.client.meta.events.register_first("before-send.s3.HeadObject", answer)
    try:
        with pytest.raises((WrongRegionError, ConfigurationError)):
            # botocore keeps the region of a bucket.
            transport.head(f"bucket-{secrets.token_hex(4)}", "key")
    finally:
        transport.client.meta.events.unregister("before-send.s3.HeadObject", answer)
    return asked


def test_on_aws_another_region_is_found_by_the_endpoint_rules() -> None:
    first, second = asked_of_aws("eu-central-1")
    assert re.fullmatch(r"https://bucket-\w+\.s3\.amazonaws\.com/key", first)
    assert re.fullmatch(r"https://bucket-\w+\.s3\.eu-central-1\.amazonaws\.com/key", second)


@pytest.mark.parametrize("region", ["evil.example.com/", "x@evil.example.com", "a#b", "a.b", "é"])
def test_what_is_no_region_leads_nowhere(region: str) -> None:
    (address,) = asked_of_aws(region)
    assert re.fullmatch(r"https://bucket-\w+\.s3\.amazonaws\.com/key", address)


def test_a_proxy_sees_no_signed_url(other: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore sends through the proxy that the environment names, as it always does."""
    with redirecting("GetObject", 200, "") as server:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("http_proxy", other.url)
        transport = transport_to(server.url.replace("127.0.0.1", "localhost"), read_timeout=7.25)
        with pytest.raises(StorageError):
            transport.get("bucket", "key", 3, 9, if_match='"one"')
    assert server.seen == []
    assert [path.partition("?")[2] for _, path, _ in other.seen] == [""]
    assert SECRET_MARK not in str(other.seen)

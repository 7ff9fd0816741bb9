"""Requests over connections of our own, through botocore's public API.

botocore's own body copies: urllib3 reads into a block, then the block is copied to where it
was wanted. ``http.client`` can receive into any buffer. And its connections wait for as long as
their timeout says, however little they bring. So

* a handler of botocore's event ``before-send.s3`` makes the HTTP exchange itself and hands
  botocore the answer; signing, endpoints, credentials and redirects stay botocore's. Bodies to
  send are bytes, or several blocks of memory, which botocore's own sender would read in pieces of
  16 KiB; what comes from a file is left to it.
* further ranges of one object go to a URL that botocore signed once. That spares the greater
  part of a request's CPU time. Whatever is not the plain answer that was hoped for is asked
  again in the first way, and what comes of it counts.

Where a proxy is in the way both step aside. Measured in ``docs/design/transport.md``.
"""

from __future__ import annotations

import http.client
import logging
import math
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)

from ..exceptions import EndpointError
from .blocks import Blocks
from .connections import Answer, ConnectFailed, Connections
from .failures import kind_of, kind_of_status
from .patience import QUICK, WORKING
from .retries import Kind

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client as Boto3S3Client

_log = logging.getLogger(__name__)

# A signed URL is good for this long, and used for half of it. botocore renews temporary
# credentials when they have fewer minutes left than this.
_SIGNED_FOR = 600
_USED_FOR = 300
_MOST_URLS = 10_000
# Answers that may be others next time.
_PASSING = frozenset({404, 408, 412, 416, 429, 500, 502, 503, 504})
# After so many in a row of these the way is left alone for a while, in seconds.
_MOST_FAILURES = 3
_LEFT_ALONE = 60
# Seconds to wait at first for an answer to what may be asked again without harm. All others, such
# as the completion of an upload, may take the server as long as ``read_timeout``.
_PATIENCE = {
    "GetObject": QUICK,
    "HeadObject": QUICK,
    "ListObjectsV2": QUICK,
    "UploadPart": WORKING,
    "PutObject": WORKING,
    "DeleteObject": WORKING,
    "DeleteObjects": WORKING,
    "AbortMultipartUpload": WORKING,
}
_CONDITIONS = frozenset({"if-match", "if-none-match"})
_ERROR_BODY = 64 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/\d+\Z")


class AskAgain(Exception):
    """A signed URL brought no answer this time; ask another way.

    ``kind`` says what failed, with ``error``; None: only this way.
    """

    def __init__(self, kind: Kind | None, error: Exception) -> None:
        super().__init__(kind)
        self.kind = kind
        self.error = error


@dataclass
class BotocoreExchange:
    """Makes the HTTP exchange of a client's requests."""

    connections: Connections

    def register(self, client: Boto3S3Client) -> None:
        """Take over requests of a client."""
        # The stubs say that handlers return nothing; for these events the answer counts.
        handler: Any = self.exchange
        client.meta.events.register("before-send.s3", handler)
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.register(f"before-sign.s3.{operation}", _unsigned_blocks)

    def exchange(
        self, request: AWSPreparedRequest, event_name: str = "", **_: Any
    ) -> AWSResponse | None:
        """Handler of the event; None lets botocore send the request itself.

        Raises:
            HTTPClientError: As botocore's own sender would.
        """
        body: Any = request.body or None
        if isinstance(body, (bytes, bytearray)):
            body = [memoryview(body)]
        elif body is not None and not isinstance(body, Blocks):
            return None
        operation = event_name.rpartition(".")[2]
        headers = {name: _text(value) for name, value in request.headers.items()}
        # A body that is refused is cut short: nobody needs to wait for leave to send it.
        headers.pop("Expect", None)
        conditional = body is not None and any(name.lower() in _CONDITIONS for name in headers)
        patience = None if conditional else _PATIENCE.get(operation)
        try:
            answer = self.connections.send(
                request.method, request.url, headers, body, patience=patience
            )
            if answer is None:
                return None
            fields: Any = dict(answer.headers.items())
            response = AWSResponse(request.url, answer.status, fields, answer.body)
            if operation != "GetObject" or answer.status >= http.client.MULTIPLE_CHOICES:
                # Read here, as botocore does: where this breaks, the request failed.
                len(response.content)
        except (OSError, http.client.HTTPException) as error:
            raise _for_botocore(error, request.url.partition("?")[0]) from error
        return response


def _unsigned_blocks(request: Any, **_: Any) -> None:
    """Leave bodies of blocks out of the signature, unless the user's settings say otherwise.

    They carry a checksum. To hash them with SHA-256 too costs more CPU time than all the rest.
    """
    config = request.context.get("client_config")
    s3 = (config.s3 if config is not None else None) or {}
    checked = any(name.lower().startswith("x-amz-checksum-") for name in request.headers)
    if isinstance(request.data, Blocks) and checked and "payload_signing_enabled" not in s3:
        unsigned: Any = {**s3, "payload_signing_enabled": False}
        request.context["client_config"] = (config or Config()).merge(Config(s3=unsigned))


@dataclass
class SignedRanges:
    """Ranges of objects by URLs that were signed before."""

    client: Boto3S3Client
    connections: Connections
    agent: str
    _urls: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict, repr=False)
    _failures: dict[str, int] = field(default_factory=dict)
    _alone_until: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # Handlers may answer or change the context; the stubs know nothing of that.
        newer: Any = _newer_signature
        regional: Any = _regional_address
        self.client.meta.events.register_first("choose-signer.s3.GetObject", newer)
        self.client.meta.events.register("provide-client-params.s3.GetObject", regional)

    def signed_by(self, client: Boto3S3Client) -> SignedRanges:
        """The same with addresses that another client signs."""
        return SignedRanges(client, self.connections, self.agent)

    def get(self, bucket: str, key: str, start: int, end: int, etag: str) -> Answer | None:
        """Bytes ``[start, end)`` of a version of an object.

        Returns:
            An answer of exactly these bytes of that version, or None where this is not to be
            had; ask in the ordinary way.

        Raises:
            AskAgain: Not this time; ask in the ordinary way.
        """
        if time.monotonic() < self._alone_until.get(bucket, 0.0):
            return None
        headers = {
            "Range": f"bytes={start}-{end - 1}",
            "If-Match": etag,
            "User-Agent": self.agent.encode("ascii", "replace").decode(),
            "Accept-Encoding": "identity",
        }
        try:
            answer = self.connections.send("GET", self._url(bucket, key), headers)
        except (OSError, http.client.HTTPException) as error:
            # Not the address, nor a text that may cite it: who has it can read the object.
            name = type(error).__name__
            _log.debug("a signed URL for s3://%s/%s brought %s", bucket, key, name)
            self._failed(bucket)
            failed = _for_botocore(error, "")
            raise AskAgain(kind_of(failed), failed) from error
        if answer is None:
            return None
        if _is_exactly(answer, start, end, etag):
            self._failures.pop(bucket, None)
            return answer
        _drain(answer)
        if answer.status not in _PASSING:
            _log.debug("%s serves no ranges by signed URL: HTTP %d", bucket, answer.status)
            self._alone_until[bucket] = math.inf
            return None
        self._failed(bucket)
        refused = EndpointError(f"the server answered HTTP {answer.status}")
        raise AskAgain(kind_of_status(answer.status), refused)

    def _failed(self, bucket: str) -> None:
        with self._lock:
            self._failures[bucket] = self._failures.get(bucket, 0) + 1
            if self._failures[bucket] >= _MOST_FAILURES:
                _log.debug("%s: signed URLs are left alone for %d s", bucket, _LEFT_ALONE)
                self._alone_until[bucket] = time.monotonic() + _LEFT_ALONE
                self._failures[bucket] = 0

    def _url(self, bucket: str, key: str) -> str:
        now = time.monotonic()
        with self._lock:
            signed, url = self._urls.get((bucket, key), (0.0, ""))
        if url and now - signed < _USED_FOR:
            return url
        params = {"Bucket": bucket, "Key": key}
        url = self.client.generate_presigned_url("get_object", Params=params, ExpiresIn=_SIGNED_FOR)
        with self._lock:
            if len(self._urls) >= _MOST_URLS:
                self._urls.clear()
            self._urls[bucket, key] = (now, url)
        return url


def _is_exactly(answer: Answer, start: int, end: int, etag: str) -> bool:
    """Whether these are the bytes of the version that was asked for, and nothing else."""
    headers = answer.headers
    served = _RANGE.match(headers.get("Content-Range", ""))
    return (
        answer.status == http.client.PARTIAL_CONTENT
        and headers.get("ETag") == etag
        and headers.get("Content-Length") == str(end - start)
        and served is not None
        and (int(served[1]), int(served[2]) + 1) == (start, end)
    )


def _regional_address(context: dict[str, Any], **_: Any) -> None:
    """For URLs botocore would leave the region out of the bucket's host name."""
    if context.get("is_presign_request"):
        context["use_global_endpoint"] = False


def _newer_signature(signature_version: Any, **_: Any) -> Any:
    """For URLs botocore would fall back to a signature that new buckets refuse."""
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None


def _drain(answer: Answer) -> None:
    """Read a short answer to its end, so that its connection serves again."""
    try:
        if int(answer.headers.get("Content-Length", _ERROR_BODY + 1)) <= _ERROR_BODY:
            answer.body.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        _log.debug("reading an error's text: %r", error)
    finally:
        answer.body.close()


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _for_botocore(error: Exception, url: str) -> Exception:
    if isinstance(error, ConnectFailed):
        cause = error.__cause__
        if isinstance(cause, TimeoutError):
            return ConnectTimeoutError(endpoint_url=url, error=cause)
        if isinstance(cause, ssl.SSLError):
            return SSLError(endpoint_url=url, error=cause)
        return EndpointConnectionError(endpoint_url=url, error=cause)
    if isinstance(error, TimeoutError):
        return ReadTimeoutError(endpoint_url=url, error=error)
    if isinstance(error, ssl.SSLError):
        return SSLError(endpoint_url=url, error=error)
    return ConnectionClosedError(endpoint_url=url, request=None, error=error)

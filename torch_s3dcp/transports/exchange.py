"""Requests over connections of our own, through botocore's public API.

botocore's own body copies: urllib3 reads into a block, then the block is copied to where it
was wanted. ``http.client`` can receive into any buffer. So

* a handler of botocore's event ``before-send.s3.GetObject`` makes the HTTP exchange of GETs
  itself and hands botocore the answer; signing, endpoints, credentials and retries stay
  botocore's. PUTs whose body is several blocks of memory go the same way: botocore's own sender
  would read them in pieces of 16 KiB.
* further ranges of one object go to a URL that botocore signed once. That spares the greater
  part of a request's CPU time. Whatever is not the plain answer that was hoped for is asked
  again in the first way, and what comes of it counts.

Where a proxy is in the way both step aside. Measured in ``docs/design/transport.md``.
"""

from __future__ import annotations

import http.client
import logging
import math
import random
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

from .blocks import Blocks
from .connections import Answer, ConnectFailed, Connections

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
# A server that asks to slow down is given up to so many seconds before it is asked again.
_PAUSE = 0.5
_ERROR_BODY = 64 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/\d+\Z")


class AskAgain(Exception):
    """A signed URL brought no answer this time. Not the caller's business: ask another way."""


@dataclass
class BotocoreExchange:
    """Makes the HTTP exchange of a client's GETs, and of its PUTs of :class:`Blocks`."""

    connections: Connections

    def register(self, client: Boto3S3Client) -> None:
        """Take over requests of a client."""
        # The stubs say that handlers return nothing; for these events the answer counts.
        handler: Any = self.exchange
        for operation in ("GetObject", "PutObject", "UploadPart"):
            client.meta.events.register(f"before-send.s3.{operation}", handler)
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.register(f"before-sign.s3.{operation}", _unsigned_blocks)

    def exchange(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
        """Handler of the event; None lets botocore send the request itself.

        Raises:
            HTTPClientError: As botocore's own sender would, so that its retries apply.
        """
        body: Any = request.body or None
        if body is not None and not isinstance(body, Blocks):
            return None
        headers = {name: _text(value) for name, value in request.headers.items()}
        # A body that is refused is cut short: nobody needs to wait for leave to send it.
        headers.pop("Expect", None)
        try:
            answer = self.connections.send(request.method, request.url, headers, body)
            if answer is None:
                return None
            fields: Any = dict(answer.headers.items())
            response = AWSResponse(request.url, answer.status, fields, answer.body)
            if body is not None or answer.status >= http.client.MULTIPLE_CHOICES:
                # Read here, as botocore does, so that it tries again where this breaks.
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
            raise AskAgain from error
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
        if answer.status in (429, 503):
            time.sleep(random.uniform(0, _PAUSE))
        raise AskAgain

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

"""Requests over connections of our own, through botocore's public API.

botocore's own body copies: urllib3 reads into a block, then the block is copied to where it
was wanted. ``http.client`` can receive into any buffer. And its connections wait for as long as
their timeout says, however little they bring. So

* a handler of botocore's event ``before-send.s3`` makes the HTTP exchange itself and hands
  botocore the answer; signing, endpoints, credentials and redirects stay botocore's. Bodies to
  send are bytes, or several blocks of memory, which botocore's own sender would read in pieces of
  16 KiB; what comes from a file is left to it.
* further ranges of one object don't need botocore at all: see ``signed.py``.

Where a proxy is in the way both step aside. Measured in ``docs/design/transport.md``.
"""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
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
from .connections import ConnectFailed, Connections
from .effort import halting
from .patience import QUICK, WORKING

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client as Boto3S3Client

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
# What a halt cuts short. Of all others it would not be known whether the server acts on them yet,
# and nothing that is cut may come to lie in the bucket after the clean-up.
_CUT = frozenset({"GetObject", "HeadObject", "ListObjectsV2", "UploadPart", "UploadPartCopy"})
_CONDITIONS = frozenset({"if-match", "if-none-match"})


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
        cut = operation in _CUT
        try:
            answer = self.connections.send(
                request.method, request.url, headers, body, patience=patience, cut=cut
            )
            if answer is None:
                return None
            fields: Any = dict(answer.headers.items())
            response = AWSResponse(request.url, answer.status, fields, answer.body)
            if operation != "GetObject" or answer.status >= http.client.MULTIPLE_CHOICES:
                # Read here, as botocore does: where this breaks, the request failed.
                with halting(answer.body.wake if cut else None):
                    len(response.content)
        except (OSError, http.client.HTTPException) as error:
            raise for_botocore(error, request.url.partition("?")[0]) from error
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


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def for_botocore(error: Exception, url: str) -> Exception:
    """An error of a connection as botocore's own sender would raise it."""
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

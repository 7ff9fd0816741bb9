"""Further ranges of an object by a URL that botocore signed once.

That spares the greater part of a request's CPU time. Whatever is not the plain answer that was
hoped for is asked again in the ordinary way, and what comes of it counts. Where a proxy is in the
way this steps aside.
"""

from __future__ import annotations

import http.client
import logging
import math
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..exceptions import EndpointError
from .connections import Answer, Connections
from .effort import halting
from .exchange import for_botocore
from .failures import kind_of, kind_of_code, kind_of_status
from .retries import Kind

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as Boto3S3Client

_log = logging.getLogger(__name__)

# A signed URL is good for this long, and used for half of it. botocore renews temporary
# credentials when they have fewer minutes left than this.
_SIGNED_FOR = 600
_USED_FOR = 300
_MOST_URLS = 10_000
# What says that a server, or a policy, has no use for signed URLs. Any other odd answer may be
# another one next time. 400 says so by one of these codes.
_NOT_SO = frozenset({301, 308, 401, 403, 405, 501})
_NOT_SIGNED_SO = frozenset(
    {
        "AccessDenied",
        "AuthorizationHeaderMalformed",
        "AuthorizationQueryParametersError",
        "InvalidArgument",
        "InvalidRequest",
        "NotImplemented",
        "SignatureDoesNotMatch",
        "UnsupportedSignature",
    }
)
# After so many in a row of these the way is left alone for a while, in seconds.
_MOST_FAILURES = 3
_LEFT_ALONE = 60
_ERROR_BODY = 64 * 1024
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]+)\s*</Code>")
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
            failed = for_botocore(error, "")
            raise AskAgain(kind_of(failed), failed) from error
        if answer is None:
            return None
        if _is_exactly(answer, start, end, etag):
            self._failures.pop(bucket, None)
            return answer
        code = _code_of(_drain(answer))
        kind = kind_of_code(code) or kind_of_status(answer.status)
        if kind is None and _is_lasting(answer.status, code):
            _log.debug("%s serves no ranges by signed URL: HTTP %d %s", bucket, answer.status, code)
            self._alone_until[bucket] = math.inf
            return None
        self._failed(bucket)
        if kind is Kind.EXPIRED:
            # The URL is: the ordinary way signs anew, and has credentials renewed if need be.
            kind = None
            with self._lock:
                self._urls.pop((bucket, key), None)
        refused = EndpointError(f"the server answered HTTP {answer.status}")
        raise AskAgain(kind, refused)

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


def _is_lasting(status: int, code: str) -> bool:
    """Whether an answer means that there will be none but this to signed URLs."""
    return status in _NOT_SO or (status == http.client.BAD_REQUEST and code in _NOT_SIGNED_SO)


def _code_of(text: bytes) -> str:
    """The code in the text of an error; empty where there is none."""
    found = _CODE.search(text)
    return found[1].decode() if found else ""


def _drain(answer: Answer) -> bytes:
    """Read a short answer to its end, so that its connection serves again; an error's text."""
    try:
        if int(answer.headers.get("Content-Length", _ERROR_BODY + 1)) <= _ERROR_BODY:
            with halting(answer.body.wake):
                text = answer.body.read()
            return text if answer.status >= http.client.MULTIPLE_CHOICES else b""
    except (OSError, ValueError, http.client.HTTPException) as error:
        _log.debug("reading an error's text: %r", error)
    finally:
        answer.body.close()
    return b""

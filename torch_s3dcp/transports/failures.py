"""Which kind of failure an error of botocore, or of this package, is."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import urllib3.exceptions
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from ..exceptions import EndpointError, S3DCPError, TruncatedObjectError, WrongRangeError
from .errors import code_of
from .retries import Kind

_BY_CODE = {
    **dict.fromkeys(
        (
            "SlowDown",
            "ServiceUnavailable",
            "Throttling",
            "ThrottlingException",
            "ThrottledException",
            "RequestThrottled",
            "RequestThrottledException",
            "RequestLimitExceeded",
            "TooManyRequests",
            "TooManyRequestsException",
            "BandwidthLimitExceeded",
        ),
        Kind.THROTTLED,
    ),
    **dict.fromkeys(("InternalError", "InternalServerError"), Kind.SERVER),
    **dict.fromkeys(("RequestTimeout", "RequestTimeoutException", "IncompleteBody"), Kind.BROKEN),
    **dict.fromkeys(
        (
            "BadDigest",
            "InvalidDigest",
            "XAmzContentChecksumMismatch",
            "XAmzContentSHA256Mismatch",
            "MalformedXML",
        ),
        Kind.DAMAGED,
    ),
    **dict.fromkeys(("ConditionalRequestConflict", "OperationAborted"), Kind.CONFLICT),
    **dict.fromkeys(
        # "400" alone: the answer to a HEAD has no text.
        ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "400"),
        Kind.EXPIRED,
    ),
}
_BY_STATUS = {
    408: Kind.BROKEN,
    429: Kind.THROTTLED,
    500: Kind.SERVER,
    502: Kind.SERVER,
    503: Kind.THROTTLED,
    504: Kind.SERVER,
}
_NOT_CONNECTED = (
    boto.ConnectTimeoutError,
    boto.EndpointConnectionError,
    boto.ProxyConnectionError,
)
_BROKEN = (
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TruncatedObjectError,
    WrongRangeError,
)
# OpenSSL's words for what no new connection mends.
_LASTING = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL")


def kind_of(error: BaseException) -> Kind | None:
    """The kind of a failure; None: there is no use in trying again."""
    if isinstance(error, boto.ClientError):
        return kind_of_code(code_of(error)) or kind_of_status(_status(error))
    if isinstance(error, (boto.SSLError, ssl.SSLError)):
        return None if _lasts(error) else Kind.UNREACHABLE
    if isinstance(error, _NOT_CONNECTED):
        return Kind.UNREACHABLE
    if isinstance(error, S3DCPError) and not isinstance(
        error, (EndpointError, TruncatedObjectError, WrongRangeError)
    ):
        return None
    if any(isinstance(one, (TimeoutError, boto.ReadTimeoutError)) for one in _chain(error)):
        return Kind.STALLED
    return Kind.BROKEN if isinstance(error, _BROKEN) else None


def kind_of_code(code: str) -> Kind | None:
    """The kind of what a server gives this word for."""
    return _BY_CODE.get(code)


def kind_of_status(status: int) -> Kind | None:
    """The kind of an answer that says no more than its status."""
    return _BY_STATUS.get(status)


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _lasts(error: BaseException) -> bool:
    return any(
        isinstance(one, ssl.SSLCertVerificationError) or any(word in str(one) for word in _LASTING)
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__

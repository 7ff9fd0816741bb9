"""What went through a proxy: every request, and the mutations in the order of the server."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .fault_rules import S3Request
from .faults import WireFault

_SECRET_HEADERS = re.compile(
    r"authorization|cookie|x-amz-security-token|.*customer-key(-md5)?$", re.IGNORECASE
)
_SECRET_QUERY = re.compile(
    r"(?<=[?&])(X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId)=[^&]*",
    re.IGNORECASE,
)
_CONDITIONS = ("if-", "x-amz-copy-source-if-")
_MUTATIONS = frozenset(
    {
        *("PutObject", "CopyObject", "DeleteObject", "DeleteObjects"),
        *("CreateMultipartUpload", "UploadPart", "UploadPartCopy"),
        *("CompleteMultipartUpload", "AbortMultipartUpload"),
        *("PutObjectTagging", "DeleteObjectTagging"),
    }
)
_LATE_ERROR = re.compile(rb"\s*(<\?xml[^>]*>)?\s*<Error[ >]")
_UPLOAD_ID = re.compile(rb"<UploadId>([^<]+)</UploadId>")


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers less those that hold credentials, keys or signatures."""
    return {name: text for name, text in headers.items() if not _SECRET_HEADERS.match(name)}


def hide_signature(target: str) -> str:
    """A target whose query shows no signature."""
    return _SECRET_QUERY.sub(r"\1=hidden", target)


@dataclass
class LoggedRequest:
    """One request and what came of it; times are those of ``time.monotonic()``.

    Attributes:
        number: Counted from 0, in the order of arrival.
        headers: Names in lower case, none with a secret.
        fault: What struck it.
        flipped: The bit that was flipped.
        status: What the client was told; None if it got no status.
        server_status: What the server answered; None if it saw nothing, or did not answer.
        sent: Bytes of the request's body that went to the server.
        received: Bytes of the answer's body that went to the client.
        begin, end: From its arrival to its end; ``end`` is None while it goes on.
        server_begin, server_end: While the server had it.
        server_order: Counts the answers of the server.
        body: The request's body as the server got it, if bodies of mutations are kept.
        problem: What went wrong beside the fault, such as a server that is gone.
    """

    number: int
    request: S3Request
    headers: dict[str, str] = field(repr=False)
    begin: float
    fault: WireFault | None = None
    flipped: int | None = None
    status: int | None = None
    server_status: int | None = None
    sent: int = 0
    received: int = 0
    end: float | None = None
    server_begin: float | None = None
    server_end: float | None = None
    server_order: int | None = None
    body: bytes | None = field(default=None, repr=False)
    problem: str | None = None
    upload_id: str | None = None
    failed_late: bool = False

    @property
    def operation(self) -> str:
        """S3's name of what was asked for."""
        return self.request.operation

    @property
    def key(self) -> str:
        """The object's key; empty for requests of a bucket."""
        return self.request.key

    @property
    def part(self) -> int | None:
        """Number of the part."""
        return self.request.part

    @property
    def mutates(self) -> bool:
        """Whether it changes a bucket."""
        return self.operation in _MUTATIONS

    @property
    def acted(self) -> bool:
        """Whether the server said that it did what was asked for."""
        told = self.server_status is not None and 200 <= self.server_status < 300
        return told and not self.failed_late

    def answered(self, status: int, answer: bytes, order: int) -> None:
        """Note what the server said; ``answer`` is the body, empty for a GET."""
        self.server_status = status
        self.server_end = time.monotonic()
        self.server_order = order
        found = _UPLOAD_ID.search(answer)
        self.upload_id = found[1].decode() if found else self.request.upload_id
        self.failed_late = _LATE_ERROR.match(answer) is not None


@dataclass(frozen=True)
class Mutation:
    """Something that a server did to a bucket; enough to do it to another one.

    ``begin`` and ``end``: while the server had it. Two whose times overlap were concurrent.
    ``conditions`` and ``headers`` have names in lower case; ``upload_id`` is the server's.
    """

    number: int
    operation: str
    bucket: str
    key: str
    upload_id: str | None
    part: int | None
    body: bytes = field(repr=False)
    conditions: Mapping[str, str]
    headers: Mapping[str, str]
    begin: float
    end: float

    def overlaps(self, other: Mutation) -> bool:
        """Whether the server had both at one time, so that either may have come first."""
        return self.begin < other.end and other.begin < self.end


class RequestLog:
    """All requests of a proxy; may be read while it runs.

    Args:
        keep_bodies: Keep the bodies of mutations.
    """

    def __init__(self, keep_bodies: bool = False) -> None:
        self.keep_bodies = keep_bodies
        self._entries: list[LoggedRequest] = []
        self._open = 0
        self._numbers = 0
        self._answers = 0
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[LoggedRequest]:
        return iter(self.entries())

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self, operation: str | None = None) -> list[LoggedRequest]:
        """All requests, or those of an operation, in the order of their arrival."""
        with self._changed:
            entries = list(self._entries)
        return [e for e in entries if operation is None or e.operation == operation]

    def clear(self) -> None:
        """Forget what was noted; the numbers go on."""
        with self._changed:
            self._entries.clear()

    def settle(self, timeout: float = 10.0) -> None:
        """Wait until no request is under way; a client may have its answer a moment before that.

        Raises:
            TimeoutError: One still is.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._open == 0, timeout):
                raise TimeoutError(f"{self._open} requests are still under way")

    def mutations(self) -> list[Mutation]:
        """What the server did, in the order in which it finished.

        Without ``keep_bodies`` the bodies are empty.
        """
        acted = [e for e in self.entries() if e.mutates and e.acted]
        return [_mutation(entry) for entry in sorted(acted, key=lambda e: e.server_order or 0)]

    def begin(self, request: S3Request, headers: Mapping[str, str]) -> LoggedRequest:
        """Note a request that has arrived."""
        with self._changed:
            entry = LoggedRequest(
                self._numbers, request, without_secrets(headers), time.monotonic()
            )
            self._numbers += 1
            self._open += 1
            self._entries.append(entry)
        return entry

    def finish(self, entry: LoggedRequest) -> None:
        """Note that a request is over."""
        with self._changed:
            entry.end = time.monotonic()
            self._open -= 1
            self._changed.notify_all()

    def answered(self, entry: LoggedRequest, status: int, answer: bytes = b"") -> None:
        """Note what the server said."""
        with self._changed:
            self._answers += 1
            entry.answered(status, answer, self._answers)


def _mutation(entry: LoggedRequest) -> Mutation:
    request = entry.request
    return Mutation(
        entry.number,
        request.operation,
        request.bucket,
        request.key,
        entry.upload_id,
        request.part,
        entry.body or b"",
        {name: text for name, text in entry.headers.items() if name.startswith(_CONDITIONS)},
        entry.headers,
        entry.server_begin or entry.begin,
        entry.server_end or entry.begin,
    )

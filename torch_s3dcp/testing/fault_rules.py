"""Which requests of S3 a fault strikes. No I/O happens here."""

from __future__ import annotations

import random
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..exceptions import ConfigurationError
from .faults import WireFault

# By method, what the path names, and the names in the query of which the first one decides.
_OPERATIONS: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("GET", "server"): (("", "ListBuckets"),),
    ("PUT", "bucket"): (("versioning", "PutBucketVersioning"), ("", "CreateBucket")),
    ("HEAD", "bucket"): (("", "HeadBucket"),),
    ("DELETE", "bucket"): (("", "DeleteBucket"),),
    ("POST", "bucket"): (("delete", "DeleteObjects"),),
    ("GET", "bucket"): (
        ("uploads", "ListMultipartUploads"),
        ("list-type", "ListObjectsV2"),
        ("versions", "ListObjectVersions"),
        ("location", "GetBucketLocation"),
        ("versioning", "GetBucketVersioning"),
        ("", "ListObjects"),
    ),
    ("GET", "object"): (
        ("uploadId", "ListParts"),
        ("tagging", "GetObjectTagging"),
        ("attributes", "GetObjectAttributes"),
        ("retention", "GetObjectRetention"),
        ("legal-hold", "GetObjectLegalHold"),
        ("", "GetObject"),
    ),
    ("HEAD", "object"): (("", "HeadObject"),),
    ("PUT", "object"): (
        ("partNumber", "UploadPart"),
        ("tagging", "PutObjectTagging"),
        ("retention", "PutObjectRetention"),
        ("legal-hold", "PutObjectLegalHold"),
        ("", "PutObject"),
    ),
    ("POST", "object"): (
        ("uploads", "CreateMultipartUpload"),
        ("uploadId", "CompleteMultipartUpload"),
        ("restore", "RestoreObject"),
    ),
    ("DELETE", "object"): (
        ("uploadId", "AbortMultipartUpload"),
        ("tagging", "DeleteObjectTagging"),
        ("", "DeleteObject"),
    ),
}
_COPIES = {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}
_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


@dataclass(frozen=True)
class S3Request:
    """One request, as rules see it.

    ``operation`` is S3's name, or the HTTP method where S3 has none. ``start`` and ``end`` are the
    range asked for, half open; ``end`` is None if it is open. ``size`` is that of its body.
    """

    operation: str
    bucket: str = ""
    key: str = ""
    part: int | None = None
    upload_id: str | None = None
    start: int | None = None
    end: int | None = None
    size: int = 0
    method: str = "GET"
    target: str = "/"

    def touches(self, start: int, end: int) -> bool:
        """Whether it asks for a byte of ``[start, end)``; without a range it asks for all."""
        return (self.start or 0) < end and (self.end is None or start < self.end)


def request_of(method: str, target: str, headers: Mapping[str, str]) -> S3Request:
    """What a request is about.

    Args:
        target: Path and query, path-style.
        headers: Names in lower case.
    """
    url = urllib.parse.urlsplit(target)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    # Without the first slash only: a key may begin with one.
    bucket, _, key = urllib.parse.unquote(url.path[1:]).partition("/")
    about = "object" if key else "bucket" if bucket else "server"
    choices = _OPERATIONS.get((method, about), ())
    operation = next((name for word, name in choices if not word or word in query), method)
    if "x-amz-copy-source" in headers:
        operation = _COPIES.get(operation, operation)
    asked = _RANGE.match(headers.get("range", ""))
    part = query.get("partNumber", "")
    return S3Request(
        operation,
        bucket,
        key,
        part=int(part) if part.isdecimal() else None,
        upload_id=query.get("uploadId"),
        start=int(asked[1]) if asked else None,
        end=int(asked[2]) + 1 if asked and asked[2] else None,
        size=int(headers.get("content-length", "0")),
        method=method,
        target=target,
    )


@dataclass(frozen=True)
class FaultRule:
    """A fault, and the requests that it strikes: those for which all conditions hold.

    Args:
        fault: What happens; or a function that chooses, and strikes nothing where it gives None.
        operation: S3's name, or several; any if empty.
        key: A glob (``*`` takes slashes too), or a function of the key; any if None.
        touches: The request asks for a byte of ``[a, b)``.
        skip: So many matching requests pass first.
        count: How many are struck; all if None.
        probability: With which a matching request is struck.

    Raises:
        ConfigurationError: A number is out of its range.
    """

    fault: WireFault | Callable[[S3Request], WireFault | None]
    operation: str | tuple[str, ...] = ()
    key: str | Callable[[str], bool] | None = None
    touches: tuple[int, int] | None = None
    skip: int = 0
    count: int | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigurationError(f"probability is {self.probability}, not within 0 and 1")
        if self.skip < 0 or (self.count is not None and self.count < 0):
            raise ConfigurationError("skip and count must not be negative")

    def matches(self, request: S3Request) -> bool:
        """Whether a request meets the conditions, without the counting ones."""
        wanted = (self.operation,) if isinstance(self.operation, str) else self.operation
        if wanted and request.operation not in wanted:
            return False
        if isinstance(self.key, str) and not fnmatchcase(request.key, self.key):
            return False
        if callable(self.key) and not self.key(request.key):
            return False
        return self.touches is None or request.touches(*self.touches)

    def choose(self, request: S3Request) -> WireFault | None:
        """The fault for a request that matches; None if none fits it."""
        fault = self.fault if isinstance(self.fault, WireFault) else self.fault(request)
        return fault if fault is not None and fault.fits(request) else None


@dataclass(frozen=True)
class Strike:
    """A fault that strikes a request; ``draw``, from [0, 1), chooses what it leaves open."""

    fault: WireFault
    draw: float

    def place(self, given: int | None, length: int) -> int:
        """The place that was given, or one of ``length`` by the draw."""
        return given if given is not None else int(self.draw * length)


@dataclass
class _Counted:
    rule: FaultRule
    seen: int = 0
    struck: int = 0


@dataclass
class RuleBook:
    """Rules in their order, and how often each has struck. Threads may share one.

    The same requests in the same order are struck in the same way with the same ``seed``.
    """

    seed: int = 0
    _rules: list[_Counted] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def add(self, rule: FaultRule) -> FaultRule:
        """Put a rule behind the others; returns it."""
        with self._lock:
            self._rules.append(_Counted(rule))
        return rule

    def remove(self, rule: FaultRule) -> None:
        """Drop a rule; nothing if it is gone already."""
        with self._lock:
            self._rules = [counted for counted in self._rules if counted.rule is not rule]

    def clear(self) -> None:
        """Drop all rules."""
        with self._lock:
            self._rules.clear()

    def decide(self, request: S3Request) -> Strike | None:
        """What becomes of a request: the first rule that strikes it decides."""
        with self._lock:
            for counted in self._rules:
                fault = self._strike(counted, request)
                if fault is not None:
                    counted.struck += 1
                    return Strike(fault, self._random.random())
        return None

    def _strike(self, counted: _Counted, request: S3Request) -> WireFault | None:
        rule = counted.rule
        if rule.count is not None and counted.struck >= rule.count:
            return None
        fault = rule.choose(request) if rule.matches(request) else None
        if fault is None:
            return None
        counted.seen += 1
        if counted.seen <= rule.skip:
            return None
        struck = rule.probability == 1 or self._random.random() < rule.probability
        return fault if struck else None

"""Answers of a proxy's own, and how a fault shapes those of the server. No I/O happens here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from xml.sax.saxutils import escape

from . import faults
from ._wire import Head
from .fault_rules import S3Request, Strike

_RANGE = re.compile(r"bytes (\d+)-(\d+)(/.*)$")
# So often a second a slow body moves on.
_TICKS = 20


@dataclass(frozen=True)
class Shape:
    """How the body of an answer is sent.

    ``flip`` is a bit; ``pause_at`` and ``stop`` count bytes; ``by`` are missing at the end; a
    slow body goes out in pieces of ``slice`` bytes, ``rate`` a second.
    """

    flip: int | None = None
    pause_at: int | None = None
    pause: float = 0.0
    stop: int | None = None
    reset: bool = False
    by: int = 0
    rate: float = 0.0
    slice: int = 0


def shape_of(strike: Strike, length: int) -> Shape:
    """What a fault does to a body of ``length`` bytes."""
    fault = strike.fault
    if isinstance(fault, faults.FlipBit) and fault.body == "answer" and length:
        return Shape(flip=strike.place(fault.bit, 8 * length) % (8 * length))
    if isinstance(fault, faults.Stall):
        return Shape(pause_at=strike.place(fault.after, length), pause=fault.seconds)
    if isinstance(fault, faults.Trickle):
        return Shape(rate=fault.rate, slice=max(1, int(fault.rate / _TICKS)))
    if isinstance(fault, faults.Truncate):
        return Shape(stop=min(length, strike.place(fault.after, length)))
    if isinstance(fault, faults.Reset) and fault.when == "body":
        return Shape(stop=min(length, strike.place(fault.after, length)), reset=True)
    if isinstance(fault, faults.Shorten) and length:
        return Shape(by=min(length, max(1, strike.place(fault.by, length))))
    return Shape()


def cut_short(head: Head, by: int) -> Head:
    """A head that says ``by`` bytes less."""
    changed = head.replace(content_length=str((head.length or 0) - by))
    found = _RANGE.match(head.get("content-range"))
    if found is None:
        return changed
    return changed.replace(content_range=f"bytes {found[1]}-{int(found[2]) - by}{found[3]}")


def as_if_asked(answer: Head, request: S3Request) -> Head:
    """A head that claims to be of the range that was asked for."""
    start, total = request.start or 0, answer.get("content-range").rpartition("/")[2]
    return answer.replace(content_range=f"bytes {start}-{start + (answer.length or 0) - 1}/{total}")


def error_answer(fault: faults.Reply, request: S3Request) -> bytes:
    """A whole answer with an error in S3's XML; without the XML if it is for a HEAD."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(fault.code)}</Code><Message>A fault of a test.</Message>"
        f"<Resource>/{escape(request.bucket)}/{escape(request.key)}</Resource>"
        "<RequestId>FAULTPROXY</RequestId></Error>"
    ).encode()
    try:
        phrase = HTTPStatus(fault.status).phrase
    except ValueError:
        phrase = "Unknown"
    headers = [
        ("Content-Type", "application/xml"),
        ("Content-Length", str(len(body))),
        ("x-amz-request-id", "FAULTPROXY"),
        *fault.headers,
    ]
    if fault.retry_after is not None:
        headers.append(("Retry-After", str(fault.retry_after)))
    head = Head(f"HTTP/1.1 {fault.status} {phrase}", headers).encode()
    return head if request.method == "HEAD" else head + body

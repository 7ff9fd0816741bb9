"""What a :class:`~torch_s3dcp.testing.FaultProxy` can do to a request: plain frozen values.

Places that are None are chosen by the proxy's seed. ``after`` counts bytes of the body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .fault_rules import S3Request


@dataclass(frozen=True)
class WireFault:
    """What becomes of one request."""

    def fits(self, request: S3Request) -> bool:
        """Whether it can happen to such a request; a rule passes over the others."""
        return True


@dataclass(frozen=True)
class _BodyFault(WireFault):
    def fits(self, request: S3Request) -> bool:
        return request.method != "HEAD"


@dataclass(frozen=True)
class Reply(WireFault):
    """An answer of the proxy's own, with S3's XML error as its body.

    Args:
        status: HTTP status. 200 with a ``code`` is what a Complete or a Copy that fails late sends.
        code: S3's error code, such as ``SlowDown``.
        retry_after: The header ``Retry-After``, in seconds.
        acted: The server acts on the request first; its answer is dropped.
        headers: More headers.
    """

    status: int
    code: str = "InternalError"
    retry_after: int | None = None
    acted: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Redirect(WireFault):
    """301, 302, 307 or 308; the server never sees the request.

    Args:
        location: A URL; ``{target}`` in it becomes path and query of the request.
    """

    location: str
    status: int = 307


@dataclass(frozen=True)
class Reset(WireFault):
    """The connection ends with RST.

    Args:
        when: ``request``: before the request's body is read; ``upload``: after some bytes of
            it, the server's connection is reset too; ``unseen``: when the request was read, the
            server never sees it; ``answer``: the server acts on it, the answer is lost; ``body``:
            after some bytes of the answer's body.
        after: For ``upload`` and ``body``.
    """

    when: Literal["request", "upload", "unseen", "answer", "body"] = "unseen"
    after: int | None = None

    def fits(self, request: S3Request) -> bool:
        if self.when == "upload":
            return request.size > 0
        return self.when != "body" or request.method != "HEAD"


@dataclass(frozen=True)
class Truncate(_BodyFault):
    """The connection ends with FIN after some bytes of the answer's body."""

    after: int | None = None


@dataclass(frozen=True)
class Shorten(_BodyFault):
    """An answer with fewer bytes; Content-Length and Content-Range agree with them.

    Args:
        by: How many are missing at the end; at most all of them.
    """

    by: int | None = None


@dataclass(frozen=True)
class FlipBit(WireFault):
    """Exactly one bit of a body arrives changed.

    Args:
        body: Which one.
        bit: Its place: bit ``bit % 8``, from the least significant one, of byte ``bit // 8``.
            The log has it as ``flipped``.
    """

    body: Literal["request", "answer"] = "answer"
    bit: int | None = None

    def fits(self, request: S3Request) -> bool:
        if self.body == "request":
            return request.size > 0
        return request.method != "HEAD"


@dataclass(frozen=True)
class _RangeFault(WireFault):
    def fits(self, request: S3Request) -> bool:
        return request.operation == "GetObject" and request.start is not None


@dataclass(frozen=True)
class WrongRange(_RangeFault):
    """Other bytes of the object, as many as were asked for. The proxy needs the server's keys.

    Where all bytes were asked for there are no others: the log then has no ``fault``.

    Args:
        shift: How far from what was asked for; kept within the object.
        lie: Content-Range is what was asked for, instead of that of the bytes.
    """

    shift: int = 4096
    lie: bool = False


@dataclass(frozen=True)
class IgnoreRange(_RangeFault):
    """200 and the whole object. The proxy needs the server's keys."""


@dataclass(frozen=True)
class BlackHole(WireFault):
    """Everything is taken and nothing is answered, until the client leaves."""


@dataclass(frozen=True)
class Delay(WireFault):
    """The server sees the request so many seconds later; not at all if the client has left."""

    seconds: float


@dataclass(frozen=True)
class Trickle(_BodyFault):
    """The answer's body comes at so many bytes per second."""

    rate: float = 20_000


@dataclass(frozen=True)
class Stall(_BodyFault):
    """The answer's body pauses for some seconds."""

    seconds: float
    after: int | None = None


@dataclass(frozen=True)
class Late(WireFault):
    """RST now; the server sees the request when :meth:`FaultProxy.release` is called."""


@dataclass(frozen=True)
class Garbage(WireFault):
    """Bytes instead of an answer, then FIN; the server never sees the request."""

    data: bytes = b"\x16\x03\x01 this is not HTTP\r\n\r\n"

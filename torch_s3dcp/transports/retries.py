"""What is tried again, how often, and after which pause: the one table. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Kinds of failures that may pass. Whatever is of none of them is raised at once."""

    THROTTLED = "told to slow down"
    SERVER = "the server failed"
    UNREACHABLE = "no connection"
    BROKEN = "the connection or the answer broke"
    STALLED = "too little progress"
    DAMAGED = "the body arrived damaged"
    CONFLICT = "a conflict that passes"
    EXPIRED = "credentials have expired"


@dataclass(frozen=True)
class Row:
    """What is done about one kind of failure.

    A pause is chosen between ``least`` of its ceiling and the ceiling, which is ``base`` seconds
    at first and doubles up to ``cap``.

    Args:
        what: What belongs to the kind, in words.
        base: Ceiling of the first pause, in seconds.
        cap: Ceiling of all pauses.
        least: Share of the ceiling that is paused at least: 0 is full jitter, 0.5 equal jitter.
        at_once: So many failures in a row are tried again without a pause.
        most: Tries of a request that fails in this way, at most; None: ``max_attempts``.
        besides: What is done besides.
    """

    what: str
    base: float = 0.0
    cap: float = 0.0
    least: float = 0.0
    at_once: int = 0
    most: int | None = None
    besides: str = ""


_FULL, _EQUAL = 0.0, 0.5

TABLE: dict[Kind, Row] = {
    Kind.THROTTLED: Row(
        "503, 429, `SlowDown`, `ServiceUnavailable` and their like",
        0.1,
        1.5,
        _FULL,
        besides="a load halves its requests in flight",
    ),
    Kind.SERVER: Row(
        "500, 502, 504, `InternalError`; 200 with an error as its body", 0.1, 1.5, _FULL
    ),
    Kind.UNREACHABLE: Row(
        "connection refused, no route, timeout of connecting, DNS, TLS that breaks off",
        0.25,
        5.0,
        _EQUAL,
    ),
    Kind.BROKEN: Row(
        "reset, hung up, truncated answer or body, other range than asked for, `RequestTimeout`",
        0.1,
        5.0,
        _EQUAL,
        at_once=1,
        besides="a body goes on at the next missing byte, and a new byte begins the count anew",
    ),
    Kind.STALLED: Row(
        "no answer, or too few bytes, for longer than the patience below",
        0.1,
        5.0,
        _EQUAL,
        at_once=1,
        besides="a new connection; the patience doubles",
    ),
    Kind.DAMAGED: Row(
        "`BadDigest`, `InvalidDigest`, `XAmzContentChecksumMismatch`, "
        "`XAmzContentSHA256Mismatch`, `MalformedXML`",
        at_once=1000,
        most=4,
    ),
    Kind.CONFLICT: Row(
        "`ConditionalRequestConflict`, `OperationAborted` (409)",
        0.1,
        1.5,
        _FULL,
        besides="with the same condition",
    ),
    Kind.EXPIRED: Row(
        "`ExpiredToken`, `ExpiredTokenException`, `TokenRefreshRequired`, `InvalidToken`; "
        "HEAD answered 400",
        at_once=1000,
        most=2,
        besides="credentials are looked for anew, once for all threads",
    ),
}

#: Bytes per second that a request must move on average, over all its tries, or it runs out of time.
#: Little, because all requests in flight share the link: 64 of them on one of 64 KiB/s get on.
LEAST_RATE = 1024


@dataclass(frozen=True)
class Limits:
    """How long a request is insisted on.

    Args:
        attempts: Tries in all, without a new byte in between.
        give_up_after: Seconds of work that a request may take, besides one second for each
            :data:`LEAST_RATE` bytes that it moves.
        pause_factor: Makes all pauses longer or shorter.
        kinds: What is tried again.
    """

    attempts: int = 10
    give_up_after: float = 120.0
    pause_factor: float = 1.0
    kinds: frozenset[Kind] = frozenset(Kind)

    def allowed(self, moved: int) -> float:
        """Seconds of work for a request that has moved so many bytes."""
        return self.give_up_after + moved / LEAST_RATE


def documented() -> list[str]:
    """The table as rows of the documentation."""
    return [
        f"| {kind.value} | {row.what} | {_at_once(row)} | {_pause(row)} | "
        f"{row.most or '`max_attempts`'} | {row.besides} |"
        for kind, row in TABLE.items()
    ]


def _at_once(row: Row) -> str:
    return "" if not row.at_once else "all" if not row.base else "the first"


def _pause(row: Row) -> str:
    if not row.base:
        return ""
    first = f"{row.least * row.base:g} to {row.base:g} s"
    return f"{first}, up to {row.least * row.cap:g} to {row.cap:g} s"


def pause(kind: Kind, failures: int, choose: Callable[[float, float], float]) -> float:
    """Seconds to wait before the next try.

    Args:
        failures: In a row, this one included.
        choose: A random number between two.
    """
    row = TABLE[kind]
    if failures <= row.at_once or not row.base:
        return 0.0
    doubled = min(failures - row.at_once - 1, 32)
    ceiling = min(row.cap, row.base * 2.0**doubled)
    return choose(ceiling * row.least, ceiling)

"""The server behind a proxy, and the connections to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ._signing import Keys
from ._wire import Wire
from .request_log import RequestLog


@dataclass
class Origin:
    """The server behind the proxy, and what all connections share.

    ``held`` are the requests that are late.
    """

    address: tuple[str, int]
    keys: Keys | None
    log: RequestLog
    held: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


class Link:
    """The connection to the server that belongs to one of a client; made again when it ended."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self._wire: Wire | None = None

    async def wire(self) -> Wire:
        """An open connection; raises OSError."""
        if self._wire is not None and self._wire.stale:
            self.drop()
        if self._wire is None:
            self._wire = await Wire.connect(self.origin.address)
        return self._wire

    def drop(self, *, reset: bool = False) -> None:
        """Close it; the next request opens another one."""
        if self._wire is not None:
            (self._wire.reset if reset else self._wire.close)()
        self._wire = None

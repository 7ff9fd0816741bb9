"""What tests of this package, and of packages built on it, share.

Local S3 servers (``servers``), suites for readers and transports of your own
(``reader_suite``, ``transport_suite``, ``compose_suite``), hypothesis strategies
(``strategies``), transports that count, delay and fail (``wrappers``), a proxy that stands in
front of a server and does what ``faults`` has (``fault_proxy``), and the words that the servers'
secrets begin with (``SECRET_MARK``, ``TOKEN_MARK``). The names below are imported when they are
asked for: the servers and the proxy need neither pytest nor hypothesis.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._server import SECRET_MARK, TOKEN_MARK
    from .compose_suite import ComposeSuite
    from .fault_proxy import FaultProxy
    from .fault_rules import FaultRule, RuleBook, S3Request
    from .reader_suite import ReaderSuite
    from .request_log import LoggedRequest, Mutation, RequestLog
    from .servers import MotoServer, RcloneServer, SeaweedServer
    from .strategies import blobs, item_ranges, object_with_items
    from .transport_suite import TransportSuite
    from .wrappers import Fault, FaultTransport, LatencyTransport, RecordingTransport

__all__ = [
    "SECRET_MARK",
    "TOKEN_MARK",
    "ComposeSuite",
    "Fault",
    "FaultProxy",
    "FaultRule",
    "FaultTransport",
    "LatencyTransport",
    "LoggedRequest",
    "MotoServer",
    "Mutation",
    "RcloneServer",
    "ReaderSuite",
    "RecordingTransport",
    "RequestLog",
    "RuleBook",
    "S3Request",
    "SeaweedServer",
    "TransportSuite",
    "blobs",
    "item_ranges",
    "object_with_items",
]

_HOMES = {
    "_server": ("SECRET_MARK", "TOKEN_MARK"),
    "compose_suite": ("ComposeSuite",),
    "fault_proxy": ("FaultProxy",),
    "fault_rules": ("FaultRule", "RuleBook", "S3Request"),
    "reader_suite": ("ReaderSuite",),
    "request_log": ("LoggedRequest", "Mutation", "RequestLog"),
    "servers": ("MotoServer", "RcloneServer", "SeaweedServer"),
    "strategies": ("blobs", "item_ranges", "object_with_items"),
    "transport_suite": ("TransportSuite",),
    "wrappers": ("Fault", "FaultTransport", "LatencyTransport", "RecordingTransport"),
}

if sys.modules.get("pytest") is not None:
    # Before the suites are imported: their failed assertions then show both sides.
    sys.modules["pytest"].register_assert_rewrite(
        f"{__name__}.compose_suite",
        f"{__name__}.reader_suite",
        f"{__name__}.transport_suite",
    )


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

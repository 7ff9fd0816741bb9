"""The only place that talks to a network.

A transport performs single requests and raises this package's errors. What to request is
decided above it.
"""

from .boto import BotoTransport
from .contract import (
    Composes,
    CopiedRange,
    ListPage,
    ObjectBody,
    ObjectInfo,
    Prepares,
    Reconnects,
    Transport,
    Uploaded,
)
from .memory import MemoryTransport

__all__ = [
    "BotoTransport",
    "Composes",
    "CopiedRange",
    "ListPage",
    "MemoryTransport",
    "ObjectBody",
    "ObjectInfo",
    "Prepares",
    "Reconnects",
    "Transport",
    "Uploaded",
]

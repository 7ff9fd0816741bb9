"""The only place that talks to a network.

A transport performs single requests and raises this package's errors. What to request is
decided above it.
"""

from .boto import BotoTransport
from .contract import ListPage, ObjectBody, ObjectInfo, Prepares, Transport, Uploaded
from .memory import MemoryTransport

__all__ = [
    "BotoTransport",
    "ListPage",
    "MemoryTransport",
    "ObjectBody",
    "ObjectInfo",
    "Prepares",
    "Transport",
    "Uploaded",
]

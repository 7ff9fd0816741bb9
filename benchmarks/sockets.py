"""Ranges through raw sockets: nothing is checked, nothing tried again."""

from __future__ import annotations

import socket
import ssl
import urllib.parse
from collections.abc import Callable

from .native_clients import byte_range


def connect(url: str) -> socket.socket:
    """A connection to the server of a URL."""
    place = urllib.parse.urlsplit(url)
    connection = socket.create_connection((place.hostname or "", place.port or 0))
    if place.scheme == "http":
        return connection
    context = ssl.create_default_context()
    return context.wrap_socket(connection, server_hostname=place.hostname)


def receive(connection: socket.socket, url: str, start: int, memory: memoryview) -> None:
    """Fill the memory with what a signed URL names, from byte ``start`` on."""
    place = urllib.parse.urlsplit(url)
    request = (
        f"GET {place.path}?{place.query} HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Range: {byte_range(start, memory)}\r\n\r\n"
    )
    connection.sendall(request.encode())
    head = b""
    while b"\r\n\r\n" not in head:
        block = connection.recv(4096)
        if not block:
            raise RuntimeError("the server hung up")
        head += block
    head, _, rest = head.partition(b"\r\n\r\n")
    if b" 206 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(f"the server answered {head!r}")
    memory[: len(rest)] = rest
    fill(connection.recv_into, memory[len(rest) :])


def fill(
    readinto: Callable[[memoryview], int | None], memory: memoryview, block: int | None = None
) -> None:
    """Read until the memory is full, up to a block at a time."""
    while len(memory):
        count = readinto(memory[:block])
        if not count:
            raise RuntimeError(f"the body ended {len(memory)} bytes early")
        memory = memory[count:]

"""Ranges and parts through raw sockets: nothing is checked, nothing tried again."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .native_clients import byte_range

Part = TypeVar("Part")
_THREADS = 8
_ETAG = re.compile(rb"\r\netag: *([^\r]*)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def in_threads(
    url: str, parts: Iterable[Part], move: Callable[[socket.socket, Part], object]
) -> None:
    """Move all parts: each thread takes the next over a connection of its own."""
    left, lock = iter(parts), threading.Lock()

    def run() -> None:
        connection: socket.socket | None = None
        while True:
            with lock:
                part = next(left, None)
            if part is None:
                return
            connection = connection or connect(url)
            move(connection, part)

    with ThreadPoolExecutor(_THREADS) as pool:
        for running in [pool.submit(run) for _ in range(_THREADS)]:
            running.result()


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
    _, rest = _head(connection, 206)
    memory[: len(rest)] = rest
    fill(connection.recv_into, memory[len(rest) :])


def send(connection: socket.socket, url: str, memory: memoryview) -> str:
    """Store the memory under a signed URL; gives the ETag."""
    place = urllib.parse.urlsplit(url)
    request = (
        f"PUT {place.path}?{place.query} HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Content-Length: {len(memory)}\r\n\r\n"
    )
    connection.sendall(request.encode())
    connection.sendall(memory)
    head, rest = _head(connection, 200)
    length, etag = _LENGTH.search(head), _ETAG.search(head)
    if length:
        fill(connection.recv_into, memoryview(bytearray(int(length[1]) - len(rest))))
    if not etag:
        raise RuntimeError(f"no ETag in {head!r}")
    return etag[1].decode()


def _head(connection: socket.socket, status: int) -> tuple[bytes, bytes]:
    """The head of an answer with this status, and what came behind it."""
    head = b""
    while b"\r\n\r\n" not in head:
        block = connection.recv(4096)
        if not block:
            raise RuntimeError(f"the answer ended at {head!r}")
        head += block
    head, _, rest = head.partition(b"\r\n\r\n")
    if b" %d " % status not in head.split(b"\r\n")[0]:
        raise RuntimeError(f"the server answered {head!r}")
    return head, rest


def fill(
    readinto: Callable[[memoryview], int | None], memory: memoryview, block: int | None = None
) -> None:
    """Read until the memory is full, up to a block at a time."""
    while len(memory):
        count = readinto(memory[:block])
        if not count:
            raise RuntimeError(f"the body ended {len(memory)} bytes early")
        memory = memory[count:]

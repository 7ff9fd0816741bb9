"""What the servers here have in common: they listen on loopback and serve each connection in a
thread of its own, in clear or with TLS, until standard input ends.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable

_BLOCK = 65536


class Incoming:
    """What comes over a connection: heads and lines up to a mark, and the bytes behind them.

    Raises:
        ConnectionError: The client has gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._block = bytearray(_BLOCK)
        self._view = memoryview(self._block)
        self._at = self._end = 0

    def head(self) -> bytes:
        """The next request up to its body."""
        return self._until(b"\r\n\r\n")

    def line(self) -> bytes:
        """The next line, without its end."""
        return self._until(b"\r\n")

    def receive(self, memory: memoryview) -> int:
        """Some bytes, as many as the memory takes at most; they go straight into it."""
        count = min(len(memory), self._end - self._at)
        if count:
            memory[:count] = self._view[self._at : self._at + count]
            self._at += count
        else:
            count = self._connection.recv_into(memory)
        if not count:
            raise ConnectionError("the client has gone")
        return count

    def _until(self, mark: bytes) -> bytes:
        while True:
            found = self._block.find(mark, self._at, self._end)
            if found >= 0:
                text = bytes(self._view[self._at : found])
                self._at = found + len(mark)
                return text
            rest = bytes(self._view[self._at : self._end])
            self._view[: len(rest)] = rest
            count = self._connection.recv_into(self._view[len(rest) :])
            if not count:
                raise ConnectionError("the client has gone, or never came to an end")
            self._at, self._end = 0, len(rest) + count


#: Answers the requests of one connection until ConnectionError ends it.
Serve = Callable[[socket.socket, Incoming], None]


def listen(serve: Serve, tls: ssl.SSLContext | None = None) -> None:
    """Print the address, and serve until standard input ends."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    scheme = "https" if tls else "http"
    print(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        arguments = (connection, serve, tls)
        threading.Thread(target=_serve_connection, args=arguments, daemon=True).start()


def _serve_connection(connection: socket.socket, serve: Serve, tls: ssl.SSLContext | None) -> None:
    try:
        if tls:
            connection = tls.wrap_socket(connection, server_side=True)
        with connection:
            serve(connection, Incoming(connection))
    except OSError:
        return  # the client has gone


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def add_tls(parser: argparse.ArgumentParser) -> None:
    """The option for the files that ``tls_context`` takes."""
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"))


def tls_context(files: list[str] | None) -> ssl.SSLContext | None:
    """The context of a server with this certificate and key; None without."""
    if files is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context

"""A server that answers ranged GETs from files as fast as the kernel can: the server is not
the limit when a client is measured against it.

    python -m benchmarks.static_server FOLDER [--tls CERTIFICATE KEY] [--delay SECONDS]

It prints its address. ``http://127.0.0.1:PORT/BUCKET/KEY`` is the file ``FOLDER/BUCKET/KEY``.
It understands GET and HEAD with one range, keeps connections open, and checks nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import ssl
import sys
import threading
import time
import urllib.parse
from pathlib import Path

_RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d*)", re.IGNORECASE)
_MIB = 1024 * 1024


def serve(folder: Path, tls: ssl.SSLContext | None, delay: float) -> None:
    """Serve until the process is killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    scheme = "https" if tls else "http"
    print(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        arguments = (connection, folder, tls, delay)
        threading.Thread(target=_serve_connection, args=arguments, daemon=True).start()


def _serve_connection(
    connection: socket.socket, folder: Path, tls: ssl.SSLContext | None, delay: float
) -> None:
    try:
        if tls:
            connection = tls.wrap_socket(connection, server_side=True)
        with connection:
            pending = b""
            while True:
                while b"\r\n\r\n" not in pending:
                    block = connection.recv(65536)
                    if not block:
                        return
                    pending += block
                request, _, pending = pending.partition(b"\r\n\r\n")
                time.sleep(delay)
                _answer(connection, request, folder)
    except OSError:
        return  # the client has gone


def _answer(connection: socket.socket, request: bytes, folder: Path) -> None:
    method, target, _ = request.split(b"\r\n", 1)[0].split(b" ")
    path = urllib.parse.unquote(target.split(b"?")[0].decode()).lstrip("/")
    try:
        file = open(folder / path, "rb")  # noqa: SIM115 - closed below
    except OSError:
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return
    with file:
        size = os.fstat(file.fileno()).st_size
        start, end, status = 0, size, b"200 OK"
        found = _RANGE.search(request)
        extra = b""
        if found:
            start = int(found[1])
            end = min(int(found[2]) + 1, size) if found[2] else size
            status = b"206 Partial Content"
            extra = b"Content-Range: bytes %d-%d/%d\r\n" % (start, end - 1, size)
        connection.sendall(
            b'HTTP/1.1 %s\r\nContent-Length: %d\r\nETag: "static"\r\nAccept-Ranges: bytes\r\n%s\r\n'
            % (status, end - start, extra)
        )
        if method != b"GET":
            return
        if isinstance(connection, ssl.SSLSocket):
            file.seek(start)
            while start < end:
                block = file.read(min(_MIB, end - start))
                connection.sendall(block)
                start += len(block)
        else:
            connection.sendfile(file, start, end - start)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A fast static range server on loopback.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"))
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    context = None
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options.tls)
    serve(options.folder, context, options.delay)


if __name__ == "__main__":
    sys.exit(main())
